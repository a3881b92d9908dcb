"""Recurrent network with an orthogonal or unitary recurrence.

``h_t = f(W_in x_t + U h_{t-1})``. ReLU and tanh run in torch's own recurrent kernels, which is
several times faster than a loop in Python; modReLU, and complex numbers, run in a loop with a
gradient of its own (:mod:`stiefel.unitary.recurrence`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from stiefel.errors import InvalidInputError
from stiefel.unitary.initialisation import cayley_, haar_, henaff_
from stiefel.unitary.options import check_dtype
from stiefel.unitary.recurrence import modrelu_recurrence

Nonlinearity = Literal["relu", "tanh", "modrelu"]
_NONLINEARITIES = ("relu", "tanh", "modrelu")
Initialisation = Literal["henaff", "cayley", "haar", "identity"]


class OrthogonalRNN(nn.Module):
    """Recurrent layer whose recurrence ``frame`` (hidden, hidden) belongs to ``ProjUNN``.

    Args:
        input_size, hidden_size: sizes.
        nonlinearity: ``relu``, ``tanh`` or ``modrelu``.
        initialisation: of ``frame``: ``henaff``, ``cayley``, ``haar`` or ``identity``.
        bias: a Euclidean bias for relu and tanh; modReLU always has its own.
        batch_first: whether inputs are (batch, time, input), or (time, batch, input).
        dtype: real, or complex for a unitary recurrence (modReLU only).
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        *,
        nonlinearity: Nonlinearity = "relu",
        initialisation: Initialisation = "henaff",
        bias: bool = False,
        batch_first: bool = True,
        dtype: torch.dtype = torch.float32,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        check_dtype(dtype, "OrthogonalRNN")
        if nonlinearity not in _NONLINEARITIES or initialisation not in _FILLS:
            raise InvalidInputError(
                f"nonlinearity={nonlinearity!r}, initialisation={initialisation!r}",
                fix=f"one of {', '.join(_NONLINEARITIES)}; one of {', '.join(_FILLS)}",
            )
        if dtype.is_complex and nonlinearity != "modrelu":
            raise InvalidInputError(f"{nonlinearity} of complex numbers", fix="use modrelu")
        self.input_size, self.hidden_size = input_size, hidden_size
        self.nonlinearity, self.batch_first = nonlinearity, batch_first
        frame = torch.empty(hidden_size, hidden_size, dtype=dtype)
        self.frame = nn.Parameter(_FILLS[initialisation](frame, generator))
        self.input_weight = nn.Parameter(_xavier(frame, hidden_size, input_size, generator))
        shift = torch.zeros(hidden_size, dtype=frame.real.dtype)
        if nonlinearity == "modrelu":
            shift.uniform_(-0.01, 0.01, generator=generator)
        used = bias or nonlinearity == "modrelu"
        self.bias = nn.Parameter(shift) if used else None

    def forward(
        self, x: Tensor | PackedSequence, h: Tensor | None = None
    ) -> tuple[Tensor | PackedSequence, Tensor]:
        """Map sequences to all their states and the last one, called as ``nn.RNN`` is.

        Args:
            x: ``(batch, time, input)``, or ``(time, batch, input)`` without ``batch_first``; one
                sequence may come as ``(time, input)``, several of different lengths packed.
            h: the state before the first step, ``(1, batch, hidden)``; zero by default.

        Returns:
            the states in the layout of ``x``, and the last ``(1, batch, hidden)``.

        Raises:
            InvalidInputError: an input of another shape, or of no steps, or packed for modReLU.
        """
        if isinstance(x, PackedSequence):
            return self._packed(x, h)
        if x.dim() not in (2, 3) or x.shape[-1] != self.input_size or not self._steps(x):
            order = "(batch, time, {})" if self.batch_first else "(time, batch, {})"
            raise InvalidInputError(
                f"an input of shape {tuple(x.shape)}",
                fix=f"give {order.format(self.input_size)} with at least one step",
            )
        if x.dim() == 2:
            batch = 0 if self.batch_first else 1
            states, last = self._run(x.unsqueeze(batch), None if h is None else h.unsqueeze(1))
            return states.squeeze(batch), last.squeeze(1)
        return self._run(x, h)

    def _steps(self, x: Tensor) -> int:
        return x.shape[1 if self.batch_first and x.dim() == 3 else 0]

    def _run(self, x: Tensor, h: Tensor | None) -> tuple[Tensor, Tensor]:
        h = self._start(h, x.shape[0 if self.batch_first else 1])
        if self.nonlinearity == "modrelu":
            states = self._loop(x.transpose(0, 1) if self.batch_first else x, h[0])
            last = states[-1:]
            return states.transpose(0, 1) if self.batch_first else states, last
        y, last = self._kernel(x, h, *self._options(), self.batch_first)
        return y, last

    def _packed(self, x: PackedSequence, h: Tensor | None) -> tuple[PackedSequence, Tensor]:
        if self.nonlinearity == "modrelu":
            raise InvalidInputError(
                "packed sequences are for relu and tanh", fix="pad the sequences instead"
            )
        rows, sizes, order, back = x
        h = self._start(h, int(sizes[0]))
        h = h if order is None else h.index_select(1, order)
        y, last = self._kernel(rows, sizes, h, *self._options())
        last = last if back is None else last.index_select(1, back)
        return PackedSequence(y, sizes, order, back), last

    def _start(self, h: Tensor | None, batch: int) -> Tensor:
        shape = (1, batch, self.hidden_size)
        if h is not None and h.shape != shape:
            raise InvalidInputError(f"a state of shape {tuple(h.shape)}", fix=f"give {shape}")
        return self.frame.new_zeros(shape) if h is None else h

    def _kernel(self, *arguments: Any) -> tuple[Tensor, Tensor]:
        run: Callable[..., tuple[Tensor, Tensor]]
        run = torch.rnn_relu if self.nonlinearity == "relu" else torch.rnn_tanh
        return run(*arguments)

    def _options(self) -> tuple[Any, ...]:
        """Weights, whether there are biases, layers, dropout, training, both directions."""
        weights: list[Tensor] = [self.input_weight, self.frame]
        if self.bias is not None:
            weights += [self.bias, torch.zeros_like(self.bias)]
        return weights, self.bias is not None, 1, 0.0, self.training, False

    def _loop(self, x: Tensor, h: Tensor) -> Tensor:
        """All states ``(time, batch, hidden)`` from inputs in that layout."""
        assert self.bias is not None  # modReLU is built with one
        inputs = x.to(self.frame.dtype) @ self.input_weight.mT
        # Autocast may have made the product narrower than the frame.
        return modrelu_recurrence(inputs.to(self.frame.dtype), self.frame, self.bias, h)


def _identity(W: Tensor, _: torch.Generator | None) -> Tensor:
    return W.copy_(torch.eye(W.shape[-1], dtype=W.dtype))


_FILLS: dict[str, Callable[[Tensor, torch.Generator | None], Tensor]] = {
    "henaff": lambda W, generator: henaff_(W, generator=generator),
    "cayley": lambda W, generator: cayley_(W, generator=generator),
    "haar": lambda W, generator: haar_(W, generator=generator),
    "identity": _identity,
}


def _xavier(like: Tensor, rows: int, columns: int, generator: torch.Generator | None) -> Tensor:
    weight = torch.randn(rows, columns, dtype=like.dtype, generator=generator)
    scaled: Tensor = weight * (2 / (rows + columns)) ** 0.5
    return scaled
