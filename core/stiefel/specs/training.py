"""What every training job may ask for; the methods add their constraint."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from stiefel.specs.base import ArtifactId, MethodSpec
from stiefel.specs.conversion import Patterns
from stiefel.specs.data import AnyData
from stiefel.specs.networks import AnyNetwork

Count = Annotated[int, Field(ge=1, le=1_000_000)]
Positive = Annotated[float, Field(gt=0.0, le=1e6)]


class Subspace(BaseModel):
    """Where GaLore keeps the moments of a matrix (arXiv 2403.03507)."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    rank: Annotated[int, Field(ge=1, le=65_536)] = 64
    period: Annotated[int, Field(ge=1, le=10_000_000)] = Field(
        default=200, description="Steps between renewals of the subspace"
    )
    energy: Annotated[float, Field(gt=0.0, le=1.0)] | None = Field(
        default=None,
        description="Share of the gradient's energy that the subspace holds, in at most `rank` "
        "directions (AdaRankGrad, arXiv 2410.17881)",
    )
    scale: Annotated[float, Field(gt=0.0, le=1e3)] = 1.0


class Optimizer(BaseModel):
    """An ordinary optimizer for every parameter that the method does not update itself."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: Literal["sgd", "adam", "adamw", "rmsprop", "galore"] = Field(
        default="adam",
        description="galore: AdamW with its moments in a subspace; for train.dense",
    )
    learning_rate: Annotated[float, Field(gt=0.0, le=100.0)] = 1e-3
    momentum: Annotated[float, Field(ge=0.0, lt=1.0)] = Field(default=0.9, description="Of sgd")
    weight_decay: Annotated[float, Field(ge=0.0, le=10.0)] = 0.0
    subspace: Subspace = Field(default=Subspace(), description="Of galore")

    @model_validator(mode="after")
    def _nothing_in_vain(self) -> Optimizer:
        for name, owner in (("momentum", "sgd"), ("subspace", "galore")):
            if self.name != owner and getattr(self, name) != type(self).model_fields[name].default:
                raise ValueError(f"{name} is a setting of {owner}; {self.name} has none")
        return self


class Schedule(BaseModel):
    """Factor on the learning rate: warm-up, then a decay over the rest of the run."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["constant", "cosine", "linear", "exponential"] = "cosine"
    warmup_steps: Annotated[int, Field(ge=0, le=1_000_000)] = 0
    factor_per_epoch: Annotated[float, Field(gt=0.0, le=1.0)] = Field(
        default=0.94, description="For kind exponential"
    )


class TrainingSpec(MethodSpec):
    """Network, data, optimizer and the rhythm of evaluation and checkpoints."""

    keeps_checkpoints: ClassVar[bool] = True

    network: AnyNetwork
    data: AnyData
    weights: ArtifactId | None = Field(
        default=None, description="safetensors weights to start from; keys as the network's own"
    )
    fresh: Patterns = Field(
        default=(),
        description="Shell patterns on tensors that are drawn anew instead of taken from weights, "
        "such as the head of another task",
    )
    optimizer: Optimizer = Optimizer()
    schedule: Schedule = Schedule()
    epochs: Annotated[int, Field(ge=1, le=100_000)] = 10
    max_steps: Count | None = Field(default=None, description="Stop after this many steps")
    batch_size: Annotated[int, Field(ge=1, le=65_536)] = 128
    accumulate: Annotated[int, Field(ge=1, le=1024)] = 1
    label_smoothing: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    clip_norm: Positive | None = None
    precision: Literal["float32", "bfloat16", "float16"] = "float32"
    device: Literal["auto", "cpu", "cuda"] = "auto"
    devices: Annotated[int, Field(ge=1, le=64)] = 1
    deterministic: bool = Field(
        default=False,
        description="Refuse operations that may differ from run to run on a GPU; on CPUs the same "
        "number of threads gives the same bits in any case",
    )
    log_every: Count = Field(default=10, description="Steps between points of the loss")
    patience: Count | None = Field(
        default=None, description="Stop after this many evaluations without a better one"
    )
    checkpoint_every: Count | None = Field(
        default=None, description="Steps between checkpoints; by default one per epoch"
    )
    deliver: Literal["last", "best"] = Field(
        default="last",
        description="Which weights model.safetensors holds; with last, the best are delivered "
        "beside them as best.safetensors",
    )
    keep_checkpoints: Annotated[int, Field(ge=1, le=100)] = 2

    @field_validator("optimizer")
    @classmethod
    def _dense_subspace(cls, value: Optimizer) -> Optimizer:
        if value.name == "galore" and cls.model_fields["method"].default != "train.dense":
            raise ValueError("galore keeps its state for whole weights: use train.dense")
        return value

    @model_validator(mode="after")
    def _fresh_of_weights(self) -> TrainingSpec:
        if self.fresh and self.weights is None:
            raise ValueError("fresh makes exceptions from weights: name weights, or leave it out")
        return self

    @model_validator(mode="after")
    def _every_device_has_an_example(self) -> TrainingSpec:
        if self.batch_size < self.devices:
            batch, devices = self.batch_size, self.devices
            raise ValueError(f"a batch of {batch} cannot be shared by {devices} devices")
        return self

    def doubts(self, steps: int) -> list[str]:
        """What may surprise in a run of at most ``steps`` steps, for people."""
        return []

    def inputs(self) -> dict[str, str]:
        """Data files and, where given, the weights to start from."""
        staged = self.data.inputs()
        return staged | ({"weights": self.weights} if self.weights else {})
