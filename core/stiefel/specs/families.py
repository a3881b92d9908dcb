"""What a network will consist of, by arithmetic: the layer tables of every family, without torch.

A table follows the network that :mod:`stiefel.models` builds, module by module and in its order; a
test holds every family's table against the built network.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import pairwise
from math import prod
from typing import Any, NamedTuple

from stiefel.specs.fitting import (
    check_channels,
    check_images,
    check_numbers,
    check_patches,
    check_sequences,
)
from stiefel.specs.layers import Layer, Shape
from stiefel.specs.networks import (
    VGG16,
    AlexNet,
    AnyNetwork,
    LeNet5,
    OrthogonalCNN,
    Perceptron,
    Recurrent,
    ResNet20,
    VisionTransformer,
)
from stiefel.specs.signature import Signature

VGG16_STAGES = ((1, 2), (2, 2), (4, 3), (8, 3), (8, 3))  # (width multiple, convolutions)
SMALLEST_POOLED = 4  # pixels; below, an orthogonal CNN pools no more


def layer_table(spec: AnyNetwork, signature: Signature) -> list[Layer] | None:
    """Return the network's layers in the order of its modules.

    Returns:
        None for families ``transformers`` and ``timm``: what their configs leave out, only those
        libraries know.

    Raises:
        InvalidInputError: the network does not fit the data (``network_does_not_fit``).
    """
    make = _TABLES.get(spec.family)
    return None if make is None else list(make(spec, signature))


class _Image(NamedTuple):
    """Channels, height and width on the way through a network."""

    channels: int
    height: int
    width: int

    @property
    def size(self) -> int:
        return self.channels * self.height * self.width

    def through(self, channels: int, kernel: int, *, stride: int = 1, padding: int = 0) -> _Image:
        height, width = (
            (side + 2 * padding - kernel) // stride + 1 for side in (self.height, self.width)
        )
        return _Image(channels, height, width)

    def pooled(self) -> _Image:
        return _Image(self.channels, self.height // 2, self.width // 2)


def _linear(name: str, n_in: int, n_out: int, *, kept: int, rows: int = 1) -> Layer:
    """``kept``: numbers per row, for ``rows`` rows of one example."""
    shapes: dict[str, Shape] = {"weight": (n_out, n_in), "bias": (n_out,)}
    return Layer(name, "Linear", shapes, kept=rows * kept)


def _conv(name: str, n_in: int, image: _Image, kernel: int, *, kept: int, bias: bool) -> Layer:
    """``kept``: numbers per number of the output ``image``."""
    shapes: dict[str, Shape] = {"weight": (image.channels, n_in, kernel, kernel)}
    if bias:
        shapes["bias"] = (image.channels,)
    return Layer(name, "Conv2d", shapes, kept=kept * image.size)


def _norm(name: str, kind: str, width: int, *, kept: int) -> Layer:
    batch = kind.startswith("BatchNorm")
    buffers: dict[str, Shape] = {}
    if batch:
        buffers = {"running_mean": (width,), "running_var": (width,), "num_batches_tracked": ()}
    return Layer(name, kind, {"weight": (width,), "bias": (width,)}, buffers=buffers, kept=kept)


def _perceptron(spec: Perceptron, signature: Signature) -> Iterator[Layer]:
    check_numbers(signature)
    kinds = {"batch": "BatchNorm1d", "layer": "LayerNorm"}
    widths = [prod(signature.shape), *spec.hidden]
    for index, (n_in, n_out) in enumerate(pairwise(widths)):
        kept = (1 + bool(spec.dropout) + (spec.activation == "gelu")) * n_out
        yield _linear(f"hidden.{index}.linear", n_in, n_out, kept=kept)
        if spec.normalisation != "none":
            yield _norm(f"hidden.{index}.norm", kinds[spec.normalisation], n_out, kept=n_out)
    yield _linear("head", widths[-1], signature.outputs, kept=2 * signature.outputs)


def _lenet5(spec: LeNet5, signature: Signature) -> Iterator[Layer]:
    check_images(signature, least=16)
    image = _Image(*signature.shape)
    for place, channels in ((0, 20), (3, 50)):
        n_in, image = image.channels, image.through(channels, 5)
        yield _conv(f"features.{place}", n_in, image, 5, kept=3, bias=True)
        image = image.pooled()
    yield from _classifier(image.size, [500], signature)


def _vgg16(spec: VGG16, signature: Signature) -> Iterator[Layer]:
    check_images(signature, least=32)
    image, place = _Image(*signature.shape), 0
    for multiple, convolutions in VGG16_STAGES:
        for _ in range(convolutions):
            n_in, image = image.channels, image.through(spec.width * multiple, 3, padding=1)
            yield _conv(f"features.{place}", n_in, image, 3, kept=2, bias=True)
            yield _norm(f"features.{place + 1}", "BatchNorm2d", image.channels, kept=image.size)
            place += 3
        image, place = image.pooled(), place + 1
    yield from _classifier(image.size, [spec.hidden, spec.hidden], signature)


def _alexnet(spec: AlexNet, signature: Signature) -> Iterator[Layer]:
    check_images(signature, least=16)
    image = _Image(*signature.shape)
    for place, channels, stride, pooled in (
        (0, 64, 2, True),
        (3, 192, 1, True),
        (6, 384, 1, False),
        (8, 256, 1, False),
        (10, 256, 1, True),
    ):
        n_in, image = image.channels, image.through(channels, 3, stride=stride, padding=1)
        yield _conv(f"features.{place}", n_in, image, 3, kept=3, bias=True)
        image = image.pooled() if pooled else image
    yield from _classifier(image.size, [spec.hidden] * 2, signature, dropout=bool(spec.dropout))


def _resnet20(spec: ResNet20, signature: Signature) -> Iterator[Layer]:
    check_images(signature, least=8)
    w = spec.width
    n_in, image = signature.shape[0], _Image(*signature.shape).through(w, 3, padding=1)
    yield _conv("features.0", n_in, image, 3, kept=2, bias=False)
    yield _norm("features.1", "BatchNorm2d", w, kept=image.size)
    for place in range(9):
        stage, block = divmod(place, 3)
        stride = 2 if stage and not block else 1
        n_in, image = image.channels, image.through(w * 2**stage, 3, stride=stride, padding=1)
        for number, into in ((1, n_in), (2, image.channels)):
            name = f"features.{place + 3}"
            yield _conv(f"{name}.conv{number}", into, image, 3, kept=2, bias=False)
            yield _norm(
                f"{name}.norm{number}",
                "BatchNorm2d",
                image.channels,
                kept=(number + 1) * image.size,
            )
    yield from _classifier(image.channels, [], signature)


def _classifier(
    width: int, hidden: list[int], signature: Signature, *, dropout: bool = False
) -> Iterator[Layer]:
    for index, n_out in enumerate(hidden):
        place = index * (3 if dropout else 2)
        yield _linear(f"hidden.{place}", width, n_out, kept=(3 if dropout else 2) * n_out)
        width = n_out
    yield _linear("head", width, signature.outputs, kept=2 * signature.outputs)


def _vision_transformer(spec: VisionTransformer, signature: Signature) -> Iterator[Layer]:
    check_patches(spec.patch, signature)
    channels, height, width = signature.shape
    rows, w = (height // spec.patch) * (width // spec.patch), spec.width
    yield Layer("", "MiniViT", {"positions": (rows, w)}, kept=rows * w)
    yield _linear("embedding", channels * spec.patch**2, w, kept=2 * w, rows=rows)
    scores = spec.heads * rows * rows
    for index in range(spec.depth):
        name = f"blocks.{index}"
        yield _norm(f"{name}.norm1", "LayerNorm", w, kept=rows * w)
        for part in ("query", "key", "value"):
            yield _linear(f"{name}.attention.{part}", w, w, kept=2 * w, rows=rows)
        yield _linear(f"{name}.attention.output", w, w, kept=3 * w + scores // rows, rows=rows)
        yield _norm(f"{name}.norm2", "LayerNorm", w, kept=rows * w)
        yield _linear(f"{name}.expand", w, spec.hidden, kept=2 * spec.hidden, rows=rows)
        yield _linear(f"{name}.contract", spec.hidden, w, kept=2 * w, rows=rows)
    yield _norm("norm", "LayerNorm", w, kept=rows * w)
    yield _linear("head", w, signature.outputs, kept=2 * signature.outputs)


def _recurrent(spec: Recurrent, signature: Signature) -> Iterator[Layer]:
    check_sequences(signature)
    steps, n_in = signature.shape
    parts = 2 if spec.numbers == "complex" else 1
    shapes: dict[str, Shape] = {
        "frame": (spec.hidden, spec.hidden),
        "input_weight": (spec.hidden, n_in),
        "bias": (spec.hidden,),
    }
    wide = frozenset({"frame", "input_weight"} if parts == 2 else ())
    per_step = (9 if spec.activation == "modrelu" else 5) * parts * spec.hidden
    yield Layer("recurrence", "OrthogonalRNN", shapes, wide, kept=steps * per_step)
    answers = steps if signature.per_step else 1
    yield _linear(
        "head", parts * spec.hidden, signature.outputs, kept=3 * signature.outputs, rows=answers
    )


def _orthogonal_cnn(spec: OrthogonalCNN, signature: Signature) -> Iterator[Layer]:
    check_channels(spec, signature)
    n_in, height, width = signature.shape
    place = 0
    for n_out in spec.channels:
        yield _fourier(f"features.{place}", n_out, height, width)
        place += 2
        if min(height, width) >= SMALLEST_POOLED:
            height, width, place = height // 2, width // 2, place + 1
        n_in = n_out
    yield _linear("head", n_in * height * width, signature.outputs, kept=2 * signature.outputs)


def _fourier(name: str, channels: int, height: int, width: int) -> Layer:
    # A frequency is its own mirror image where each coordinate is 0 or half of an even side.
    real = (2 - height % 2) * (2 - width % 2)
    free = (height * width - real) // 2
    shapes: dict[str, Shape] = {"frame_real": (real, channels, channels)}
    if free:
        shapes["frame_complex"] = (free, channels, channels)
    kept = 8 * channels * height * (width + 2)
    return Layer(name, "FourierConv2d", shapes, frozenset({"frame_complex"}), kept=kept)


_TABLES: dict[str, Callable[[Any, Signature], Iterator[Layer]]] = {
    "mlp": _perceptron,
    "lenet5": _lenet5,
    "vgg16": _vgg16,
    "alexnet": _alexnet,
    "resnet20": _resnet20,
    "vit": _vision_transformer,
    "rnn": _recurrent,
    "orthogonal_cnn": _orthogonal_cnn,
}
