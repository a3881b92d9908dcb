"""From a finished run to the files it hands over: weights, curves, report, card, certificate."""

from __future__ import annotations

import hashlib
import json
import platform
import resource
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from stiefel.linalg import orthogonality_defect
from stiefel.methods.protocol import Delivery, Outcome, Run
from stiefel.methods.several import run_in_several
from stiefel.models.adapter import Adapter
from stiefel.specs import MethodSpec
from stiefel.specs.training import TrainingSpec
from stiefel.training.series import write_parquet, write_tensorboard
from stiefel.training.session import Constraint, Trained, train
from stiefel.weights import BodyWriter, Written, header_bytes, write_new
from stiefel.weights.dtypes import TORCH

NAMES = {dtype: name for name, dtype in TORCH.items()} | {
    torch.int64: "I64",
    torch.int32: "I32",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}

BEST = "best.safetensors"

S = TypeVar("S", bound=TrainingSpec)


def run_training(spec: S, run: Run, constraint: Constraint[S]) -> Outcome:
    """Train as ``spec`` says and deliver; see :func:`stiefel.training.session.train` for errors.

    With several devices this process starts the others and waits for them.
    """
    if spec.devices > 1 and not dist.is_initialized():
        return run_in_several(spec, run)
    trained = train(spec, run, constraint)
    first = trained.loop.world.first
    written = WeightFiles(run.state)
    metrics: dict[str, float | int | str] = {}
    documents: list[Delivery] = []
    if first:
        for name, tensors in trained.exports.items():
            written.add(name, tensors)
        metrics = _metrics(trained)
        documents = _documents(spec, run, trained, metrics)
    if spec.deliver == "last":  # every process goes back, once the first has written the end
        best = trained.best()
        if first:
            written.add(BEST, best)
    if not first:
        return Outcome(())
    certificate = {
        "format": "stiefel-certificate/1",
        "files": written.files,
        "lineage": lineage(spec, run),
        "tensors": written.rows,
    }
    documents.append(json_file(run.state, "certificate.json", certificate))
    return Outcome([*written.deliveries, *documents], metrics)


def _documents(
    spec: TrainingSpec, run: Run, trained: Trained, metrics: Mapping[str, Any]
) -> list[Delivery]:
    """Report, card, curves and, for networks of another library, its config."""
    documents = [
        json_file(run.state, "report.json", _report(spec, trained, metrics)),
        text_file(run.state, "README.md", model_card(spec, trained, metrics)),
        *_curves(run.state, trained),
    ]
    if isinstance(trained.network, Adapter):
        documents.append(json_file(run.state, "config.json", trained.network.config()))
    return documents


class WeightFiles:
    """The safetensors files of a run as they are written, and what its certificate says of them."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.files: dict[str, Any] = {}
        self.rows: list[dict[str, Any]] = []
        self.deliveries: list[Delivery] = []

    def add(self, name: str, tensors: Mapping[str, Tensor]) -> None:
        """Write one file."""
        delivery, self.files[name], rows = _weights(self._folder, name, tensors)
        self.deliveries.append(delivery)
        self.rows += rows


def _weights(
    folder: Path, name: str, tensors: Mapping[str, Tensor]
) -> tuple[Delivery, dict[str, Any], list[dict[str, Any]]]:
    """Write one safetensors file; return it with its certificate's facts and rows."""
    body = folder / f"{name}.body"
    body.unlink(missing_ok=True)
    ordered = sorted(tensors.items(), key=lambda item: (-item[1].element_size(), item[0]))
    rows = []
    entries: list[Written] = []
    with BodyWriter(body, 0) as writer:
        for key, tensor in ordered:
            tensor = tensor.detach().cpu()
            written = writer.tensor(key, NAMES[tensor.dtype], tensor)
            entries.append(written)
            rows.append(_certified(name, written, tensor))
    header = header_bytes([entry.to_dict() for entry in entries], {"format": "pt"})
    write_new(folder / f"{name}.header", header)
    facts = {
        "bytes": len(header) + body.stat().st_size,
        "header_sha256": hashlib.sha256(header).hexdigest(),
    }
    return Delivery(name, "safetensors", (folder / f"{name}.header", body)), facts, rows


def _certified(file: str, written: Written, tensor: Tensor) -> dict[str, Any]:
    claims: dict[str, float] = {}
    numbers = tensor.is_floating_point() or tensor.is_complex()
    if tensor.dim() == 2 and numbers and min(tensor.shape) > 1:
        wide = tensor.to(torch.complex128 if tensor.is_complex() else torch.float64)
        tall = wide if wide.shape[0] >= wide.shape[1] else wide.mH
        defect = float(orthogonality_defect(tall))
        if defect < 1e-3 * min(tensor.shape) ** 0.5:  # a claim only where there is one to make
            claims["orthogonality_defect"] = defect
    return {
        "name": written.name,
        "file": file,
        "dtype": written.dtype,
        "shape": list(written.shape),
        "sha256": written.sha256,
        "role": "trained",
        "source": None,
        "claims": claims,
    }


def _metrics(trained: Trained) -> dict[str, float | int | str]:
    loop, evaluation = trained.loop, trained.evaluation
    after = trained.stored_parameters
    metrics: dict[str, float | int | str] = {
        "test_loss": evaluation.loss,
        "steps": loop.position.step,
        "epochs": loop.position.epoch,
        "best_step": loop.best.step,
        "best_test_loss": loop.best.loss,
        "parameters_before": trained.parameters_before,
        "parameters_after": after,
        "parameters_saved": 1.0 - after / trained.parameters_before,
        "seconds_training": round(loop.clock.seconds, 3),
        "examples_per_second": round(loop.clock.examples_per_second, 1),
        "peak_memory_bytes": _peak_memory(loop.world.device),
    }
    if evaluation.accuracy is not None:
        metrics["test_accuracy"] = evaluation.accuracy
        metrics["best_test_accuracy"] = loop.best.accuracy or 0.0
    return metrics | dict(loop.stepper.measures())


def _peak_memory(device: torch.device) -> int:
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _report(spec: TrainingSpec, trained: Trained, metrics: Mapping[str, Any]) -> dict[str, Any]:
    curves: dict[str, list[list[float]]] = {}
    for name, step, value, _ in trained.loop.series.points():
        if name != "loss":
            curves.setdefault(name, []).append([step, value])
    return {
        "format": "stiefel-report/1",
        "method": spec.method,
        "totals": dict(metrics),
        "evaluations": curves,
        "layers": trained.layers,
        "spec": spec.model_dump(mode="json"),
    }


def model_card(spec: TrainingSpec, trained: Trained, metrics: Mapping[str, Any]) -> str:
    """Markdown that tells a reader what the weights are and how they were made."""
    family = spec.network.family
    lines = [
        f"# {family}, trained with {spec.method}",
        "",
        "| figure | value |",
        "|---|---|",
        *(f"| {name} | {_figure(value)} |" for name, value in metrics.items()),
        "",
        "`model.safetensors` holds dense weights for the architecture as the spec names it, of the "
        f"{spec.deliver} step; `best.safetensors`, where present, those of the best evaluation;",
        "`model.factored.safetensors`, where present, holds the factors that were trained.",
        "`certificate.json` lists the digest of every tensor; `stiefel verify` checks it offline.",
        "",
        "## Spec",
        "",
        "```json",
        json.dumps(
            {"method": spec.method} | spec.model_dump(mode="json", exclude_defaults=True), indent=1
        ),
        "```",
        "",
    ]
    return "\n".join(lines)


def _figure(value: object) -> str:
    return f"{value:.6g}" if isinstance(value, float) else f"{value:,}"


def _curves(folder: Path, trained: Trained) -> list[Delivery]:
    parquet = folder / "metrics.parquet"
    parquet.unlink(missing_ok=True)
    write_parquet(trained.loop.series, parquet)
    events = write_tensorboard(trained.loop.series, folder)
    return [
        Delivery("metrics.parquet", "parquet", (parquet,)),
        Delivery("events.out.tfevents", "tfevents", (events,)),
    ]


def lineage(spec: MethodSpec, run: Run) -> dict[str, Any]:
    """What a certificate says of where its files come from."""
    return {
        "input": {},
        "spec": spec.model_dump(mode="json"),
        "seed": spec.seed,
        "environment": {"python": platform.python_version(), "torch": torch.__version__},
        **run.lineage,
    }


def json_file(folder: Path, name: str, value: Any) -> Delivery:
    """Write one JSON document into ``folder``."""
    return text_file(folder, name, json.dumps(value, indent=1) + "\n", kind="json")


def text_file(folder: Path, name: str, text: str, *, kind: str = "markdown") -> Delivery:
    """Write one text into ``folder``."""
    write_new(folder / name, text.encode())
    return Delivery(name, kind, (folder / name,))
