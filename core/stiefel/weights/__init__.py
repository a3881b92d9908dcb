"""Safetensors out of core: one tensor in memory at a time, whatever the size of the file."""

from __future__ import annotations

from stiefel.weights.ledger import Ledger
from stiefel.weights.reader import TensorReader
from stiefel.weights.writer import BodyWriter, Written, header_bytes, write_new

__all__ = ["BodyWriter", "Ledger", "TensorReader", "Written", "header_bytes", "write_new"]
