"""The network-level fit's sample for the conformance suite."""

from __future__ import annotations

from converting import Job, Sample
from safetensors.torch import save_file
from sample_training import DATA, NETWORK, arrays
from torch import nn

from stiefel.models import build_network
from stiefel.specs import parse_spec
from stiefel.specs.signature import Signature


def network(hidden: dict[str, object] = NETWORK) -> nn.Module:
    """The network of the samples, drawn with a seed of its own; 20 inputs, 2 classes."""
    spec = parse_spec({"method": "train.dense", "network": hidden, "data": DATA})
    return build_network(spec.network, Signature("vector", (20,), 2), seed=3)


def staged(job: Job) -> Job:
    save_file(network().state_dict(), arrays(job).input / "weights")
    return job


SAMPLES = {
    "project.network": Sample(
        {
            "network": NETWORK,
            "data": DATA,
            "weights": "art_2",
            "iterations": 6,
            "batch_size": 16,
            "checkpoint_every": 1,
            "learning_rate": 1e-2,
        },
        staged,
    )
}
