"""Recompute a certificate offline: from the file alone, or with its input too."""

from __future__ import annotations

from stiefel_client.verify.check import verify
from stiefel_client.verify.report import Claim, Finding, TensorCheck, Verification

__all__ = ["Claim", "Finding", "TensorCheck", "Verification", "verify"]
