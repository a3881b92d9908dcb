"""What a conversion intends for one tensor. Plain values, decided from the header alone."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Skip:
    """Why a tensor is passed through unchanged: a stable code and a sentence."""

    code: str
    reason: str


@dataclass(frozen=True, slots=True)
class Output:
    """One tensor that the conversion will write; a size of -1 is known only afterwards."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    role: str  # projected | factor | merged | corrected


@dataclass(frozen=True, slots=True)
class Treatment:
    """What one selected tensor becomes."""

    outputs: tuple[Output, ...]
    output_bytes: int  # upper bound where a rank is known only afterwards
    peak_bytes: int  # working memory while this tensor is converted, its own bytes included
    note: str = ""
