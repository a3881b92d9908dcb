"""Every claim of a certificate, measured again in float64 and compared."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from stiefel_client.tensorfile import Array, TensorEntry, TensorFile, decodable
from stiefel_client.verify import measures
from stiefel_client.verify.certificate import CertifiedTensor
from stiefel_client.verify.report import Claim, Verification
from stiefel_client.verify.sources import Sources


class Figure(NamedTuple):
    """One figure measured here; ``value`` None: not measurable."""

    value: float | None
    slack: float = 0.0  # how far the rounding of what is stored may have moved it


Figures = dict[str, Figure]

# Both sides measure in float64 from the same stored numbers: what remains is the order of
# summation. The absolute part covers figures that are themselves rounding noise.
RELATIVE = 1e-3
ABSOLUTE = 1e-8


def check_claims(
    file: TensorFile,
    rows: Sequence[CertifiedTensor],
    sources: Sources,
    outcome: Verification,
    *,
    rotation: bool = False,
) -> None:
    """Measure the claims of one file's tensors; factors wait until all files are open.

    ``rotation``: square real matrices were projected to determinant +1.
    """
    intact = {check.name: at for at, check in enumerate(outcome.tensors)}
    for row in rows:
        entry = file.tensors.get(row.name)
        if entry is None or row.name not in intact:
            continue
        if row.role == "unchanged":
            _check_unchanged(row, sources, outcome)
        elif row.role != "factor" and row.claims and _is_matrix(entry):
            measured = _measure(file, entry, row, sources, rotation)
            _judge(intact[row.name], row.claims, measured, min(entry.matrix_shape), outcome)


def check_factors(
    files: Mapping[str, TensorFile],
    rows: Sequence[CertifiedTensor],
    sources: Sources,
    outcome: Verification,
) -> None:
    """Measure the claims of factors, all factors of one source together."""
    intact = {check.name: at for at, check in enumerate(outcome.tensors)}
    groups: dict[str, list[CertifiedTensor]] = {}
    for row in rows:
        if row.role == "factor":
            groups.setdefault(row.source or row.name, []).append(row)
    for source, group in groups.items():
        if all(row.name in intact for row in group):
            figures = _factor_figures(files, source, group, sources)
            for row in group:
                size = min(files[row.file].tensors[row.name].matrix_shape)
                _judge(intact[row.name], row.claims, figures, size, outcome)


def _is_matrix(entry: TensorEntry) -> bool:
    return decodable(entry) and len(entry.shape) >= 2 and entry.elements > 0


def _check_unchanged(row: CertifiedTensor, sources: Sources, outcome: Verification) -> None:
    original = sources.digest(row.source or row.name)
    if original is not None and original != row.sha256:
        outcome.add(row.name, "not_unchanged", "certified as unchanged, but the input differs")


def _measure(
    file: TensorFile,
    entry: TensorEntry,
    row: CertifiedTensor,
    sources: Sources,
    rotation: bool,
) -> Figures:
    """Every figure that the file, and the source where there is one, shows of one matrix."""
    figures: Figures = {}
    gain = _gain(row.claims)
    gram = measures.gram(file, entry)
    if "orthogonality_defect" in row.claims:
        figures["orthogonality_defect"] = Figure(measures.orthogonality_defect(gram, gain))
    if "rank" in row.claims:
        figures["rank"] = Figure(measures.product_rank(file, entry, gram))
    source = sources.matrix(row.source or row.name)
    if source is None:
        return figures
    values = file.rows(entry, 0, entry.matrix_shape[0])
    if row.role == "projected":
        return figures | _projection_figures(values, source, gain, rotation)
    rounding = measures.rounding(entry, measures.frobenius(values))
    return figures | _approximation_figures(values, source, row.claims, rounding)


def _projection_figures(values: Array, source: Array, gain: float, rotation: bool) -> Figures:
    optimum = measures.nearest_orthonormal(source, gain, rotation=rotation)
    return {
        "distance_to_input": Figure(measures.frobenius(values - source)),
        "distance_to_optimum": Figure(
            measures.frobenius(values - optimum.nearest) if optimum.unique else None
        ),
        "optimum_distance_to_input": Figure(optimum.distance),
    }


def _approximation_figures(
    values: Array, source: Array, claims: Mapping[str, Any], rounding: float = 0.0
) -> Figures:
    """Errors and energy of ``values``, which were rounded by at most ``rounding`` as a whole."""
    norm = measures.frobenius(source) or 1.0
    error = measures.frobenius(values - source) / norm
    figures: Figures = {"relative_error": Figure(error)}
    rank = claims.get("rank")
    if "optimal_error" not in claims:
        # Not the truncated SVD of the source, but what data or a random sketch chose: it keeps
        # what its own error leaves. The energy is certified of the product before its rounding.
        shift = rounding / norm
        slack = 2 * error * shift + shift**2
        figures["retained_energy"] = Figure(max(0.0, 1 - error**2), slack)
    elif isinstance(rank, int):
        tail = measures.best_rank(source, rank)
        figures["retained_energy"] = Figure(tail.retained_energy)
        figures["optimal_error"] = Figure(tail.optimal_error)
    return figures


def _factor_figures(
    files: Mapping[str, TensorFile],
    source_name: str,
    group: Sequence[CertifiedTensor],
    sources: Sources,
) -> Figures:
    entries = [(files[row.file], files[row.file].tensors[row.name]) for row in group]
    if not all(_is_matrix(entry) for _, entry in entries):
        return {}
    # numpy's min, unlike Python's, never loses a NaN.
    rank = float(np.min([measures.factor_rank(file, entry) for file, entry in entries]))
    figures: Figures = {"rank": Figure(rank)}
    source = sources.matrix(source_name)
    if source is not None and len(group) > 1:
        factors = [file.rows(entry, 0, entry.matrix_shape[0]) for file, entry in entries]
        product = _product(factors, source)
        if product is not None:
            figures |= _approximation_figures(product, source, group[0].claims)
    return figures


def _product(factors: Sequence[Array], source: Array) -> Array | None:
    """The product of the factors in the order whose shapes chain to the source's.

    Square factors chain in any order: the product nearest to the source is the one meant.
    """
    best: Array | None = None
    for order in itertools.permutations(factors):
        chained = all(a.shape[1] == b.shape[0] for a, b in itertools.pairwise(order))
        if not chained or (order[0].shape[0], order[-1].shape[1]) != source.shape:
            continue
        product = np.linalg.multi_dot(order)
        if best is None or measures.frobenius(product - source) < measures.frobenius(best - source):
            best = product
    return best


def _judge(
    at: int, claims: Mapping[str, Any], measured: Figures, size: int, outcome: Verification
) -> None:
    """Compare the claims of one tensor and note those that do not hold."""
    check = outcome.tensors[at]
    judged = []
    for name, value in claims.items():
        if isinstance(value, int | float) and not isinstance(value, bool) and name in measured:
            claim = _claim(name, float(value), measured[name], size)
            judged.append(claim)
            if not claim.holds:
                found = f"{name} is {claim.measured:.6g}, certified {claim.claimed:.6g}"
                outcome.add(check.name, "claim_fails", found)
    outcome.tensors[at] = replace(check, claims=tuple(judged))


def _claim(name: str, claimed: float, figure: Figure, size: int) -> Claim:
    measured = figure.value
    if measured is None:
        return Claim(name, claimed, None, True)
    if name == "rank":
        # Nothing but zeros is of rank 0, and no matrix has a rank above its smaller side.
        return Claim(name, claimed, measured, min(claimed, 1) <= measured <= claimed <= size)
    bound = RELATIVE * max(abs(claimed), abs(measured)) + ABSOLUTE * math.sqrt(size)
    bound += figure.slack
    # A comparison with a NaN is false: what is not finite does not hold.
    return Claim(name, claimed, measured, abs(claimed - measured) <= bound)


def _gain(claims: Mapping[str, Any]) -> float:
    gain = claims.get("gain", 1.0)
    return float(gain) if isinstance(gain, int | float) and gain else 1.0
