"""How much memory a training job will take at its peak: an estimate to admit jobs by.

Counted are the numbers that must exist at once; what libraries take beside them is measured and
added. ``benchmarks/training_memory.py`` holds it against the measured peak. It is
meant to err upwards: a job that is refused can be made smaller, one that dies has cost hours.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import NamedTuple

from stiefel.specs.data_facts import DataFacts
from stiefel.specs.layers import Layer
from stiefel.specs.selecting import PlannedLayer
from stiefel.specs.signature import Signature
from stiefel.specs.train_low_rank import LowRankTrainingSpec, TrainDlrtSpec, TrainOialrSpec
from stiefel.specs.train_projunn import TrainProjunnSpec
from stiefel.specs.training import TrainingSpec

MIB = 2**20
BASE = 450 * MIB  # interpreter, torch, the method's modules
KERNELS = 150 * MIB  # the compiler of the unitary update, and what it makes
LIBRARIES = {"transformers": 350 * MIB, "timm": 350 * MIB}  # with what they import
DECOMPOSITION = 16  # working memory of a singular value decomposition, per byte of the weight
CERTIFIED = 6  # working memory of an orthogonality defect, per byte of the weight
STATES = {
    "sgd": 1,
    "adam": 2,
    "adamw": 2,
    "rmsprop": 1,
    "galore": 2,
}  # numbers per parameter, at most


class Activations(NamedTuple):
    """Numbers that one example leaves behind for the backward pass, and the most in one piece."""

    kept: int
    widest: int


def estimate_memory(
    spec: TrainingSpec,
    facts: DataFacts,
    table: Sequence[Layer] | None,
    layers: Sequence[PlannedLayer] | None,
    activations: Activations | None = None,
) -> int:
    """Return bytes at the peak of all the job's processes; 0 where nothing is known.

    Args:
        spec: what is trained, and how.
        facts: of the data.
        table: every layer of the network.
        layers: which of them are constrained.
        activations: where they were measured; by default as the table says.
    """
    if table is None or layers is None or facts.signature is None:
        return 0
    weights = sum(layer.nbytes for layer in table)
    optimizer = _optimizer(spec, weights)
    bound = _constraint(spec, layers)
    # At the end the best checkpoint comes beside the last, and the largest tensor is certified in
    # double precision.
    largest = max(layer.nbytes for layer in table)
    end = 2 * (weights + optimizer + bound) + CERTIFIED * largest
    if isinstance(spec, LowRankTrainingSpec):  # exports, in factors and merged
        end += weights + bound
    step = step_bytes(spec, facts.signature, table, activations) + bound
    reading = facts.bytes_in_memory * 7 // 5
    return spec.devices * _base(spec) + max(spec.devices * max(step, end), reading)


def step_bytes(
    spec: TrainingSpec,
    signature: Signature,
    table: Sequence[Layer],
    activations: Activations | None = None,
) -> int:
    """Return the bytes one process touches in a step: weights, gradients, states, activations.

    What a constraint takes beside them is not among them.
    """
    weights = sum(layer.nbytes for layer in table)
    if activations is None:
        own = sum(layer.kept for layer in table)
        activations = Activations(own, max(layer.kept for layer in table))
    # A step of many tensors at once makes one more copy of them.
    return 3 * weights + _optimizer(spec, weights) + _batch(spec, signature, activations)


def _optimizer(spec: TrainingSpec, weights: int) -> int:
    """Bytes of the optimizer's state."""
    if spec.optimizer.name == "sgd" and not spec.optimizer.momentum:
        return 0
    return STATES[spec.optimizer.name] * weights


def _base(spec: TrainingSpec) -> int:
    """Bytes of a process that has not begun."""
    kernels = KERNELS if isinstance(spec, TrainProjunnSpec) else 0
    return BASE + kernels + LIBRARIES.get(spec.network.family, 0)


def _constraint(spec: TrainingSpec, layers: Sequence[PlannedLayer]) -> int:
    """Bytes that a constraint takes beside the weights."""
    constrained = [item.layer.nbytes for item in layers if item.constraint]
    # The end of a dense start is one whole decomposition at a time, in double precision.
    if isinstance(spec, TrainOialrSpec) or _warms_up(spec):
        return 2 * sum(constrained) + DECOMPOSITION * max(constrained)
    if isinstance(spec, LowRankTrainingSpec):  # bases, doubled while they are extended
        return 2 * sum(constrained)
    return sum(constrained)


def _warms_up(spec: TrainingSpec) -> bool:
    return isinstance(spec, TrainDlrtSpec) and spec.warm_up is not None


def _batch(spec: TrainingSpec, signature: Signature, activations: Activations) -> int:
    """Bytes that one slice of a batch leaves behind for the backward pass, gradients included."""
    share = -(-spec.batch_size // spec.devices)
    examples = -(-share // spec.accumulate)
    kept, widest = activations.kept + prod(signature.shape), activations.widest
    if isinstance(spec, LowRankTrainingSpec):  # factors keep what passes between them
        kept = kept * 5 // 4
    numbers = examples * (kept + widest)
    batch = 4 * spec.batch_size * prod(signature.shape)
    return 4 * (numbers + batch)
