"""How many singular values a factorisation keeps: one closed model per rule."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field


class _Rule(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class RankRule(_Rule):
    """The same rank for every matrix."""

    by: Literal["rank"] = "rank"
    value: int = Field(ge=1, le=65_536)


class EnergyRule(_Rule):
    """The least rank that retains this share of the squared Frobenius norm."""

    by: Literal["energy"]
    value: float = Field(gt=0, le=1)


class ToleranceRule(_Rule):
    """The least rank whose tail is at most this share of the Frobenius norm."""

    by: Literal["tolerance"]
    value: float = Field(ge=0, lt=1)


class RatioRule(_Rule):
    """Keep every singular value of at least this share of the largest."""

    by: Literal["ratio"]
    value: float = Field(gt=0, le=1)


class KeepRule(_Rule):
    """Keep this share of each matrix's parameters: r = floor(value * n * m / (n + m))."""

    by: Literal["keep"]
    value: float = Field(gt=0, le=1)


class BudgetRule(_Rule):
    """Spread this many parameters over all selected matrices, where they retain most energy."""

    by: Literal["budget"]
    value: int = Field(ge=2, le=2**53)


class ShareRule(_Rule):
    """A budget of this share of the selected matrices' own parameters."""

    by: Literal["share"]
    value: float = Field(gt=0, le=1)


AnyRule = Annotated[
    RankRule | EnergyRule | ToleranceRule | RatioRule | KeepRule | BudgetRule | ShareRule,
    Field(discriminator="by"),
]
