"""Biases that take up the change of the mean output: b + (W - W') E[x].

A bias and its weight are two tensors of the file, each converted and written for itself, but one
decomposition serves both: whichever comes first makes it and leaves it for the other.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Mapping
from concurrent.futures import Future

import torch
from torch import Tensor

from stiefel.linalg.truncated_svd import widened
from stiefel.methods.ahead import SMALL
from stiefel.methods.conversion import Convert, Converted, NewTensor, Task, Workshop, task_for
from stiefel.methods.moments import Moments
from stiefel.specs.conversion import ConversionSpec
from stiefel.specs.treatment import Skip

Outcome = Converted | Skip


def corrected_biases(spec: ConversionSpec, shop: Workshop, moments: Moments) -> dict[str, str]:
    """Bias -> weight of every selected bias whose layer's mean input is known."""
    pairs = {}
    for name, item in shop.plan.selected.items():
        weight = spec.companion(item.tensor)
        if weight is not None and moments.knows_mean(weight):
            pairs[name] = weight
    return pairs


class BiasCorrection:
    """Converts weights by ``factorize`` and biases by what became of their weights.

    Args:
        spec: of the conversion.
        shop: open files, from which a bias's weight is read.
        moments: know the mean inputs.
        biases: bias -> weight.
        factorize: converts a weight.
    """

    def __init__(
        self,
        spec: ConversionSpec,
        shop: Workshop,
        moments: Moments,
        biases: Mapping[str, str],
        factorize: Convert,
    ) -> None:
        self._spec, self._shop, self._moments = spec, shop, moments
        self._biases, self._factorize = biases, factorize
        self._shared = frozenset(biases.values())
        self._known: OrderedDict[str, Future[Outcome]] = OrderedDict()
        self._lock = threading.Lock()

    def __call__(self, task: Task) -> Outcome:
        """Convert one tensor of the plan."""
        name = task.item.tensor.name
        if self._spec.companion(task.item.tensor) is not None:
            return self._corrected(task)
        return self._once(task) if name in self._shared else self._factorize(task)

    def _corrected(self, task: Task) -> Outcome:
        name = task.item.tensor.name
        if name not in self._biases:
            return Skip("mean_unknown", "the calibration has no first moment of this layer")
        weight = self._shop.plan.selected[self._biases[name]]
        source = task_for(self._spec, self._shop, weight)
        result = self._once(source)
        if isinstance(result, Skip):
            return Skip("weight_unchanged", f"its weight stays as it is: {result.reason}")
        x = source.x.reshape(weight.rows, weight.columns)
        moment = self._moments.of(weight.tensor.name, x)
        assert moment is not None
        moved = widened(x) - _matrix(result)
        change = (moved.mT if moment.stored_transposed else moved) @ moment.mean
        bias = (task.x.double() + change).to(task.x.dtype)
        new = NewTensor(name, task.item.tensor.dtype, bias, "corrected", {})
        norm = float(torch.linalg.vector_norm(change))
        return Converted((new,), {}, {"bias_change": norm})

    def _once(self, task: Task) -> Outcome:
        """Factorise a weight, or take what another thread has made or is making of it."""
        name = task.item.tensor.name
        with self._lock:
            future = self._known.pop(name, None)
            mine = future is None
            if future is None:
                future = self._known[name] = Future()
                self._trim(task.x.numel())
        if mine:
            try:
                future.set_result(self._factorize(task))
            except BaseException as error:
                future.set_exception(error)
        return future.result()

    def _trim(self, elements: int) -> None:
        # As many as are converted at once wait for their other half; see `ahead`.
        most = torch.get_num_threads() + 8 if elements <= SMALL else 1
        while len(self._known) > most:
            self._known.popitem(last=False)


def _matrix(result: Converted) -> Tensor:
    """The product that the stored tensors stand for, ``(n, m)`` in float64."""
    parts = [widened(new.data) for new in result.tensors]
    flat = [part.reshape(part.shape[0], -1) for part in parts]
    return flat[0] if len(flat) == 1 else flat[0] @ flat[1]
