"""What ``ProjUNN`` accepts, checked when a group is added."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from stiefel.errors import InvalidInputError

FAR = 0.1  # beyond what rounding and drift can do to a frame
_DTYPES = (torch.float32, torch.float64, torch.complex64, torch.complex128)
_CHOICES = {
    "variant": ("tangent", "direct", "cayley"),
    "approximation": ("range", "lsi", "columns"),
    "scaling": ("none", "rmsprop", "adam"),
    "nonfinite": ("raise", "skip"),
}


def check_group(group: dict[str, Any]) -> None:
    """Raise ``InvalidInputError`` for an option that no matrix could be stepped with."""
    if group["weight_decay"] != 0:
        raise InvalidInputError(
            f"weight_decay={group['weight_decay']} on a manifold parameter",
            code="weight_decay_on_manifold",
            fix="set it to 0: the norm of an orthogonal matrix is fixed, decay only adds error; "
            "give decay to the optimizer of the other parameters",
        )
    for name, choices in _CHOICES.items():
        if group[name] not in choices:
            raise InvalidInputError(f"{name}={group[name]!r} is none of {', '.join(choices)}")
    for name in ("momentum", "beta2"):
        if not 0 <= group[name] < 1:
            raise InvalidInputError(f"{name}={group[name]} must be in [0, 1)")
    for name in ("lr", "eps", "drift_columns"):
        if not group[name] >= 0:
            raise InvalidInputError(f"{name}={group[name]} must be at least 0")


def check_parameter(parameter: Tensor, group: dict[str, Any]) -> None:
    """Raise ``InvalidInputError`` unless the parameter is a frame that has the group's rank."""
    shape = tuple(parameter.shape)
    check_dtype(parameter.dtype, f"a parameter {shape}")
    if parameter.ndim < 2 or parameter.shape[-2] < parameter.shape[-1] or not parameter.numel():
        raise InvalidInputError(
            f"a parameter {shape} is no stack of (n, p) matrices with n >= p >= 1",
            code="wide_matrix",
            fix="store a wide weight as its transpose, as OrthogonalLinear does",
        )
    if type(group["rank"]) is not int or not 1 <= group["rank"] <= parameter.shape[-1]:
        raise InvalidInputError(
            f"rank {group['rank']} for a parameter {shape}: at most {shape[-1]}",
            code="rank_too_large",
            fix=f"choose a rank from 1 to {shape[-1]}",
        )
    _check_orthonormal(parameter.detach())


def _check_orthonormal(frame: Tensor) -> None:
    """One drawn vector, of which ``W^H W`` must return what went in: the cost of a step."""
    if frame.is_meta:
        return
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randn(frame.shape[-1], 1, dtype=frame.dtype, generator=generator)
    drawn = drawn.to(frame.device)
    error = torch.linalg.vector_norm(frame.mH @ (frame @ drawn) - drawn, dim=(-2, -1))
    worst = float((error / torch.linalg.vector_norm(drawn)).max())
    if not worst <= FAR:
        raise InvalidInputError(
            f"the columns of a parameter {tuple(frame.shape)} are not orthonormal: W^H W moves a "
            f"vector by {worst:.2g} of its length",
            code="not_orthonormal",
            fix="start from stiefel.linalg.polar_factor(weight).factor, or from haar_",
        )


def check_dtype(dtype: torch.dtype, what: str) -> None:
    """Raise ``InvalidInputError`` unless ``what`` can stay orthogonal in ``dtype``."""
    if dtype not in _DTYPES:
        raise InvalidInputError(
            f"{what} of {dtype}: half precision cannot stay orthogonal",
            code="half_precision",
            fix="keep it in float32 and let autocast run its products in half precision",
        )


def refuse_sparse(parameter: Tensor) -> None:
    """Raise ``InvalidInputError`` for a sparse gradient."""
    if parameter.grad is not None and parameter.grad.layout != torch.strided:
        raise InvalidInputError(
            f"a sparse gradient for a parameter {tuple(parameter.shape)}",
            code="sparse_gradient",
            fix="use a dense gradient: every row of an orthogonal matrix moves in a step",
        )
