"""Training and conversion of networks whose weights are U S V^T."""

from stiefel.lowrank.convolution import LowRankConv2d
from stiefel.lowrank.integrator import LowRankIntegrator, StepReport
from stiefel.lowrank.layer import LowRankLayer
from stiefel.lowrank.linear import LowRankLinear
from stiefel.lowrank.reduce import prepare_for_ddp
from stiefel.lowrank.truncation import RankRule

__all__ = [
    "LowRankConv2d",
    "LowRankIntegrator",
    "LowRankLayer",
    "LowRankLinear",
    "RankRule",
    "StepReport",
    "prepare_for_ddp",
]
