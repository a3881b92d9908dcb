"""A small certified checkpoint, made with numpy and the safetensors library alone."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

RANK = 3


@dataclass
class Certified:
    """A converted file, its certificate and the input it came from."""

    file: Path
    certificate: Path
    original: Path

    def rewrite(self, change: Any) -> None:
        """Apply ``change`` to the certificate's JSON."""
        body = json.loads(self.certificate.read_text())
        change(body)
        self.certificate.write_text(json.dumps(body))


def make_certified(folder: Path, side: int = 12) -> Certified:
    random = np.random.default_rng(7)
    source = {
        "square.weight": random.standard_normal((side, side)),
        "wide.weight": random.standard_normal((side // 2, side)),
        "kernel.weight": random.standard_normal((side // 2, 2, 3, 3)),
        "dense.weight": random.standard_normal((side, side + 4)),
        "merged.weight": random.standard_normal((side, side + 4)),
        "norm.bias": random.standard_normal(side),
    }
    original = {name: value.astype(np.float32) for name, value in source.items()}
    (folder / "input").mkdir()
    save_file(original, folder / "input" / "model.safetensors")
    converted, rows = {"norm.bias": original["norm.bias"]}, {"norm.bias": ("unchanged", None, {})}
    for name in ("square.weight", "wide.weight", "kernel.weight"):
        converted[name], claims = _project(original[name])
        rows[name] = ("projected", name, claims)
    left, right, claims = _factorise(original["dense.weight"])
    for name, value in (("dense.weight.left", left), ("dense.weight.right", right)):
        converted[name], rows[name] = value, ("factor", "dense.weight", claims)
    left, right, _ = _factorise(original["merged.weight"])
    converted["merged.weight"] = left @ right
    rows["merged.weight"] = (
        "merged",
        "merged.weight",
        _low_rank_claims(original["merged.weight"], converted["merged.weight"]),
    )
    file = folder / "model.safetensors"
    save_file(converted, file)
    certificate = folder / "certificate.json"
    digest = hashlib.sha256((folder / "input" / "model.safetensors").read_bytes()).hexdigest()
    certificate.write_text(json.dumps(certify(file, rows, {"model.safetensors": digest})))
    return Certified(file, certificate, folder / "input" / "model.safetensors")


def certify(file: Path, rows: dict[str, Any], inputs: dict[str, str]) -> dict[str, Any]:
    data = file.read_bytes()
    base = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:base])
    header.pop("__metadata__", None)
    tensors = []
    for name, entry in header.items():
        start, end = entry["data_offsets"]
        role, source, claims = rows[name]
        tensors.append(
            {
                "name": name,
                "file": file.name,
                "dtype": entry["dtype"],
                "shape": entry["shape"],
                "sha256": hashlib.sha256(data[base + start : base + end]).hexdigest(),
                "role": role,
                "source": source,
                "claims": claims,
            }
        )
    digest = hashlib.sha256(data[:base]).hexdigest()
    return {
        "format": "stiefel-certificate/1",
        "files": {file.name: {"bytes": len(data), "header_sha256": digest}},
        "tensors": tensors,
        "lineage": {"input": inputs, "seed": 0},
    }


def _project(value: np.ndarray) -> tuple[np.ndarray, dict[str, float]]:
    matrix = value.reshape(len(value), -1).astype(np.float64)
    left, _, right = np.linalg.svd(matrix, full_matrices=False)
    optimum = left @ right
    stored = optimum.astype(np.float32)
    wide = stored.astype(np.float64)
    gram = wide @ wide.T if wide.shape[0] <= wide.shape[1] else wide.T @ wide
    claims = {
        "orthogonality_defect": float(np.linalg.norm(gram - np.eye(len(gram)))),
        "distance_to_input": float(np.linalg.norm(wide - matrix)),
        "distance_to_optimum": float(np.linalg.norm(wide - optimum)),
        "optimum_distance_to_input": float(np.linalg.norm(optimum - matrix)),
    }
    return stored.reshape(value.shape), claims


def _factorise(value: np.ndarray) -> tuple[np.ndarray, np.ndarray, dict[str, float]]:
    left, sigma, right = np.linalg.svd(value.astype(np.float64), full_matrices=False)
    first = (left[:, :RANK] * sigma[:RANK]).astype(np.float32)
    second = right[:RANK].astype(np.float32)
    product = first.astype(np.float64) @ second.astype(np.float64)
    return first, second, _low_rank_claims(value, product)


def _low_rank_claims(value: np.ndarray, product: np.ndarray) -> dict[str, float]:
    value, product = value.astype(np.float64), product.astype(np.float64)
    sigma = np.linalg.svd(value, compute_uv=False)
    norm = float(np.linalg.norm(value))
    return {
        "rank": RANK,
        "retained_energy": float((sigma[:RANK] ** 2).sum() / (sigma**2).sum()),
        "relative_error": float(np.linalg.norm(product - value)) / norm,
        "optimal_error": float(np.linalg.norm(sigma[RANK:])) / norm,
    }
