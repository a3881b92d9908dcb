"""The Stiefel manifold: points, tangent vectors, inner products, retractions."""

from stiefel.manifold.retractions import (
    RETRACTIONS,
    retract_cayley,
    retract_exp,
    retract_polar,
    retract_qr,
)
from stiefel.manifold.stiefel import (
    inner_canonical,
    inner_euclidean,
    project_tangent,
    random_point,
    random_tangent,
)

__all__ = [
    "RETRACTIONS",
    "inner_canonical",
    "inner_euclidean",
    "project_tangent",
    "random_point",
    "random_tangent",
    "retract_cayley",
    "retract_exp",
    "retract_polar",
    "retract_qr",
]
