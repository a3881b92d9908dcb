"""``project.network``: unitary layers that together answer like the original network."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from stiefel.specs.base import ArtifactId, MethodSpec
from stiefel.specs.conversion import Patterns
from stiefel.specs.data import AnyData
from stiefel.specs.networks import AnyNetwork

Count = Annotated[int, Field(ge=1, le=1_000_000)]


class ProjectNetworkSpec(MethodSpec):
    """Fit all selected linear layers at once to the outputs of the network they come from.

    Each starts at its projection and moves by an exponential; the gradient passes through all
    exponentials. ``model.safetensors`` loads into the same family, without batch normalisation
    where that was absorbed.
    """

    summary: ClassVar[str] = (
        "Project a whole network's linear layers so that its outputs stay what they were."
    )
    keeps_checkpoints: ClassVar[bool] = False

    method: Literal["project.network"] = "project.network"
    network: AnyNetwork
    weights: ArtifactId = Field(
        description="safetensors weights of the trained network; keys as the network's own"
    )
    data: AnyData = Field(description="Its training inputs are what the outputs are matched on")
    include: Patterns = Field(default=("*",), description="Shell patterns on layer names")
    exclude: Patterns = Field(default=(), description="Patterns that override include")
    keep_last: bool = Field(default=True, description="Leave the head as it is")
    absorb_normalisations: bool = Field(
        default=True,
        description="Batch normalisations that follow a layer move into it, at inference values",
    )
    scale: Literal["mean", "none"] = Field(
        default="mean",
        description="mean: a gain per layer, from the mean singular value, fitted along. none: 1",
    )
    examples: Count = Field(default=2048, description="Training inputs to match on, at most")
    iterations: Annotated[int, Field(ge=1, le=100_000)] = 200
    batch_size: Annotated[int, Field(ge=1, le=65_536)] = 256
    learning_rate: Annotated[float, Field(gt=0.0, le=100.0)] = Field(
        default=1e-3, description="Of Adam, falling to zero as a cosine"
    )
    checkpoint_every: Count = Field(default=50, description="Iterations between checkpoints")

    def inputs(self) -> dict[str, str]:
        """Data files and the weights."""
        return self.data.inputs() | {"weights": self.weights}
