"""A small network for scikit-learn's digits, fitted by scikit-learn; the conversions' subject."""

from __future__ import annotations

import warnings
from collections.abc import Mapping

import numpy as np
from sklearn.datasets import load_digits
from sklearn.exceptions import ConvergenceWarning
from sklearn.neural_network import MLPClassifier

Weights = Mapping[str, np.ndarray]
LAYERS = ("hidden.0", "hidden.1", "head")
TRAINED = 1437  # of 1,797 digits; the rest tests


def fit(*, epochs: int) -> Weights:
    """Weights ``(out, in)`` and biases of 64 - 128 - 128 - 10 units, ReLU between."""
    x, y = load_digits(return_X_y=True)
    network = MLPClassifier((128, 128), max_iter=epochs, random_state=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # a few epochs are enough here
        network.fit(x[:TRAINED] / 16, y[:TRAINED])
    weights = {}
    for name, weight, bias in zip(LAYERS, network.coefs_, network.intercepts_, strict=True):
        weights[f"{name}.weight"] = np.ascontiguousarray(weight.T, dtype=np.float32)
        weights[f"{name}.bias"] = bias.astype(np.float32)
    return weights


def accuracy(weights: Weights) -> float:
    """Share of the test digits that the network reads right."""
    x, y = load_digits(return_X_y=True)
    h = x[TRAINED:] / 16
    for name in LAYERS:
        if f"{name}.weight" in weights:
            h = h @ weights[f"{name}.weight"].T
        else:
            h = h @ weights[f"{name}.factor_in"].T @ weights[f"{name}.factor_out"].T
        h = h + weights[f"{name}.bias"]
        if name != LAYERS[-1]:
            h = np.maximum(h, 0)
    return float((h.argmax(axis=1) == y[TRAINED:]).mean())
