"""``project.network``: the network-level fit as a job, :mod:`stiefel.projection.network_fit`."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn

from stiefel.errors import InvalidInputError
from stiefel.linalg import orthogonality_defect
from stiefel.methods.protocol import Method, Outcome, Run
from stiefel.methods.training import WeightFiles, json_file, lineage
from stiefel.models import build_network
from stiefel.models.adapter import Adapter, architecture
from stiefel.projection.network_fit import NetworkFit, NetworkFitter
from stiefel.projection.normalisation import absorb_normalisations
from stiefel.specs.project_network import ProjectNetworkSpec
from stiefel.training.data.dataset import Dataset, generator
from stiefel.training.data.opening import open_data
from stiefel.training.naming import check_layer_names
from stiefel.training.snapshots import Snapshots
from stiefel.training.starting import load_weights


def run(spec: ProjectNetworkSpec, run: Run) -> Outcome:
    """Fit and deliver.

    Raises:
        InvalidInputError: data, network, weights or patterns that cannot be used, or outputs
            that are no numbers.
        StopRequested: after a checkpoint.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(spec.seed)
        dataset = open_data(spec.data, run.input, seed=spec.seed)
        network = build_network(spec.network, dataset.signature, seed=spec.seed)
        load_weights(architecture(network), run.input / "weights")
        if spec.absorb_normalisations:
            network = absorb_normalisations(network.eval())
        layers, skipped = _chosen(architecture(network), spec)
        outer = "inner." if isinstance(network, Adapter) else ""
        fitter = NetworkFitter(
            network,
            _inputs(dataset, spec),
            layers=[outer + name for name in layers],
            iterations=spec.iterations,
            batch=spec.batch_size,
            learning_rate=spec.learning_rate,
            scale=spec.scale,
            generator=generator(spec.seed, 2**43),
        )
        _descend(spec, run, fitter)
        return _delivered(spec, run, network, fitter.result(), skipped)


def _chosen(network: nn.Module, spec: ProjectNetworkSpec) -> tuple[list[str], list[dict[str, str]]]:
    """Linear layers to fit, and why every other layer with a matrix stays."""
    names = check_layer_names(network, spec.include, spec.exclude)
    linear = [n for n in names if isinstance(network.get_submodule(n), nn.Linear)]
    layers, skipped = [], []
    for name in names:
        reason = None
        if name not in linear:
            reason = f"{type(network.get_submodule(name)).__name__} is no linear layer"
        elif not any(fnmatchcase(name, pattern) for pattern in spec.include):
            reason = "matches no include pattern"
        elif any(fnmatchcase(name, pattern) for pattern in spec.exclude):
            reason = "excluded by name"
        elif spec.keep_last and name == linear[-1]:
            reason = "the last layer is kept"
        if reason is None:
            layers.append(name)
        else:
            skipped.append({"name": name, "skipped": reason})
    if not layers:
        reasons = "; ".join(f"{row['name']}: {row['skipped']}" for row in skipped[:5])
        raise InvalidInputError(
            f"no layer can be fitted: {reasons}",
            code="nothing_converted",
            fix="check include and exclude",
            field="/include",
        )
    return layers, skipped


def _inputs(dataset: Dataset, spec: ProjectNetworkSpec) -> Tensor:
    """The first training inputs in the order of the seed, ``(examples, ...)``."""
    size = min(spec.batch_size, spec.examples)
    found: list[Tensor] = []
    for batch in dataset.train(epoch=0, first=0, batch_size=size):
        found.append(batch.x)
        if len(found) * size >= spec.examples:
            break
    if not found:
        raise InvalidInputError(
            f"the training data hold no full batch of {size}",
            code="bad_data",
            fix="lower batch_size",
            field="/batch_size",
        )
    return torch.cat(found)[: spec.examples]


def _descend(spec: ProjectNetworkSpec, run: Run, fitter: NetworkFitter) -> None:
    snapshots = Snapshots(run.state, keep=1)
    found = snapshots.newest()
    if found is not None:
        fitter.load_state_dict(found[1])
    while fitter.iteration < spec.iterations:
        loss = fitter.step()
        done = fitter.iteration
        if not loss < float("inf"):
            raise InvalidInputError(
                f"the outputs are no numbers at iteration {done}",
                code="loss_not_finite",
                fix="lower learning_rate, or check the weights and the scale of the data",
                field="/learning_rate",
            )
        run.metrics(done, {"fit_loss": loss})
        run.progress(done, spec.iterations, unit="iterations")
        if run.stop_requested or done % spec.checkpoint_every == 0:
            snapshots.save(done, {}, fitter.state_dict(), done)
            run.checkpoint(done)
    run.progress(spec.iterations, spec.iterations, unit="iterations")


def _delivered(
    spec: ProjectNetworkSpec,
    run: Run,
    network: nn.Module,
    fit: NetworkFit,
    skipped: Sequence[dict[str, str]],
) -> Outcome:
    rows = [_row(network, fit, name) for name in fit.gains]
    for row in rows if isinstance(network, Adapter) else ():
        row["name"] = row["name"].removeprefix("inner.")
    metrics: dict[str, float | int | str] = {
        "fitted_loss": fit.loss,
        "projected_loss": fit.initial_loss,
        "iterations": len(fit.history),
        "layers_fitted": len(rows),
        "max_orthogonality_defect": max(row["orthogonality_defect"] for row in rows),
    }
    written = WeightFiles(run.state)
    written.add("model.safetensors", dict(architecture(fit.network).state_dict()))
    report = {
        "format": "stiefel-report/1",
        "method": spec.method,
        "totals": metrics,
        "layers": [*rows, *skipped],
        "spec": spec.model_dump(mode="json"),
    }
    certificate = {
        "format": "stiefel-certificate/1",
        "files": written.files,
        "lineage": lineage(spec, run),
        "tensors": written.rows,
    }
    documents = [
        json_file(run.state, "report.json", report),
        json_file(run.state, "certificate.json", certificate),
    ]
    if isinstance(fit.network, Adapter):
        documents.append(json_file(run.state, "config.json", fit.network.config()))
    return Outcome([*written.deliveries, *documents], metrics)


def _row(network: nn.Module, fit: NetworkFit, name: str) -> dict[str, Any]:
    """One fitted layer: its gain and defect, and its distance beside the least there is."""
    before = network.get_parameter(f"{name}.weight").detach().double()
    after, gain = fit.network.get_parameter(f"{name}.weight").detach().double(), fit.gains[name]
    frame = after / gain
    least = torch.linalg.svdvals(before) - gain
    return {
        "name": name,
        "shape": list(before.shape),
        "gain": gain,
        "orthogonality_defect": float(
            orthogonality_defect(frame if frame.shape[0] >= frame.shape[1] else frame.mT)
        ),
        "distance_to_input": float(torch.linalg.vector_norm(after - before)),
        "optimum_distance_to_input": float(torch.linalg.vector_norm(least)),
    }


METHOD = Method("project.network", ProjectNetworkSpec, run)
