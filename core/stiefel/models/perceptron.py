"""Fully connected networks."""

from __future__ import annotations

from itertools import pairwise
from math import prod

from torch import nn

from stiefel.models.signature import Signature
from stiefel.specs.fitting import check_numbers
from stiefel.specs.networks import Perceptron

ACTIVATIONS = {"relu": nn.ReLU, "tanh": nn.Tanh, "gelu": nn.GELU}
NORMALISATIONS = {"batch": nn.BatchNorm1d, "layer": nn.LayerNorm}


def perceptron(spec: Perceptron, signature: Signature) -> nn.Sequential:
    """Layers named ``hidden.0 ... head``; inputs of any shape are flattened.

    Raises:
        InvalidInputError: the data are tokens, or have an answer at every step.
    """
    check_numbers(signature)
    widths = [prod(signature.shape), *spec.hidden]
    layers = [_layer(spec, n_in, n_out) for n_in, n_out in pairwise(widths)]
    network = nn.Sequential()
    network.add_module("flatten", nn.Flatten())
    network.add_module("hidden", nn.Sequential(*layers))
    network.add_module("head", nn.Linear(widths[-1], signature.outputs))
    return network


def _layer(spec: Perceptron, n_in: int, n_out: int) -> nn.Sequential:
    layer = nn.Sequential()
    layer.add_module("linear", nn.Linear(n_in, n_out))
    if spec.normalisation != "none":
        layer.add_module("norm", NORMALISATIONS[spec.normalisation](n_out))
    layer.add_module("activation", ACTIVATIONS[spec.activation]())
    if spec.dropout:
        layer.add_module("dropout", nn.Dropout(spec.dropout))
    return layer
