"""Recurrent network with an orthogonal or unitary recurrence.

``h_t = f(W_in x_t + U h_{t-1})``. ReLU and tanh run in torch's own recurrent kernels, which is
several times faster than a loop in Python; modReLU, and complex numbers, run in a loop with a
gradient of its own (:mod:`stiefel.unitary.recurrence`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn

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
        self.nonlinearity = nonlinearity
        frame = torch.empty(hidden_size, hidden_size, dtype=dtype)
        self.frame = nn.Parameter(_FILLS[initialisation](frame, generator))
        self.input_weight = nn.Parameter(_xavier(frame, hidden_size, input_size, generator))
        shift = torch.zeros(hidden_size, dtype=frame.real.dtype)
        if nonlinearity == "modrelu":
            shift.uniform_(-0.01, 0.01, generator=generator)
        used = bias or nonlinearity == "modrelu"
        self.bias = nn.Parameter(shift) if used else None

    def forward(self, x: Tensor, h: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Map ``(batch, time, input)`` to all states (batch, time, hidden) and the last one.

        Raises:
            InvalidInputError: an input of another shape, or of no steps.
        """
        if x.dim() != 3 or x.shape[-1] != self.input_weight.shape[-1] or not x.shape[1]:
            raise InvalidInputError(
                f"an input of shape {tuple(x.shape)}",
                fix=f"give (batch, time, {self.input_weight.shape[-1]}) with at least one step",
            )
        if h is None:
            h = self.frame.new_zeros(x.shape[0], self.hidden_size)
        if self.nonlinearity == "modrelu":
            states = self._loop(x, h)
            return states, states[:, -1]
        run: Callable[..., tuple[Tensor, Tensor]]
        run = torch.rnn_relu if self.nonlinearity == "relu" else torch.rnn_tanh
        weights: list[Tensor] = [self.input_weight, self.frame]
        if self.bias is not None:
            weights += [self.bias, torch.zeros_like(self.bias)]
        has_bias = self.bias is not None
        y, last = run(x, h[None], weights, has_bias, 1, 0.0, self.training, False, True)
        return y, last[0]

    def _loop(self, x: Tensor, h: Tensor) -> Tensor:
        assert self.bias is not None  # modReLU is built with one
        inputs = x.transpose(0, 1).to(self.frame.dtype) @ self.input_weight.mT
        # Autocast may have made the product narrower than the frame.
        states = modrelu_recurrence(inputs.to(self.frame.dtype), self.frame, self.bias, h)
        return states.transpose(0, 1)


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
