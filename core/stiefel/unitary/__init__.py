"""Layers and an optimizer that keep weights orthogonal or unitary while they train."""

from stiefel.unitary.convolution import FourierConv2d
from stiefel.unitary.frame_convolution import FrameConv2d
from stiefel.unitary.initialisation import cayley_, haar_, henaff_
from stiefel.unitary.linear import (
    OrthogonalLinear,
    UnitaryLinear,
    euclidean_parameters,
    manifold_parameters,
)
from stiefel.unitary.optimizer import ProjUNN
from stiefel.unitary.rank_k_update import Products, Variant, rank_k_update, rank_k_update_
from stiefel.unitary.recurrence import modrelu, modrelu_recurrence
from stiefel.unitary.rnn import OrthogonalRNN
from stiefel.unitary.stepping import step_
from stiefel.unitary.swapping import Skipped, Swapped, SwapReport, to_unitary

__all__ = [
    "FourierConv2d",
    "FrameConv2d",
    "OrthogonalLinear",
    "OrthogonalRNN",
    "Products",
    "ProjUNN",
    "Skipped",
    "SwapReport",
    "Swapped",
    "UnitaryLinear",
    "Variant",
    "cayley_",
    "euclidean_parameters",
    "haar_",
    "henaff_",
    "manifold_parameters",
    "modrelu",
    "modrelu_recurrence",
    "rank_k_update",
    "rank_k_update_",
    "step_",
    "to_unitary",
]
