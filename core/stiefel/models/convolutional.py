"""The papers' convolutional networks, sized for images of 28 x 28 and 32 x 32."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from stiefel.models.signature import Signature
from stiefel.specs.families import VGG16_STAGES
from stiefel.specs.fitting import check_images
from stiefel.specs.networks import VGG16, AlexNet, LeNet5, ResNet20


def lenet5(spec: LeNet5, signature: Signature) -> nn.Module:
    """20 and 50 channels of 5 x 5, each pooled by 2, then 500 hidden units (arXiv 2205.13571)."""
    channels = signature.shape[0]
    features = nn.Sequential(
        nn.Conv2d(channels, 20, 5), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(20, 50, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(),
    )  # fmt: skip
    return _classifier(features, [500], signature, least=16)


def vgg16(spec: VGG16, signature: Signature) -> nn.Module:
    """Five stages of 3 x 3 convolutions with batch normalisation, each pooled by 2."""
    layers: list[nn.Module] = []
    n_in = signature.shape[0]
    for multiple, convolutions in VGG16_STAGES:
        n_out = spec.width * multiple
        for _ in range(convolutions):
            layers += [nn.Conv2d(n_in, n_out, 3, padding=1), nn.BatchNorm2d(n_out), nn.ReLU()]
            n_in = n_out
        layers.append(nn.MaxPool2d(2))
    features = nn.Sequential(*layers, nn.Flatten())
    return _classifier(features, [spec.hidden, spec.hidden], signature, least=32)


def alexnet(spec: AlexNet, signature: Signature) -> nn.Module:
    """Five convolutions in the form that is usual for 32 x 32 images."""
    channels = signature.shape[0]
    features = nn.Sequential(
        nn.Conv2d(channels, 64, 3, stride=2, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(64, 192, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(192, 384, 3, padding=1), nn.ReLU(),
        nn.Conv2d(384, 256, 3, padding=1), nn.ReLU(),
        nn.Conv2d(256, 256, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(),
    )  # fmt: skip
    return _classifier(features, [spec.hidden] * 2, signature, least=16, dropout=spec.dropout)


class ResidualBlock(nn.Module):
    """Two 3 x 3 convolutions; a shortcut that subsamples and pads channels with zeros."""

    def __init__(self, n_in: int, n_out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(n_in, n_out, 3, stride=stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(n_out)
        self.conv2 = nn.Conv2d(n_out, n_out, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(n_out)
        self.stride, self.extra = stride, n_out - n_in

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, n_in, H, W) to (B, n_out, H / stride, W / stride)."""
        y = torch.relu(self.norm1(self.conv1(x)))
        y = self.norm2(self.conv2(y))
        shortcut = x[:, :, :: self.stride, :: self.stride]
        padding = (0, 0, 0, 0, self.extra // 2, self.extra - self.extra // 2)
        return torch.relu(y + nn.functional.pad(shortcut, padding))


def resnet20(spec: ResNet20, signature: Signature) -> nn.Module:
    """Widths w, 2w, 4w, three blocks each; global average pooling."""
    w = spec.width
    layers: list[nn.Module] = [
        nn.Conv2d(signature.shape[0], w, 3, padding=1, bias=False),
        nn.BatchNorm2d(w),
        nn.ReLU(),
    ]
    n_in = w
    for stage, n_out in enumerate((w, 2 * w, 4 * w)):
        for block in range(3):
            stride = 2 if stage and not block else 1
            layers.append(ResidualBlock(n_in, n_out, stride))
            n_in = n_out
    features = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())
    return _classifier(features, [], signature, least=8)


def _classifier(
    features: nn.Sequential,
    hidden: list[int],
    signature: Signature,
    *,
    least: int,
    dropout: float = 0.0,
) -> nn.Module:
    """``features`` followed by hidden layers and ``head``; sizes are measured, not computed."""
    check_images(signature, least=least)
    width = _output_width(features, signature.shape)
    head: list[nn.Module] = []
    for n_out in hidden:
        head += [nn.Linear(width, n_out), nn.ReLU()]
        head += [nn.Dropout(dropout)] if dropout else []
        width = n_out
    network = nn.Sequential()
    network.add_module("features", features)
    network.add_module("hidden", nn.Sequential(*head))
    network.add_module("head", nn.Linear(width, signature.outputs))
    return network


def _output_width(features: nn.Sequential, shape: tuple[int, ...]) -> int:
    training = features.training
    features.eval()  # one pass must not move the running statistics
    with torch.no_grad():
        width = cast(Tensor, features(torch.zeros(1, *shape))).shape[1]
    features.train(training)
    return int(width)
