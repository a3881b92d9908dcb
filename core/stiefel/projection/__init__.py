"""Weights in, weights out: nearest unitary in several senses, UWPA, low-rank factors."""

from stiefel.projection.calibration import collect_moments, factorize_model, moment_tensors
from stiefel.projection.lie import frame_of_parameters, parameters_of_skew, skew_of_parameters
from stiefel.projection.low_rank import LowRank, factorize
from stiefel.projection.nearest import NearestUnitary, nearest_unitary
from stiefel.projection.network_fit import NetworkFit, NetworkFitter
from stiefel.projection.normalisation import absorb_normalisations
from stiefel.projection.procrustes import Procrustes, procrustes, procrustes_for_moment
from stiefel.projection.sequential import factorize_sequentially
from stiefel.projection.unitary_log import unitary_log
from stiefel.projection.uwpa import Uwpa, uwpa
from stiefel.projection.whitening import SecondMoment, Whitened, factorize_whitened

__all__ = [
    "LowRank",
    "NearestUnitary",
    "NetworkFit",
    "NetworkFitter",
    "Procrustes",
    "SecondMoment",
    "Uwpa",
    "Whitened",
    "absorb_normalisations",
    "collect_moments",
    "factorize",
    "factorize_model",
    "factorize_sequentially",
    "factorize_whitened",
    "frame_of_parameters",
    "moment_tensors",
    "nearest_unitary",
    "parameters_of_skew",
    "procrustes",
    "procrustes_for_moment",
    "skew_of_parameters",
    "unitary_log",
    "uwpa",
]
