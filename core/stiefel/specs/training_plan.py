"""What a training job will do, decided from its spec and the heads of its files, without torch.

Layers, parameters, steps and memory, as far as they can be known before the data are decoded and,
for `transformers` and `timm`, before those libraries have filled in their configs; the rest is
named.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

from stiefel.specs.data_facts import DataFacts, Source, look_at_data
from stiefel.specs.families import layer_table
from stiefel.specs.fitting import check_batch, check_images, check_task
from stiefel.specs.layers import Layer
from stiefel.specs.networks import Timm, Transformers, VisionTransformer
from stiefel.specs.selecting import PlannedLayer, flat, select_layers
from stiefel.specs.signature import Signature
from stiefel.specs.starting import check_weights
from stiefel.specs.training import TrainingSpec
from stiefel.specs.training_memory import estimate_memory

#: Stands in for data of unknown shape where only names are asked for; every family accepts it.
_STAND_INS = {"rnn": Signature("sequence", (8, 1), 2)}
_IMAGE = Signature("image", (3, 32, 32), 2)


@dataclass(frozen=True)
class TrainingPlan:
    """What will be trained, for how long, and in how much memory.

    Attributes:
        layers: those with a weight matrix; None where only the worker knows them.
        sized: whether their shapes and ranks are known as well as their names.
        parameters: of the dense network; None where only the worker knows.
        parameters_constrained: how many of them belong to weights under the constraint.
        parameters_at_start: numbers stored when training starts, where a method stores fewer.
        steps_per_epoch: None where only the worker knows.
        steps: at most so many in all.
        peak_memory_bytes: estimate for the worker's processes together; 0: not known.
        unknown: what only the worker decides, for people.
        doubts: what may surprise, for people.
    """

    layers: list[PlannedLayer] | None
    sized: bool
    parameters: int | None
    parameters_constrained: int | None
    parameters_at_start: int | None
    steps_per_epoch: int | None
    steps: int | None
    peak_memory_bytes: int
    unknown: tuple[str, ...]
    doubts: tuple[str, ...] = ()

    def to_dict(self, *, limit: int | None = None) -> dict[str, Any]:
        """JSON form; ``limit`` cuts the list of layers."""
        layers = self.layers or []
        constrained = sum(item.constraint is not None for item in layers)
        return {
            "layers": [_row(item, sized=self.sized) for item in layers[:limit]],
            "layers_constrained": None if self.layers is None else constrained,
            "layers_left": None if self.layers is None else len(layers) - constrained,
            "parameters": self.parameters,
            "parameters_constrained": self.parameters_constrained,
            "parameters_at_start": self.parameters_at_start,
            "steps_per_epoch": self.steps_per_epoch,
            "steps": self.steps,
            "decided_by_worker": list(self.unknown),
        }


def plan_training(spec: TrainingSpec, files: Mapping[str, Source]) -> TrainingPlan:
    """Return what ``spec`` will do with its staged ``files``: ``train``, ``test``, ``weights``.

    Raises:
        InvalidInputError: data, network, patterns or weights that the worker would refuse too.
    """
    data = {role: source for role, source in files.items() if role != "weights"}
    facts = look_at_data(spec.data, data)
    check_batch(spec, facts.examples)
    known = facts.signature is not None
    table = _table(spec, facts)
    layers = None if table is None else select_layers(spec, table, sized=known)
    if "weights" in files:
        check_weights(files["weights"], table if known else None, fresh=spec.fresh)
    steps = facts.batches_per_epoch(spec.batch_size)
    total = None if steps is None else spec.epochs * steps
    if spec.max_steps is not None:
        total = min(total or spec.max_steps, spec.max_steps)
    unknown = list(facts.unknown)
    if isinstance(spec.network, Transformers | Timm):
        unknown.append(f"layers, parameters and memory of a `{spec.network.family}` network")
    elif not known:
        unknown.append("shapes, parameters and the memory they take")
    if steps is None:
        unknown.append("steps per epoch")
    return TrainingPlan(
        layers=layers,
        sized=known,
        parameters=sum(layer.count for layer in table) if table is not None and known else None,
        parameters_constrained=_constrained(layers) if layers is not None and known else None,
        parameters_at_start=_at_start(table, layers) if table and layers and known else None,
        steps_per_epoch=steps,
        steps=total,
        peak_memory_bytes=estimate_memory(spec, facts, table if known else None, layers),
        unknown=tuple(unknown),
        doubts=() if total is None else tuple(spec.doubts(total)),
    )


def _table(spec: TrainingSpec, facts: DataFacts) -> list[Layer] | None:
    """The layers; where the data's shape is not known, right in their names alone."""
    signature = facts.signature
    if isinstance(spec.network, Transformers):
        if signature is not None:
            check_task(spec.network.task, signature)
        return None
    if isinstance(spec.network, Timm):
        if signature is not None:
            check_images(signature, least=1)
        return None
    if signature is not None:
        return layer_table(spec.network, signature)
    family = spec.network.family
    if family == "orthogonal_cnn":  # its names depend on where pooling ends
        return None
    if isinstance(spec.network, VisionTransformer):
        side = spec.network.patch * 2
        return layer_table(spec.network, Signature("image", (3, side, side), 2))
    return layer_table(spec.network, _STAND_INS.get(family, _IMAGE))


def _constrained(layers: Sequence[PlannedLayer]) -> int:
    return sum(_weight_count(item.layer) for item in layers if item.constraint)


def _weight_count(layer: Layer) -> int:
    frames = [shape for name, shape in layer.parameters.items() if name.startswith("frame")]
    if frames:
        return sum(prod(shape) for shape in frames)
    assert layer.matrix is not None
    return prod(layer.matrix)


def _at_start(table: Sequence[Layer], layers: Sequence[PlannedLayer]) -> int | None:
    """Numbers stored at the start: ``rank (n + m)`` for each factorised weight."""
    saved = 0
    for item in layers:
        if item.rank is not None and item.layer.matrix is not None:
            n, m = flat(item.layer.matrix)
            saved += n * m - item.rank * (n + m)
    return sum(layer.count for layer in table) - saved


def _row(item: PlannedLayer, *, sized: bool) -> dict[str, Any]:
    layer = item.layer
    row: dict[str, Any] = {"name": layer.name, "kind": layer.kind}
    if sized:
        row |= {"shape": list(layer.matrix or ()), "parameters": layer.count, "rank": item.rank}
    row |= {"constraint": item.constraint, "reason": item.reason}
    return {name: value for name, value in row.items() if value is not None}
