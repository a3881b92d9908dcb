"""The factored product on one tape: one backward pass with every gradient a step needs."""

from __future__ import annotations

import weakref
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from stiefel.destination import destination
from stiefel.kept import Kept, overwritten_input, own


class Pass:
    """A backward pass under way: over once autograd calls this, and gone if the pass failed."""

    over = False

    def __call__(self) -> None:
        """Take note that the pass is complete."""
        self.over = True


@dataclass
class Tape:
    """What one or more backward passes leave behind for the bases.

    ``grad_k`` and ``grad_l`` add up over micro-batches. ``pairs`` keeps (input, output gradient) if
    the exact corner Ut^T G Vt is wanted; both are activations that the pass held anyway. A step
    reads the gradients before it changes anything, and is refused if an input was overwritten.

    With ``core``, the Parameter S, the tape holds what S.grad holds: when a pass begins and finds
    S.grad gone, because ``optimizer.zero_grad()`` gave the earlier passes up, they are forgotten.
    """

    keep_pairs: bool = True
    core: nn.Parameter | None = None
    grad_l: Tensor | None = None
    pairs: list[tuple[Tensor, Tensor]] = field(default_factory=list)
    inputs: list[Kept] = field(default_factory=list)  # of the pairs
    sum_k: Tensor | None = None  # grad_k, unchecked
    present: weakref.ref[Pass] | None = None
    rounded: bool = False  # whether a pass ran in half precision

    @property
    def grad_k(self) -> Tensor | None:
        """The gradient of K; raises ``InvalidInputError`` if a pair is no more what it was."""
        given_up = self.core is not None and self.core.grad is None
        if not given_up and any(x.overwritten for x in self.inputs):
            rank = "" if self.core is None else f" with a core {tuple(self.core.shape)}"
            raise overwritten_input(f"a low-rank layer{rank}")
        return self.sum_k

    @grad_k.setter
    def grad_k(self, value: Tensor | None) -> None:
        self.sum_k = value

    def add(self, grad_k: Tensor, grad_l: Tensor, x: Tensor, delta: Tensor) -> None:
        """Record one use of the layer in a backward pass."""
        if self._enter_pass() and self.core is not None and self.core.grad is None:
            self.grad_k, self.grad_l = None, None
            self.pairs.clear()
            self.inputs.clear()
        if self.core is not None and grad_k.dtype != self.core.dtype:
            self.rounded = True  # and sums in bfloat16 would lose what many micro-batches add
            grad_k, grad_l = grad_k.to(self.core.dtype), grad_l.to(self.core.dtype)
        self.grad_k = grad_k if self.sum_k is None else self.sum_k + grad_k
        self.grad_l = grad_l if self.grad_l is None else self.grad_l + grad_l
        if self.keep_pairs:
            kept = Kept(own(x).detach())  # without its graph it can be copied
            self.inputs.append(kept)
            self.pairs.append((kept.tensor, delta))

    def _enter_pass(self) -> bool:
        """Note the pass under way; return whether this is the layer's first use in it.

        Passes within a pass, those of reentrant checkpointing, belong to it; S.grad itself arrives
        after the last use of the layer in any of them.
        """
        present = self.present and self.present()
        if present and not present.over:
            return False
        begun = Pass()
        self.present = weakref.ref(begun)  # autograd holds the pass itself
        torch.autograd.Variable._execution_engine.queue_callback(begun)
        return True

    def __getstate__(self) -> dict[str, Any]:
        return vars(self) | {"present": None}


def reaches_core(ctx: Any) -> bool:
    """Whether the present backward pass adds to the gradient of S, the third input of ``ctx``.

    ``torch.autograd.grad(y, x)`` passes through the layer and adds nothing to S.grad.
    """
    return destination(ctx, 2) != "nowhere"


def coordinates(x: Tensor, basis: Tensor) -> Tensor:
    """X B for rows X ``(B, m)`` and a thin basis ``(m, r)``.

    On CPUs, MKL takes two to four times as long for a product of 2 to 11 columns as for its
    transpose, if that reads both by rows (r = 10, m = 500, 256 rows: 0.19 ms and 0.08).
    """
    if 1 < basis.shape[-1] < 12 and x.device.type == "cpu":
        return (basis.t().contiguous() @ x.t()).t()
    return x @ basis


def _through(rows: Tensor, core: Tensor) -> Tensor:
    """R C^T for rows R ``(B, r)``, in their layout; the backward pass then keeps to it too.

    A step on the cores of four layers of 500, r = 10: on one thread 6.2 ms instead of 8.6.
    """
    return (core @ rows.t()).t() if rows.stride(0) == 1 else rows @ core.t()


def factored_product(x: Tensor, U: Tensor, S: Tensor, V: Tensor, bias: Tensor | None) -> Tensor:
    """Y = X V S^T U^T + b for rows X ``(B, m)``.

    Plain operations: with bases that need no gradient torch keeps X V alone for the backward
    pass, and runs that pass without entering Python.
    """
    return _expanded(_through(coordinates(x, V), S), U, bias)


def _expanded(rows: Tensor, U: Tensor, bias: Tensor | None) -> Tensor:
    # One call, and where memory is slow faster than a product and an addition: the product adds
    # to rows that the copied bias has just brought into the cache.
    return rows @ U.t() if bias is None else torch.addmm(bias, rows, U.t())


class LinearProduct(torch.autograd.Function):
    """The same product, with the direct K and L gradients written to a tape.

    dK = delta^T a and dL = X^T c need no inverse of S, so that tiny singular values do no harm.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, U: Tensor, S: Tensor, V: Tensor, bias: Tensor | None, tape: Tape
    ) -> Tensor:
        """Evaluate; saves what the backward pass needs."""
        a = coordinates(x, V)
        ctx.tape = tape
        ctx.save_for_backward(x, a, U, S, V)
        return _expanded(_through(a, S), U, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, delta: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients by input, core and bias; the bases' go to the tape."""
        x, a, U, S, V = ctx.saved_tensors
        wants_x, _, wants_s, _, wants_b, _ = ctx.needs_input_grad
        c = coordinates(delta, U)
        # Written as r x n products, several times faster than n x r while r is small.
        if reaches_core(ctx):
            ctx.tape.add((a.t() @ delta).t(), (c.t() @ x).t(), x, delta)
        return (
            _through(c, S.t()) @ V.t() if wants_x else None,
            None,
            c.t() @ a if wants_s else None,
            None,
            delta.sum(0) if wants_b else None,
            None,
        )


class MergedProduct(torch.autograd.Function):
    """The same function through the dense weight, for ranks where factors would cost more.

    Keeps the merged weight for the backward pass instead of a second product.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, U: Tensor, S: Tensor, V: Tensor, bias: Tensor | None
    ) -> Tensor:
        """Evaluate; saves what the backward pass needs."""
        weight = (U @ S) @ V.t()
        ctx.save_for_backward(x, U, V, weight)
        return torch.nn.functional.linear(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, delta: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients by input, core and bias."""
        x, U, V, weight = ctx.saved_tensors
        wants_x, _, wants_s, _, wants_b = ctx.needs_input_grad
        return (
            delta @ weight if wants_x else None,
            None,
            (delta @ U).t() @ (x @ V) if wants_s else None,
            None,
            delta.sum(0) if wants_b else None,
        )


def linear_corner(tape: Tape, new_left: Tensor, new_right: Tensor) -> Tensor:
    """Return Ut^T G Vt = sum over passes of (delta Ut)^T (X Vt), without forming G."""
    total = new_left.new_zeros(new_left.shape[-1], new_right.shape[-1])
    for x, delta in tape.pairs:
        left = coordinates(delta.to(new_left.dtype), new_left)
        total += left.t() @ coordinates(x.to(new_right.dtype), new_right)
    return total
