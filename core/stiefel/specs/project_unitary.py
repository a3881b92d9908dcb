"""``project.unitary``: every selected matrix becomes the nearest unitary or orthogonal one."""

from __future__ import annotations

from typing import ClassVar, Literal, Self

from pydantic import Field, model_validator

from stiefel.specs.conversion import ConversionSpec
from stiefel.specs.dtypes import COMPLEX, HALF, element_bytes
from stiefel.specs.header import TensorInfo
from stiefel.specs.treatment import Output, Skip, Treatment

UWPA_SIDE = 4096
UWPA_COPIES = 40  # temporaries of the exponential of a 2n x 2n matrix, in n x n pieces


class ProjectUnitarySpec(ConversionSpec):
    """Replace each selected matrix by the nearest one with orthonormal columns.

    A wide matrix (fewer rows than columns) gets orthonormal rows. With ``calibration`` nearest
    means in the layer's outputs on the data, not in the weights. Half-precision tensors
    are computed wider and rounded back; their certified defect is that of the stored values.
    """

    summary: ClassVar[str] = (
        "Project weights to the nearest orthogonal (real) or unitary (complex) matrix."
    )

    method: Literal["project.unitary"] = "project.unitary"
    algorithm: Literal["polar", "uwpa"] = Field(
        default="polar",
        description="polar: the closed-form nearest matrix. uwpa: gradient descent through the "
        "Lie algebra, the published method; slower, less exact, for comparison.",
    )
    determinant: Literal[1] | None = Field(
        default=None,
        description="1: nearest rotation, determinant +1 (square real matrices only; others "
        "are not constrained). null: no constraint.",
    )
    scale: Literal["none", "mean"] = Field(
        default="none",
        description="none: store the orthogonal factor Q. mean: store s * Q, s the mean singular "
        "value of the input, which keeps the layer's gain (with calibration the least-squares "
        "gain of its outputs); s is certified as `gain`.",
    )
    singular: Literal["error", "complete"] = Field(
        default="error",
        description="A rank-deficient matrix has no unique nearest unitary: fail and name it, or "
        "complete it to one of the nearest.",
    )
    output_dtype: Literal["same", "float32"] = Field(
        default="same", description="float32 stores projected half-precision tensors as float32."
    )

    iterations: int = Field(
        default=2000, ge=1, le=100_000, description="Most iterations of uwpa for one matrix."
    )

    @model_validator(mode="after")
    def _agreeing(self) -> Self:
        if self.calibration is not None and self.algorithm == "uwpa":
            raise ValueError("uwpa fits weights; with calibration the algorithm is polar")
        if self.calibration is not None and self.determinant is not None:
            raise ValueError("with calibration the determinant is not constrained")
        return self

    def stored_dtype(self, dtype: str) -> str:
        """The dtype in which the projection of a ``dtype`` tensor is stored."""
        return "F32" if self.output_dtype == "float32" and dtype in HALF else dtype

    def treat(self, tensor: TensorInfo, rows: int, columns: int) -> Treatment | Skip:
        """Every matrix is projected; the cost is that of a float64 singular value problem."""
        dtype = self.stored_dtype(tensor.dtype)
        count, side = rows * columns, min(rows, columns)
        wide = 16 if tensor.dtype in COMPLEX else 8
        uwpa = 0
        if self.algorithm == "uwpa":
            longer = max(rows, columns)
            if longer > UWPA_SIDE:
                return Skip(
                    "too_large",
                    f"{rows} x {columns}: uwpa takes exponentials of the longer side, "
                    f"at most {UWPA_SIDE:,}; the polar algorithm has no such limit",
                )
            uwpa = UWPA_COPIES * longer * longer
        return Treatment(
            outputs=(Output(tensor.name, dtype, tensor.shape, "projected"),),
            output_bytes=count * element_bytes(dtype),
            peak_bytes=2 * tensor.nbytes
            + wide * (4 * count + 5 * side * side + uwpa)
            + self.moment_bytes(columns),
            note="orthonormal columns" if rows >= columns else "orthonormal rows",
        )
