"""Matrices of one shape that ``ProjUNN`` steps in one call, and that step."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from stiefel.errors import InvalidInputError
from stiefel.unitary import handover
from stiefel.unitary.drift import estimated_defect, next_columns, restore_columns_
from stiefel.unitary.gradients import Gradient, compress, scaled, squared_norm
from stiefel.unitary.momentum import Generator, accumulate, gradient_generator, where_taken
from stiefel.unitary.options import refuse_sparse
from stiefel.unitary.rank_k_update import Products, add_product_, generator_factors
from stiefel.unitary.stepping import step_


class LossScale:
    """What a GradScaler left on the optimizer for this step; nothing without a scaler."""

    def __init__(self, scale: Tensor | None, found: Any) -> None:
        self.scale = scale
        self.found = found

    def overflowed(self) -> bool:
        """Whether the scaler found a non-finite dense gradient: the step is then left out."""
        return self.found is not None and bool(self.found)

    def inverse_for_factors(self, device: torch.device) -> Tensor | None:
        """Return what factors must be multiplied by.

        Raises:
            InvalidInputError: the scaler was told to unscale dense gradients beforehand, so that
                the scale of pending factors is no longer known.
        """
        if self.found is not None and self.scale is None:
            raise InvalidInputError(
                "GradScaler.unscale_ cannot reach gradients handed over as factors",
                fix="build ProjUNN with factored=False to use unscale_",
            )
        return None if self.scale is None else (1.0 / self.scale).to(device)


class Chunk:
    """One or more parameters ``(..., n, p)`` of one shape, seen as ``(m, n, p)``."""

    def __init__(
        self,
        parameters: list[Tensor],
        states: list[dict[str, Any]],
        group: dict[str, Any],
        loss_scale: LossScale,
    ) -> None:
        self.parameters, self.states, self.group = parameters, states, group
        self.loss_scale = loss_scale
        # Which matrices take this step, (m,), without asking the device; None: all of them.
        self.taken: Tensor | None = None
        self.shape = parameters[0].shape
        self.counts = [p.shape[:-2].numel() for p in parameters]

    def advance(self) -> None:
        """Take one step of every matrix."""
        W = self._stacked(list(self.parameters))
        gradient, norm = self._finite(*self._gradient())
        gain = self._gain(norm)
        p = W.shape[-1]
        width = self.group["drift_columns"]
        columns = next_columns(self.states[0].get("cursor", 0), width=width, p=p)
        before = None if self.taken is None else W[..., columns.start : columns.stop].clone()
        if self.group["momentum"] > 0:
            residual = self._accelerated(W, gradient, gain, columns)
        else:
            step = scaled(gradient, gain * self._rate())
            residual = step_(
                W,
                step.a,
                step.b,
                variant=self.group["variant"],
                products=step.products,
                columns=columns,
            )
        if before is not None:  # a zero step moves nothing, but drift control did
            corrected = W[..., columns.start : columns.stop]
            corrected.copy_(self._if_taken(corrected, before))
        self._write(W, residual, columns)

    def _rate(self) -> float:
        return float(self.group["lr"]) * (1 if self.group["maximize"] else -1)

    def _stacked(self, tensors: list[Tensor]) -> Tensor:
        """Return ``(m, n, p)``: a view of one tensor, or a stack."""
        flat = [t.reshape(-1, *t.shape[-2:]) if t.ndim != 3 else t for t in tensors]
        return flat[0] if len(flat) == 1 else torch.cat(flat)

    def _gradient(self) -> tuple[Gradient, Tensor]:
        """Return factors ``(m, ., k)`` of the gradient and the norm of what they came from."""
        factors = handover.pending(self.parameters[0])
        if factors is not None and self.parameters[0].grad is None:
            return self._handed_over(self.parameters[0], factors)
        for parameter in self.parameters:
            refuse_sparse(parameter)
        G = self._stacked([p.grad for p in self.parameters if p.grad is not None])
        if factors is not None:  # of earlier passes, before the ranks grew too large together
            handover.clear(self.parameters[0])
            self.loss_scale.inverse_for_factors(G.device)  # refuses where the two scales differ
            G = G + (factors.a @ factors.b.mH).reshape(G.shape)
        if self.loss_scale.scale is not None:
            G = G / self.loss_scale.scale.to(G.device)
        wide = torch.complex128 if G.is_complex() else torch.float64
        norm = torch.linalg.vector_norm(G, dim=(-2, -1), dtype=wide)
        # A sketch of infinities would fail inside a factorisation: sketch zeros instead.
        G = G if self.group["nonfinite"] == "raise" else _where(norm.isfinite(), G)
        self._refuse_nonfinite(norm)
        gradient = compress(
            G,
            self.group["rank"],
            approximation=self.group["approximation"],
            generator=self._generator(G.device),
        )
        return gradient, norm

    def _handed_over(self, parameter: Tensor, factors: Gradient) -> tuple[Gradient, Tensor]:
        handover.clear(parameter)
        inverse = self.loss_scale.inverse_for_factors(parameter.device)
        if inverse is not None:
            factors = scaled(factors, inverse)
        flat = [x.reshape(-1, *x.shape[-2:]) for x in (factors.a, factors.b)]
        known = factors.products
        if known is not None:
            known = Products(*(x.reshape(-1, *x.shape[-2:]) for x in known))
        gradient = Gradient(flat[0], flat[1], known)
        if self.group["scaling"] == "none":
            # Nobody asks for its size: a bound says as well whether it is finite.
            a, b = (torch.linalg.matrix_norm(x).double() for x in (gradient.a, gradient.b))
            return gradient, a * b
        return gradient, squared_norm(gradient).clamp_min(0).sqrt()

    def _refuse_nonfinite(self, norm: Tensor) -> None:
        if self.group["nonfinite"] == "raise" and not bool(norm.isfinite().all()):
            raise InvalidInputError(
                f"a non-finite gradient for a parameter {tuple(self.shape)}",
                code="non_finite_gradient",
                fix='lower the learning rate, clip, or pass nonfinite="skip" to leave such steps '
                "out",
            )

    def _finite(self, gradient: Gradient, norm: Tensor) -> tuple[Gradient, Tensor]:
        if self.group["nonfinite"] == "raise":
            self._refuse_nonfinite(norm)
            return gradient, norm
        finite = self.taken = norm.isfinite()
        skipped = torch.cat(self._skipped(finite)) + ~finite
        for state, part in zip(self.states, torch.split(skipped, self.counts), strict=True):
            state["skipped"] = part
        masked = Gradient(_where(finite, gradient.a), _where(finite, gradient.b))
        return masked, torch.where(finite, norm, 0.0)

    def _skipped(self, like: Tensor) -> list[Tensor]:
        """Return how many steps each matrix was left out of, by parameter."""
        zeros = like.new_zeros((), dtype=torch.int64)
        counts = [s.get("skipped", zeros) for s in self.states]
        # States saved by early versions hold one sum for all matrices: in equal shares it is never
        # more than the steps.
        return [
            s if s.ndim else (s + torch.arange(c, device=s.device)) // c
            for s, c in zip(counts, self.counts, strict=True)
        ]

    def _if_taken(self, new: Tensor, old: Tensor | float) -> Tensor:
        """Return ``new`` ``(m, ...)`` for the matrices that take this step, ``old`` for others."""
        if self.taken is None:
            return new
        return torch.where(self.taken.reshape(-1, *[1] * (new.ndim - 1)), new, old)

    def _since_zero(self, decay: float, like: Tensor) -> float | Tensor:
        """Return what a running mean lacks for having started at zero, ``1 - decay^steps``."""
        steps = self.states[0]["step"]
        whole: float = 1 - decay**steps
        if not any("skipped" in state for state in self.states):
            return whole
        skipped = torch.cat(self._skipped(like)).to(like.dtype)
        return torch.where(skipped > 0, 1 - decay ** (steps - skipped), whole)

    def _generator(self, device: torch.device) -> torch.Generator:
        # Seeded by the step and not carried along: a resumed run draws the same sketches.
        seed = self.group["seed"] * 1_000_003 + self.group["steps"]
        return torch.Generator(device).manual_seed(seed)

    def _gain(self, norm: Tensor) -> Tensor:
        """Return one factor per matrix: 1, or the inverse root of the running mean square."""
        for state in self.states:
            state["step"] = state.get("step", 0) + 1
        if self.group["scaling"] == "none":
            return torch.ones_like(norm)
        beta, entries = self.group["beta2"], self.shape[-2] * self.shape[-1]
        zeros = [norm.new_zeros(c) for c in self.counts]
        olds = [s.get("second_moment", z) for s, z in zip(self.states, zeros, strict=True)]
        old = torch.cat(olds).to(norm.dtype)
        mean = self._if_taken(old * beta + norm.square() * ((1 - beta) / entries), old)
        real = self.parameters[0].real.dtype
        for state, part in zip(self.states, torch.split(mean.to(real), self.counts), strict=True):
            state["second_moment"] = part
        mean = mean.to(real).to(norm.dtype)
        if self.group["scaling"] == "adam":
            mean = mean / self._since_zero(beta, norm)
        return self._if_taken(1 / (mean.sqrt() + self.group["eps"]), 0.0)

    def _accelerated(
        self, W: Tensor, gradient: Gradient, gain: Tensor, columns: range
    ) -> Tensor | None:
        """Accumulate the gradient's generator and move along the sum."""
        decay, adam = self.group["momentum"], self.group["scaling"] == "adam"
        k = gradient.a.shape[-1]
        rank, n = self.group["momentum_rank"] or 4 * k, W.shape[-2]
        old = self._momentum()
        new = accumulate(
            old,
            gradient_generator(W, gradient),
            decay=decay,
            gain=torch.full_like(gain, 1 - decay) if adam else gain,
            rank=n if rank >= n else max(2, rank // 2 * 2),
        )
        if self.taken is not None and old is not None:
            new = where_taken(self.taken, new, old)
        F, K = new
        for index, state in enumerate(self.states):
            count = self.counts[0]
            part = slice(index * count, (index + 1) * count)
            state["F"], state["K"] = F[part], K[part]
        rate = torch.full_like(gain, self._rate())
        if adam:
            rate = rate * gain / self._since_zero(decay, gain)
        rate = self._if_taken(rate, 0.0)
        step = K * rate.to(K.dtype)[:, None, None]
        add_product_(W, *generator_factors(W, F, step, variant=self.group["variant"]))
        return restore_columns_(W, columns) if columns else None

    def _momentum(self) -> Generator | None:
        if "F" not in self.states[0]:
            return None
        parts = [torch.cat([s[name] for s in self.states]) for name in ("F", "K")]
        return Generator(*parts)

    def _write(self, W: Tensor, residual: Tensor | None, columns: range) -> None:
        """Put a stack back into its parameters; keep the defect and the place in the cycle."""
        if W.data_ptr() != self.parameters[0].data_ptr():
            for parameter, part in zip(self.parameters, torch.split(W, self.counts), strict=True):
                parameter.copy_(part.view(self.shape))
        if residual is None:
            return
        defect = torch.split(estimated_defect(residual), self.counts)
        for state, part in zip(self.states, defect, strict=True):
            state["cursor"] = columns.stop % W.shape[-1]
            state["defect"] = part.reshape(self.shape[:-2])


def _where(keep: Tensor, x: Tensor) -> Tensor:
    return torch.where(keep[..., None, None], x, torch.zeros_like(x))
