"""ProjUNN: an optimizer that keeps its parameters orthogonal or unitary.

    optimizer = ProjUNN(manifold_parameters(model), lr=1e-2)
    others = torch.optim.Adam(euclidean_parameters(model), lr=1e-3)

Every parameter is ``(..., n, p)`` with orthonormal columns. A step compresses the gradient to low
rank (or takes the exact factors a layer hands over), scales it per matrix, moves along the
chosen map, and restores a few columns against drift; the defect is read on the way.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any, Literal, overload

import torch
from torch import Tensor

from stiefel.linalg.precision import in_whole_precision
from stiefel.unitary import handover
from stiefel.unitary.chunk import Chunk, LossScale
from stiefel.unitary.gradients import Approximation, scaled, squared_norm
from stiefel.unitary.options import check_group, check_parameter
from stiefel.unitary.rank_k_update import Variant

Scaling = Literal["none", "rmsprop", "adam"]
# Below this many entries a matrix is stacked with others of its shape and stepped in one call;
# above it a step costs more than a call, and stacking would copy.
_STACKED_ENTRIES = 128 * 128


class ProjUNN(torch.optim.Optimizer):
    """Stochastic gradient descent on orthogonal and unitary matrices and frames.

    Args:
        params: parameters or groups; each ``(..., n, p)`` with n >= p and orthonormal columns.
        lr: learning rate.
        variant: ``tangent`` (projUNN-T), ``direct`` (projUNN-D) or ``cayley``.
        rank: rank to which dense gradients are compressed. Factors handed over by a layer are
            exact and not compressed.
        approximation: ``range``, ``lsi`` or ``columns``; see ``gradients``.
        momentum: decay of the generator that accumulates gradients, kept in factored form.
        momentum_rank: columns kept of it; default four times the rank of the gradient.
        scaling: ``none`` (SGD); ``rmsprop``: divide by the root of a running mean of the squared
            entries, one number per matrix; ``adam``: that, momentum as a running mean, and
            both corrected for their start at zero.
        beta2: decay of the running mean of squares.
        eps: added to that root.
        weight_decay: must be 0: the norm of an orthogonal matrix is fixed.
        drift_columns: columns restored per step, in turn; 0 leaves rounding to accumulate.
        factored: let layers hand over exact factors. Choose False under a ``GradScaler`` and
            with ``torch.nn.utils.clip_grad_norm_``, which see dense gradients only
            (``clip_grad_norm_`` of this class sees both).
        nonfinite: ``raise``, or ``skip`` the matrices whose gradient is not finite, which stay as
            they are with their momentum and second moment, without waiting for the device;
            ``skipped_steps`` counts them.
        maximize: ascend.
        seed: of the sketches; same seed, same bits on one device.

    Raises:
        InvalidInputError: parameters off the manifold's shapes or dtypes, rank over p,
            weight decay, sparse or (with ``raise``) non-finite gradients.

    Parameters whose gradient is None are left alone. Cost: O(k n p) per matrix and step; memory
    O(k (n + p)) of state per matrix.
    """

    # GradScaler then leaves the unscaling to us, so that factors are unscaled too.
    _step_supports_amp_scaling = True

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-2,
        *,
        variant: Variant = "tangent",
        rank: int = 1,
        approximation: Approximation = "range",
        momentum: float = 0.0,
        momentum_rank: int | None = None,
        scaling: Scaling = "none",
        beta2: float = 0.99,
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        drift_columns: int = 1,
        factored: bool = True,
        nonfinite: Literal["raise", "skip"] = "raise",
        maximize: bool = False,
        seed: int = 0,
    ) -> None:
        defaults = dict(locals())
        for name in ("self", "params", "__class__"):
            defaults.pop(name, None)
        defaults["steps"] = 0
        super().__init__(params, defaults)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group after checking its options and every parameter's shape, dtype and rank."""
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        try:
            check_group(group)
            for parameter in group["params"]:
                check_parameter(parameter, group)
        except ValueError:
            self.param_groups.pop()
            raise
        for parameter in group["params"]:
            if group["factored"]:
                handover.open_inbox(parameter)
            else:
                handover.close_inbox(parameter)

    @overload
    def step(self, closure: None = None) -> None: ...
    @overload
    def step(self, closure: Callable[[], float]) -> float: ...
    @torch.no_grad()
    @in_whole_precision
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Take one step; returns the closure's loss if there is one."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        loss_scale = LossScale(getattr(self, "grad_scale", None), getattr(self, "found_inf", None))
        if loss_scale.overflowed():
            for parameter in self._parameters():
                handover.clear(parameter)
            return loss
        for group in self.param_groups:
            for chunk in _chunks(group, self.state, loss_scale):
                chunk.advance()
            group["steps"] += 1
        return loss

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Clear dense gradients and pending factors."""
        super().zero_grad(set_to_none)
        for parameter in self._parameters():
            handover.clear(parameter)

    @torch.no_grad()
    def clip_grad_norm_(self, max_norm: float) -> Tensor:
        """Scale dense gradients and pending factors to a joint norm of at most ``max_norm``.

        Returns:
            the joint norm before, as a tensor on the first parameter's device.
        """
        squares = [square for p in self._parameters() for square in _squares(p)]
        if not squares:
            return torch.zeros(())
        total = torch.stack([s.to(squares[0].device) for s in squares]).sum().sqrt()
        factor = (max_norm / (total + 1e-6)).clamp_max(1.0)
        for parameter in self._parameters():
            _shrink(parameter, factor)
        return total

    def defects(self) -> dict[Tensor, Tensor]:
        """Return each parameter's last estimated ``||W^H W - I||_F``, one number per matrix.

        Free of charge: read from the columns restored in the last step, as one block of p.
        """
        return {p: state["defect"] for p, state in self.state.items() if "defect" in state}

    def skipped_steps(self) -> int:
        """Return how many matrix steps ``nonfinite="skip"`` has left out."""
        counts = [int(s["skipped"].sum()) for s in self.state.values() if "skipped" in s]
        return sum(counts)

    def _parameters(self) -> Iterable[Tensor]:
        return (p for group in self.param_groups for p in group["params"])


def _chunks(group: dict[str, Any], states: Any, loss_scale: LossScale) -> Iterable[Chunk]:
    """Yield the matrices of a group to step together: small ones of one shape share a call."""
    stacks: dict[tuple[Any, ...], list[Tensor]] = defaultdict(list)
    for parameter in group["params"]:
        factors = handover.pending(parameter)
        if factors is None and parameter.grad is None:
            continue
        large = parameter.shape[-2] * parameter.shape[-1] > _STACKED_ENTRIES
        alone = factors is not None or large
        key = (id(parameter),) if alone else _kind(parameter, states[parameter])
        stacks[key].append(parameter)
    for parameters in stacks.values():
        yield Chunk(parameters, [states[p] for p in parameters], group, loss_scale)


def _kind(parameter: Tensor, state: dict[str, Any]) -> tuple[Any, ...]:
    """What must be equal for two parameters to share a call: shapes and place in the cycle."""
    momentum = state["F"].shape if "F" in state else None
    cursor, steps = state.get("cursor", 0), state.get("step", 0)
    return (parameter.shape, parameter.dtype, parameter.device, momentum, cursor, steps)


def _squares(parameter: Tensor) -> list[Tensor]:
    squares = []
    if parameter.grad is not None:
        squares.append(torch.linalg.vector_norm(parameter.grad).square())
    factors = handover.pending(parameter)
    if factors is not None:
        squares.append(squared_norm(factors).sum())
    return squares


def _shrink(parameter: Tensor, factor: Tensor) -> None:
    if parameter.grad is not None:
        parameter.grad.mul_(factor.to(parameter.device))
    factors = handover.pending(parameter)
    if factors is not None:
        handover.clear(parameter)
        handover.put(parameter, scaled(factors, factor.to(parameter.device)))
