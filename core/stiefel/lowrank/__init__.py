"""Training and conversion of networks whose weights are U S V^T."""

from stiefel.lowrank.attention import LowRankMultiheadAttention
from stiefel.lowrank.checkpoint import Loaded, load_factored
from stiefel.lowrank.convert import Conversion, Skipped, to_low_rank
from stiefel.lowrank.convolution import LowRankConv2d
from stiefel.lowrank.export import Exported, export, merge
from stiefel.lowrank.factored import FactoredConv2d, FactoredLinear
from stiefel.lowrank.galore import GaLoreAdamW
from stiefel.lowrank.integrator import LowRankIntegrator, StepReport
from stiefel.lowrank.layer import LowRankLayer
from stiefel.lowrank.linear import LowRankLinear
from stiefel.lowrank.lora import Adapter, save_adapter, split_pissa
from stiefel.lowrank.oialr import OialrReport, OialrSchedule, trainable_share
from stiefel.lowrank.reduce import prepare_for_ddp
from stiefel.lowrank.transition import CuttlefishSwitch, enter_factors
from stiefel.lowrank.truncation import RankRule

__all__ = [
    "Adapter",
    "Conversion",
    "CuttlefishSwitch",
    "Exported",
    "FactoredConv2d",
    "FactoredLinear",
    "GaLoreAdamW",
    "Loaded",
    "LowRankConv2d",
    "LowRankIntegrator",
    "LowRankLayer",
    "LowRankLinear",
    "LowRankMultiheadAttention",
    "OialrReport",
    "OialrSchedule",
    "RankRule",
    "Skipped",
    "StepReport",
    "enter_factors",
    "export",
    "load_factored",
    "merge",
    "prepare_for_ddp",
    "save_adapter",
    "split_pissa",
    "to_low_rank",
    "trainable_share",
]
