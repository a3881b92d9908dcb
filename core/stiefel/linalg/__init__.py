"""Dense kernels, batched over leading dimensions: polar factor, Hermitian and skew parts."""

from stiefel.linalg.parts import hermitian, orthogonality_defect, skew
from stiefel.linalg.polar import Polar, polar_factor

__all__ = ["Polar", "hermitian", "orthogonality_defect", "polar_factor", "skew"]
