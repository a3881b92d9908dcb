"""The element types of the safetensors format: bits per element, and which are real or complex."""

from __future__ import annotations

BITS = {
    "F4": 4,
    "F6_E2M3": 6,
    "F6_E3M2": 6,
    "BOOL": 8,
    "U8": 8,
    "I8": 8,
    "F8_E5M2": 8,
    "F8_E4M3": 8,
    "F8_E8M0": 8,
    "F8_E4M3FNUZ": 8,
    "F8_E5M2FNUZ": 8,
    "I16": 16,
    "U16": 16,
    "F16": 16,
    "BF16": 16,
    "I32": 32,
    "U32": 32,
    "F32": 32,
    "C64": 64,
    "F64": 64,
    "I64": 64,
    "U64": 64,
}

# What can be converted; everything else passes through bit for bit.
CONVERTIBLE = frozenset({"F16", "BF16", "F32", "F64", "C64"})
HALF = frozenset({"F16", "BF16"})
COMPLEX = frozenset({"C64"})


def element_bytes(dtype: str) -> int:
    """Bytes per element of a convertible ``dtype``."""
    return BITS[dtype] // 8
