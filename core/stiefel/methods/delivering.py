"""The end of a conversion: headers, index, certificate and report, written from the ledger.

Nothing here holds more than one ledger entry and one header in memory.
"""

from __future__ import annotations

import hashlib
import json
import platform
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from stiefel.methods.protocol import Delivery, Outcome, Run
from stiefel.specs.conversion import ConversionSpec
from stiefel.specs.plan import Plan
from stiefel.weights import Ledger, header_bytes, write_new

INDEX = "model.safetensors.index.json"
GOOD_WHEN_LARGE = {"retained_energy"}


def deliver(
    spec: ConversionSpec,
    run: Run,
    *,
    plan: Plan,
    ledger: Ledger,
    metadata: Mapping[str, Mapping[str, str]],
    index_name: str | None,
) -> Outcome:
    """Write what remains and name every file to hand over."""
    files: dict[str, dict[str, Any]] = {}
    deliveries = []
    for name, texts in metadata.items():
        header = header_bytes(_tensors(ledger, name), dict(texts))
        write_new(run.state / f"{name}.header", header)
        body = run.state / f"{name}.body"
        files[name] = {
            "bytes": len(header) + body.stat().st_size,
            "header_sha256": hashlib.sha256(header).hexdigest(),
        }
        parts = (run.state / f"{name}.header", body)
        deliveries.append(Delivery(name, "safetensors", parts))
    if index_name is not None or len(files) > 1:
        deliveries.append(_index(run, ledger, index_name or INDEX))
    certificate = run.state / "certificate.json"
    head = {
        "format": "stiefel-certificate/1",
        "files": files,
        "lineage": _lineage(spec, run),
    }
    _write_stream(certificate, head, {"tensors": _certified(ledger)})
    metrics = _summary(plan, ledger, files)
    report = run.state / "report.json"
    head = {"format": "stiefel-report/1", "method": spec.method, "totals": metrics, "files": files}
    lists = {"tensors": _reported(plan, ledger), "skipped": _skipped(plan, ledger)}
    _write_stream(report, {**head, "spec": spec.model_dump(mode="json")}, lists)
    deliveries.append(Delivery("report.json", "json", (report,)))
    deliveries.append(Delivery("certificate.json", "json", (certificate,)))
    return Outcome(deliveries, metrics)


def _tensors(ledger: Ledger, file: str) -> Iterator[dict[str, Any]]:
    for entry in ledger.entries():
        if entry["file"] == file:
            yield from entry["tensors"]


def _index(run: Run, ledger: Ledger, name: str) -> Delivery:
    weight_map, total = {}, 0
    for entry in ledger.entries():
        for tensor in entry["tensors"]:
            weight_map[tensor["name"]] = entry["file"]
            total += tensor["end"] - tensor["begin"]
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
    path = run.state / "index.json"
    write_new(path, json.dumps(index, indent=2).encode() + b"\n")
    return Delivery(name, "json", (path,))


def _lineage(spec: ConversionSpec, run: Run) -> dict[str, Any]:
    return {
        "input": {},
        "code": _version(),
        "environment": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "machine": platform.machine(),
            "threads": torch.get_num_threads(),
        },
        "job": None,
        **run.lineage,
        "spec": spec.model_dump(mode="json"),
        "seed": spec.seed,
    }


def _version() -> str:
    try:
        return f"stiefel {version('stiefel')}"
    except PackageNotFoundError:
        return "stiefel (not installed)"


def _certified(ledger: Ledger) -> Iterator[dict[str, Any]]:
    for entry in ledger.entries():
        for tensor in entry["tensors"]:
            yield {
                "name": tensor["name"],
                "file": entry["file"],
                "dtype": tensor["dtype"],
                "shape": tensor["shape"],
                "sha256": tensor["sha256"],
                "role": tensor["role"],
                "source": entry["source"],
                "claims": tensor["claims"],
            }


def _reported(plan: Plan, ledger: Ledger) -> Iterator[dict[str, Any]]:
    for entry in ledger.entries():
        item = plan.selected.get(entry["source"])
        if item is None or "skip" in entry:
            continue
        yield {
            "name": entry["source"],
            "file": entry["file"],
            "dtype": item.tensor.dtype,
            "shape": list(item.tensor.shape),
            "matrix": [item.rows, item.columns],
            "seconds": entry["seconds"],
            "before": entry["before"],
            "after": entry["after"],
            "outputs": [
                {"name": t["name"], "dtype": t["dtype"], "shape": t["shape"], "role": t["role"]}
                for t in entry["tensors"]
            ],
        }


def _skipped(plan: Plan, ledger: Ledger) -> Iterator[dict[str, Any]]:
    for entry in ledger.entries():
        tensor = entry["tensors"][0]
        planned = plan.skipped.get(entry["source"])
        if planned is not None:
            skip = {"code": planned.skip.code, "reason": planned.skip.reason}
        elif "skip" in entry:
            skip = entry["skip"]
        else:
            continue
        yield {
            "name": entry["source"],
            "file": entry["file"],
            "dtype": tensor["dtype"],
            "shape": tensor["shape"],
            **skip,
        }


def _summary(
    plan: Plan, ledger: Ledger, files: Mapping[str, Mapping[str, Any]]
) -> dict[str, float | int | str]:
    """Totals, and the worst value of every certified figure."""
    roles: Counter[str] = Counter()
    worst: dict[str, float] = {}
    seconds, converted = 0.0, 0
    for entry in ledger.entries():
        converted += entry["tensors"][0]["role"] != "unchanged"
        seconds += entry.get("seconds", 0.0)
        for tensor in entry["tensors"]:
            roles[tensor["role"]] += 1
            for claim, value in tensor["claims"].items():
                key, choose = ("min_", min) if claim in GOOD_WHEN_LARGE else ("max_", max)
                worst[key + claim] = choose(worst.get(key + claim, value), value)
    return {
        "tensors_converted": converted,
        "tensors_unchanged": roles["unchanged"],
        "bytes_before": plan.input_bytes,
        "bytes_after": sum(file["bytes"] for file in files.values()),
        "seconds_converting": round(seconds, 3),
        **worst,
    }


def _write_stream(
    path: Path, head: Mapping[str, Any], lists: Mapping[str, Iterable[Mapping[str, Any]]]
) -> None:
    """Write one JSON object whose long lists are never whole in memory, one item per line."""
    path.unlink(missing_ok=True)
    with path.open("x", encoding="utf-8") as file:
        file.write(json.dumps(head, indent=1)[:-2])
        for name, items in lists.items():
            file.write(f",\n {json.dumps(name)}: [")
            for position, item in enumerate(items):
                file.write(",\n  " if position else "\n  ")
                file.write(json.dumps(item))
            file.write("\n ]")
        file.write("\n}\n")
