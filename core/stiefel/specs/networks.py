"""The networks a training job can name. Input and output sizes come from the data, not from here.

References: MLP and LeNet5 as in arXiv 2205.13571; VGG16 arXiv 1409.1556 and AlexNet in their usual
32 x 32 forms; ResNet-20 arXiv 1512.03385; unitary RNN arXiv 2203.05483; mini-ViT arXiv 2010.11929.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

Width = Annotated[int, Field(ge=1, le=65_536)]
Rate = Annotated[float, Field(ge=0.0, lt=1.0)]


class Network(BaseModel):
    """Base of every network family: closed, so that a misspelt key is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Perceptron(Network):
    """Fully connected layers; images are flattened."""

    family: Literal["mlp"]
    hidden: list[Width] = Field(default=[500, 500, 500, 500], min_length=1, max_length=256)
    activation: Literal["relu", "tanh", "gelu"] = "relu"
    normalisation: Literal["none", "batch", "layer"] = "none"
    dropout: Rate = 0.0


class LeNet5(Network):
    """Two 5 x 5 convolutions (20, 50 channels) and one hidden layer of 500."""

    family: Literal["lenet5"]


class VGG16(Network):
    """Thirteen 3 x 3 convolutions with batch normalisation, then two hidden layers."""

    family: Literal["vgg16"]
    width: Annotated[int, Field(ge=4, le=512)] = 64
    hidden: Width = 512


class AlexNet(Network):
    """Five convolutions and two hidden layers, for images of 32 x 32."""

    family: Literal["alexnet"]
    hidden: Width = 4096
    dropout: Rate = 0.5


class ResNet20(Network):
    """Three stages of three basic blocks, identity shortcuts with zero padding (option A)."""

    family: Literal["resnet20"]
    width: Annotated[int, Field(ge=4, le=512)] = 16


class Recurrent(Network):
    """h <- f(W_in x + U h): the recurrence that projUNN keeps unitary."""

    family: Literal["rnn"]
    hidden: Width = 170
    activation: Literal["relu", "tanh", "modrelu"] = "modrelu"
    initialisation: Literal["henaff", "cayley", "haar", "identity"] = "henaff"
    numbers: Literal["real", "complex"] = Field(
        default="real", description="complex makes the recurrence unitary; modrelu only"
    )

    @model_validator(mode="after")
    def _complex_needs_modrelu(self) -> Recurrent:
        if self.numbers == "complex" and self.activation != "modrelu":
            raise ValueError("complex numbers need activation modrelu")
        return self


class OrthogonalCNN(Network):
    """Convolutions of full width in the Fourier domain, no normalisation layers."""

    family: Literal["orthogonal_cnn"]
    channels: list[Width] = Field(default=[16, 32], min_length=1, max_length=64)


class VisionTransformer(Network):
    """Patches, pre-norm transformer blocks, mean pooling."""

    family: Literal["vit"]
    patch: Annotated[int, Field(ge=1, le=64)] = 8
    depth: Annotated[int, Field(ge=1, le=64)] = 6
    heads: Annotated[int, Field(ge=1, le=64)] = 6
    width: Width = 768
    hidden: Width = 3072
    dropout: Rate = 0.0

    @model_validator(mode="after")
    def _heads_divide_width(self) -> VisionTransformer:
        if self.width % self.heads:
            raise ValueError(f"width {self.width} must be a multiple of heads {self.heads}")
        return self


class Transformers(Network):
    """Any architecture of the `transformers` library, built from its config; never remote code."""

    family: Literal["transformers"]
    task: Literal["image_classification", "sequence_classification", "causal_language_model"]
    config: dict[str, Any] = Field(
        description="The config.json of the architecture; `model_type` names it.",
        examples=[{"model_type": "vit", "hidden_size": 64, "num_hidden_layers": 2}],
    )

    @model_validator(mode="after")
    def _config_names_its_type(self) -> Transformers:
        if not isinstance(self.config.get("model_type"), str):
            raise ValueError('config needs "model_type", for example {"model_type": "vit"}')
        if "auto_map" in self.config:
            raise ValueError('config has "auto_map": remote code is never run; remove it')
        return self


_GIVEN = ("num_classes", "in_chans")  # by the data
_LOADING = ("checkpoint_path", "cache_dir", "features_only", "out_indices", "feature_cfg")


class Timm(Network):
    """Any image network of the `timm` library by name, drawn anew; nothing is downloaded.

    Only on workers with the extra ``timm``.
    """

    family: Literal["timm"]
    model: Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$", max_length=128)] = Field(
        description="Name of the architecture, without the tag of its pretrained weights",
        examples=["resnet18", "vit_tiny_patch16_224"],
    )
    config: dict[str, Any] = Field(
        default={},
        description="Arguments of the architecture; sizes that the data decide come from them.",
        examples=[{"embed_dim": 64, "depth": 2}],
    )

    @model_validator(mode="after")
    def _config_draws_anew(self) -> Timm:
        for key in self.config:
            if key in _GIVEN:
                raise ValueError(f'config has "{key}", which the data decide; remove it')
            if key in _LOADING or key.startswith("pretrained"):
                raise ValueError(
                    f'config has "{key}": nothing is loaded from elsewhere; remove it and name '
                    "uploaded weights in the spec's weights"
                )
        return self


AnyNetwork = Annotated[
    Perceptron
    | LeNet5
    | VGG16
    | AlexNet
    | ResNet20
    | Recurrent
    | OrthogonalCNN
    | VisionTransformer
    | Transformers
    | Timm,
    Field(discriminator="family"),
]
