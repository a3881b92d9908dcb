"""One recurrent layer and a readout."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from stiefel.models.signature import Signature
from stiefel.specs.fitting import check_sequences
from stiefel.specs.networks import Recurrent
from stiefel.unitary import OrthogonalRNN


class RecurrentNetwork(nn.Module):
    """``h_t = f(W_in x_t + U h_{t-1})``, read out at every step or at the last.

    ``recurrence.frame`` is U: unitary where the optimizer keeps it so, free where it does not.
    Complex states are read out as their real and imaginary parts side by side.
    """

    def __init__(self, spec: Recurrent, signature: Signature) -> None:
        super().__init__()
        complex_ = spec.numbers == "complex"
        self.per_step = signature.per_step
        self.recurrence = OrthogonalRNN(
            signature.shape[1],
            spec.hidden,
            nonlinearity=spec.activation,
            initialisation=spec.initialisation,
            bias=spec.activation != "modrelu",
            dtype=torch.complex64 if complex_ else torch.float32,
        )
        self.head = nn.Linear(spec.hidden * (2 if complex_ else 1), signature.outputs)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, T, F) to (B, T, outputs) or (B, outputs)."""
        states, last = self.recurrence(x)
        read: Tensor = states if self.per_step else last[0]
        if read.is_complex():
            read = torch.cat((read.real, read.imag), dim=-1)
        answer: Tensor = self.head(read)
        return answer


def recurrent_network(spec: Recurrent, signature: Signature) -> nn.Module:
    """Build the network.

    Raises:
        InvalidInputError: the data is not a sequence.
    """
    check_sequences(signature)
    return RecurrentNetwork(spec, signature)
