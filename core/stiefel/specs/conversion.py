"""What every conversion of a checkpoint has in common: its input and its selection."""

from __future__ import annotations

from abc import abstractmethod
from fnmatch import fnmatchcase
from typing import Annotated, Literal, Self

from pydantic import Field, StringConstraints, field_validator, model_validator

from stiefel.specs.base import ArtifactId, FileName, MethodSpec
from stiefel.specs.header import TensorInfo
from stiefel.specs.treatment import Skip, Treatment

SINGLE = "model.safetensors"
CALIBRATION = "calibration.safetensors"  # the staged name; not itself converted
INDEX_SUFFIX = ".safetensors.index.json"
Pattern = Annotated[str, StringConstraints(min_length=1, max_length=256)]
Patterns = Annotated[tuple[Pattern, ...], Field(max_length=64)]


class ConversionSpec(MethodSpec):
    """Weights in, weights out: which tensors of which files."""

    input: ArtifactId | dict[FileName, ArtifactId] = Field(
        description="Artifact id of a safetensors file, or {file name: artifact id} for a "
        "sharded checkpoint (its .safetensors shards and, if there is one, its "
        ".safetensors.index.json).",
        examples=["art_01k0example"],
    )
    include: Patterns = Field(
        default=("*",),
        min_length=1,
        description="Shell patterns on tensor names; a tensor that matches one is selected.",
        examples=[["*.attention.*.weight"]],
    )
    exclude: Patterns = Field(
        default=(), description="Shell patterns; a tensor that matches one is left as it is."
    )
    kernels: Literal["flatten", "skip"] = Field(
        default="flatten",
        description="What to do with tensors of three to five dimensions: flatten each to "
        "out x (in * kernel), as convolution kernels are, or leave them as they are.",
    )

    calibration: ArtifactId | None = Field(
        default=None,
        description="Artifact id of a safetensors file with what the layers' inputs look like: "
        "for `a.weight` (out x in) the tensor `a.second_moment` (in x in), the sum of x x^T "
        "over inputs x, and optionally `a.first_moment` (in), the sum of x, and `a.count`, how "
        "many; `a.transposed` says that the weight is stored in x out. Such a weight is converted "
        "so that the layer's output changes least; a weight "
        "without one is converted by itself.",
    )

    @field_validator("input")
    @classmethod
    def _checkpoint_files(cls, value: str | dict[str, str]) -> str | dict[str, str]:
        if isinstance(value, str):
            return value
        if not 1 <= len(value) <= 1000:
            raise ValueError("name between 1 and 1,000 files")
        strange = [n for n in value if not n.endswith((".safetensors", INDEX_SUFFIX))]
        if strange:
            raise ValueError(f"{strange[0]!r} ends in neither .safetensors nor {INDEX_SUFFIX}")
        if sum(n.endswith(INDEX_SUFFIX) for n in value) > 1:
            raise ValueError("name at most one index file")
        if all(n.endswith(INDEX_SUFFIX) for n in value):
            raise ValueError("name at least one .safetensors file")
        return value

    @model_validator(mode="after")
    def _free_name(self) -> Self:
        if self.calibration is not None and CALIBRATION in self._checkpoint():
            raise ValueError(f"rename the input {CALIBRATION!r}: calibration takes that name")
        return self

    def inputs(self) -> dict[str, str]:
        """``model.safetensors`` or the names the caller gave, and the calibration beside them."""
        files = self._checkpoint()
        return files if self.calibration is None else {**files, CALIBRATION: self.calibration}

    def weight_files(self) -> list[str]:
        """Names of the safetensors files to convert, sorted."""
        return sorted(name for name in self._checkpoint() if name.endswith(".safetensors"))

    def index_file(self) -> str | None:
        """Name of the index among the inputs, if there is one."""
        return next((name for name in self._checkpoint() if name.endswith(INDEX_SUFFIX)), None)

    def _checkpoint(self) -> dict[str, str]:
        return {SINGLE: self.input} if isinstance(self.input, str) else dict(self.input)

    def selection(self, name: str) -> Skip | None:
        """Why ``name`` is not selected by the patterns, or None where it is."""
        if not any(fnmatchcase(name, pattern) for pattern in self.include):
            return Skip("not_included", "matches no include pattern")
        return self.exclusion(name)

    def exclusion(self, name: str) -> Skip | None:
        """Why ``name`` is left out whatever the include patterns say, or None."""
        for pattern in self.exclude:
            if fnmatchcase(name, pattern):
                return Skip("excluded", f"matches the exclude pattern {pattern!r}")
        return None

    def moment_bytes(self, columns: int) -> int:
        """Working memory of the second moment of a layer's inputs, its root and a product."""
        return 0 if self.calibration is None else 4 * 8 * columns * columns

    def companion(self, tensor: TensorInfo) -> str | None:
        """The weight in whose conversion ``tensor`` takes part, if that weight is selected."""
        return None

    @abstractmethod
    def treat(self, tensor: TensorInfo, rows: int, columns: int) -> Treatment | Skip:
        """What becomes of one selected tensor, seen as a ``rows`` x ``columns`` matrix."""
