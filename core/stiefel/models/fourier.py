"""A convolutional network whose convolutions are isometries of their images."""

from __future__ import annotations

from torch import nn

from stiefel.models.signature import Signature
from stiefel.specs.families import SMALLEST_POOLED
from stiefel.specs.fitting import check_channels
from stiefel.specs.networks import OrthogonalCNN
from stiefel.unitary import FourierConv2d


def orthogonal_cnn(spec: OrthogonalCNN, signature: Signature) -> nn.Sequential:
    """Full-width convolutions, each followed by ReLU and a 2 x 2 mean, then ``head``.

    Every convolution starts as the identity on its channels. No layer normalises: an isometry
    keeps the scale by itself.

    Raises:
        InvalidInputError: the data is not images, or channels become fewer on the way.
    """
    check_channels(spec, signature)
    n_in, height, width = signature.shape
    layers: list[nn.Module] = []
    for n_out in spec.channels:
        layers += [FourierConv2d(n_in, n_out, (height, width)), nn.ReLU()]
        if min(height, width) >= SMALLEST_POOLED:
            layers.append(nn.AvgPool2d(2))
            height, width = height // 2, width // 2
        n_in = n_out
    network = nn.Sequential()
    network.add_module("features", nn.Sequential(*layers, nn.Flatten()))
    network.add_module("head", nn.Linear(n_in * height * width, signature.outputs))
    return network
