"""``factorize.low_rank``: every selected matrix becomes a product of two thin ones."""

from __future__ import annotations

from typing import ClassVar, Literal, Self

from pydantic import Field, model_validator

from stiefel.break_even import break_even_rank
from stiefel.specs.conversion import ConversionSpec
from stiefel.specs.dtypes import COMPLEX, element_bytes
from stiefel.specs.header import TensorInfo
from stiefel.specs.rank_rules import AnyRule, BudgetRule, KeepRule, RankRule, ShareRule
from stiefel.specs.treatment import Output, Skip, Treatment

UNKNOWN = -1  # a rank that only the singular values tell


class FactorizeLowRankSpec(ConversionSpec):
    """Replace each selected n x m matrix W by its best approximation of rank r.

    Factored output stores ``factor_out`` (n x r) and ``factor_in`` (r x m) with
    W ~ factor_out @ factor_in; ``a.weight`` becomes ``a.factor_out`` and ``a.factor_in``,
    any other name N becomes ``N.factor_out`` and ``N.factor_in``. The factors of a kernel
    out x in x k... have the shapes out x r x 1... and r x in x k..., which two
    convolutions in sequence take as they are. Merged output stores the product under
    the tensor's own name.
    """

    summary: ClassVar[str] = "Factorise weights to low rank; the rank by one of seven rules."

    method: Literal["factorize.low_rank"] = "factorize.low_rank"
    rule: AnyRule = Field(
        description="How the rank is chosen.", examples=[{"by": "energy", "value": 0.95}]
    )
    output: Literal["factored", "merged"] = "factored"
    factors: Literal["balanced", "us_v"] = Field(
        default="balanced",
        description="balanced: U sqrt(S), sqrt(S) V^H, for fine-tuning and low precision. "
        "us_v: U S, V^H, with orthonormal rows in factor_in.",
    )
    min_rank: int = Field(default=1, ge=1, le=65_536)
    max_rank: int | None = Field(default=None, ge=1, le=65_536)
    multiple_of: int = Field(
        default=1,
        ge=1,
        le=1024,
        description="Round ranks up to a multiple of this, which GPUs like; ignored for a "
        "matrix where it would cross the break-even.",
    )
    break_even: bool = Field(
        default=True,
        description="Leave a matrix as it is where its two factors would not be smaller "
        "(factored output only; the rules budget and share always do).",
    )
    engine: Literal["auto", "full", "gram", "randomised"] = Field(
        default="auto",
        description="How singular values are found. randomised is fast for small ranks of "
        "large matrices, needs the rule rank or keep, and certifies no optimal error.",
    )
    correct_bias: bool = Field(
        default=True,
        description="Let `a.bias` take up the change of the mean output, where the calibration "
        "knows `a.first_moment`.",
    )

    @model_validator(mode="after")
    def _agreeing(self) -> Self:
        if self.calibration is not None and self.engine == "randomised":
            raise ValueError("with calibration the engine is full; randomised is not offered")
        if self.max_rank is not None and self.max_rank < self.min_rank:
            raise ValueError("max_rank is below min_rank")
        if self.engine == "randomised" and not isinstance(self.rule, RankRule | KeepRule):
            raise ValueError("the randomised engine needs a rule that fixes the rank: rank or keep")
        return self

    def known_rank(self, rows: int, columns: int) -> int:
        """The rank before rounding where the shape alone decides it, else ``UNKNOWN``."""
        if isinstance(self.rule, RankRule):
            return self.bounded(self.rule.value, rows, columns)
        if isinstance(self.rule, KeepRule):
            rank = int(self.rule.value * rows * columns / (rows + columns))
            return self.bounded(rank, rows, columns)
        return UNKNOWN

    def bounded(self, rank: int, rows: int, columns: int) -> int:
        """``rank`` within ``min_rank``, ``max_rank`` and the matrix's own limit."""
        side = min(rows, columns)
        return max(1, min(max(rank, self.min_rank), self.max_rank or side, side))

    def rounded(self, rank: int, rows: int, columns: int) -> int:
        """``rank`` rounded up to ``multiple_of`` where that stays below the break-even."""
        up = -(-rank // self.multiple_of) * self.multiple_of
        return up if up <= break_even_rank(rows, columns) else rank

    def final_rank(self, rank: int, rows: int, columns: int) -> int:
        """``rank`` within its bounds, then rounded up."""
        return self.rounded(self.bounded(rank, rows, columns), rows, columns)

    def verdict(self, rank: int, rows: int, columns: int) -> Skip | None:
        """Why a matrix stays as it is at this rank, or None."""
        if self.output == "merged":
            if rank >= min(rows, columns):
                return Skip("full_rank", f"rank {rank} is the full rank of {rows} x {columns}")
            return None
        # A budget counts the full rank as the matrix itself.
        kept = self.break_even or isinstance(self.rule, BudgetRule | ShareRule)
        if kept and rank > break_even_rank(rows, columns):
            limit = rows * columns / (rows + columns)
            return Skip(
                "break_even",
                f"at rank {rank} the factors of {rows} x {columns} are not smaller than the "
                f"matrix; the break-even is {limit:.1f}",
            )
        return None

    def treat(self, tensor: TensorInfo, rows: int, columns: int) -> Treatment | Skip:
        """Decide by shape where the rule allows, else plan for the largest possible rank."""
        if rows * columns == 0:
            return Skip("empty", "has no elements")
        rank = self.known_rank(rows, columns)
        if rank != UNKNOWN:
            rank = self.final_rank(rank, rows, columns)
            skip = self.verdict(rank, rows, columns)
            if skip is not None:
                return skip
        return Treatment(
            outputs=self.outputs(tensor, rank),
            output_bytes=self._output_bytes(tensor, rank, rows, columns),
            peak_bytes=self._peak_bytes(tensor, rows, columns),
            note="rank by singular values" if rank == UNKNOWN else f"rank {rank}",
        )

    def companion(self, tensor: TensorInfo) -> str | None:
        """The weight whose change a bias takes up."""
        if self.calibration is None or not self.correct_bias or len(tensor.shape) != 1:
            return None
        stem = tensor.name.removesuffix(".bias")
        return f"{stem}.weight" if stem != tensor.name else None

    def outputs(self, tensor: TensorInfo, rank: int) -> tuple[Output, ...]:
        """The tensors written for ``tensor`` at ``rank``."""
        if self.output == "merged":
            return (Output(tensor.name, tensor.dtype, tensor.shape, "merged"),)
        stem = factor_stem(tensor.name)
        ones = (1,) * (len(tensor.shape) - 2)
        out_shape = (tensor.shape[0], rank, *ones)
        in_shape = (rank, *tensor.shape[1:])
        return (
            Output(f"{stem}.factor_out", tensor.dtype, out_shape, "factor"),
            Output(f"{stem}.factor_in", tensor.dtype, in_shape, "factor"),
        )

    def _output_bytes(self, tensor: TensorInfo, rank: int, rows: int, columns: int) -> int:
        if self.output == "merged" or rank == UNKNOWN:
            return tensor.nbytes
        return rank * (rows + columns) * element_bytes(tensor.dtype)

    def _peak_bytes(self, tensor: TensorInfo, rows: int, columns: int) -> int:
        wide = 16 if tensor.dtype in COMPLEX else 8
        side = min(rows, columns)
        matrices = wide * (4 * rows * columns + 5 * side * side)
        return 2 * tensor.nbytes + matrices + self.moment_bytes(columns)


def factor_stem(name: str) -> str:
    """The part of a tensor's name that its factors share: without a final ``.weight``."""
    return name.removesuffix(".weight") if name != ".weight" else name
