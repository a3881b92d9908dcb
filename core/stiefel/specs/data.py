"""The data a training job can name: uploaded files, or a task that is made on the fly.

Copying memory and the adding problem: Hochreiter and Schmidhuber 1997; sizes of arXiv 2203.05483.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from stiefel.specs.base import ArtifactId

#: Token ids of text that is padded: every byte, one higher, and 0 for what is not there.
PADDED_BYTES = 257

Column = Annotated[str, Field(min_length=1, max_length=128)]
Share = Annotated[float, Field(gt=0.0, lt=1.0)]


class Data(BaseModel):
    """Base of every kind of data."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    def inputs(self) -> dict[str, str]:
        """Staged file name -> artifact id."""
        return {}


class UploadedData(Data):
    """Examples in uploaded files; without ``test`` a share of ``train`` is held out."""

    train: ArtifactId
    test: ArtifactId | None = None
    held_out: Share = Field(
        default=0.1, description="Share of train used as test if test is absent"
    )

    def inputs(self) -> dict[str, str]:
        """``train`` and, where given, ``test``."""
        staged = {"train": self.train}
        return staged | ({"test": self.test} if self.test else {})


class LabelledData(UploadedData):
    """Inputs and labels by column or array name."""

    input: Column | Annotated[list[Column], Field(min_length=1, max_length=4096)] = Field(
        description="One column, or numeric columns side by side"
    )
    label: Column = "label"
    task: Literal["classification", "regression"] = "classification"
    as_sequence: bool = Field(default=False, description="Feed pixels one at a time, row by row")
    permute: Annotated[int, Field(ge=0, lt=2**31)] | None = Field(
        default=None, description="Seed of one fixed permutation of the sequence"
    )
    augment: Literal["none", "shift", "flip_shift"] = Field(
        default="none", description="Random shifts; flip_shift mirrors as well"
    )
    augment_pixels: Annotated[int, Field(ge=1, le=16)] = Field(
        default=2, description="The largest shift, in pixels, along each axis"
    )

    @field_validator("input")
    @classmethod
    def _each_once(cls, value: str | list[str]) -> str | list[str]:
        if isinstance(value, list) and len(set(value)) < len(value):
            twice = next(name for name in value if value.count(name) > 1)
            raise ValueError(f'the column "{twice}" is named twice')
        return value

    @model_validator(mode="after")
    def _permuted_sequences(self) -> LabelledData:
        if self.permute is not None and not self.as_sequence:
            raise ValueError("permute orders the steps of a sequence: set as_sequence too")
        return self


class ParquetData(LabelledData):
    """Parquet in the Hugging Face layout: images as {bytes, path}, text, or numeric columns."""

    kind: Literal["parquet"]
    context: Annotated[int, Field(ge=2, le=8192)] = Field(
        default=128, description="Bytes of each text of a text column; longer ones are cut"
    )


class ArrayData(LabelledData):
    """`.npz` or `.safetensors` arrays with examples along the first axis."""

    kind: Literal["arrays"]


class TextData(UploadedData):
    """UTF-8 text for language modelling, cut into windows of ``context`` tokens."""

    kind: Literal["text"]
    column: Column | None = Field(
        default=None, description="Of parquet files: the column with the text, row after row"
    )
    context: Annotated[int, Field(ge=2, le=8192)] = 128
    tokens: Literal["bytes"] = "bytes"


class CopyingMemory(Data):
    """Ten symbols, a delay of blanks, then the symbols again: cross-entropy at every step."""

    kind: Literal["copying_memory"]
    delay: Annotated[int, Field(ge=1, le=20_000)] = 1000
    length: Annotated[int, Field(ge=1, le=100)] = 10
    symbols: Annotated[int, Field(ge=2, le=64)] = 8
    batches_per_epoch: Annotated[int, Field(ge=1, le=100_000)] = 100


class AddingProblem(Data):
    """Two marked numbers in a sequence of random ones: predict their sum."""

    kind: Literal["adding_problem"]
    length: Annotated[int, Field(ge=2, le=20_000)] = 200
    train_examples: Annotated[int, Field(ge=1, le=10_000_000)] = 100_000
    test_examples: Annotated[int, Field(ge=1, le=1_000_000)] = 2_000


AnyData = Annotated[
    ParquetData | ArrayData | TextData | CopyingMemory | AddingProblem, Field(discriminator="kind")
]
