"""The networks a training job can name: from a spec and the data's signature to a module."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from stiefel.models.convolutional import alexnet, lenet5, resnet20, vgg16
from stiefel.models.fourier import orthogonal_cnn
from stiefel.models.hugging_face import transformers_network
from stiefel.models.image_models import timm_network
from stiefel.models.perceptron import perceptron
from stiefel.models.recurrent import recurrent_network
from stiefel.models.signature import Signature
from stiefel.models.vision_transformer import vision_transformer
from stiefel.specs.networks import AnyNetwork

__all__ = ["FAMILIES", "Signature", "build_network"]

FAMILIES: dict[str, Callable[[Any, Signature], nn.Module]] = {
    "mlp": perceptron,
    "lenet5": lenet5,
    "vgg16": vgg16,
    "alexnet": alexnet,
    "resnet20": resnet20,
    "rnn": recurrent_network,
    "orthogonal_cnn": orthogonal_cnn,
    "vit": vision_transformer,
    "transformers": transformers_network,
    "timm": timm_network,
}


def build_network(spec: AnyNetwork, signature: Signature, *, seed: int) -> nn.Module:
    """Return the network, drawn by ``seed`` alone; the default generator is left as it was.

    Raises:
        InvalidInputError: the network does not fit the data; names the field of the spec.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)  # the layers of torch draw from the default generator only
        return FAMILIES[spec.family](spec, signature)
