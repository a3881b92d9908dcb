"""What data looks like to a network; defined beside the specs, so that plans need no torch."""

from __future__ import annotations

from stiefel.specs.signature import Signature

__all__ = ["Signature"]
