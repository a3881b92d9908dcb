"""The exponential of a skew-Hermitian matrix, made to be differentiated.

Scaling and squaring with a Taylor polynomial of degree 12, in plain products: backpropagation
costs twice the forward pass, on n x n matrices. ``torch.matrix_exp`` differentiates through the
exponential of a 2n x 2n block matrix, which costs about eight times its forward pass.

Source: Higham, Functions of Matrices, SIAM 2008, sections 4.2 (Paterson-Stockmeyer) and 10.3.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

HALF = 0.5  # norm up to which degree 12 is exact to 1e-14


def exp_skew(a: Tensor) -> Tensor:
    """Return ``exp(A)`` of skew-Hermitian ``(..., n, n)``: orthogonal or unitary, differentiable.

    The defect grows with the number of squarings: about ``eps * sqrt(n)`` times the norm of A.
    Cost: 5 products, and one for each doubling of the norm above 1/2.
    """
    square = a @ a
    # ||A||_2^2 <= ||A^2||_F for a normal matrix.
    norms = torch.linalg.matrix_norm(square.detach()).flatten()
    norm = math.sqrt(float(norms.max())) if norms.numel() else 0.0
    halvings = max(0, math.ceil(math.log2(norm / HALF))) if 0 < norm < math.inf else 0
    scale = 2.0**-halvings
    result = _taylor(a * scale, square * scale**2)
    for _ in range(halvings):
        result = result @ result
    return result


def _taylor(a: Tensor, a2: Tensor) -> Tensor:
    """Degree 12 in four products: polynomials of degree 3 in A, combined in powers of A^4."""
    a3, a4 = a2 @ a, a2 @ a2
    eye = torch.eye(a.shape[-1], dtype=a.dtype, device=a.device)
    c = [1 / math.factorial(k) for k in range(13)]
    high = c[8] * eye + c[9] * a + c[10] * a2 + c[11] * a3 + c[12] * a4
    middle = c[4] * eye + c[5] * a + c[6] * a2 + c[7] * a3 + high @ a4
    return eye + a + c[2] * a2 + c[3] * a3 + middle @ a4
