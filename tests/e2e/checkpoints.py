"""Checkpoints for the tests: good ones by the safetensors library, hostile ones by hand."""

from __future__ import annotations

import io
import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.numpy import save_file


def matrices(path: Path, *, count: int, side: int, seed: int = 0) -> Path:
    """``count`` Gaussian matrices w000, w001, ... of ``side`` x ``side``, and one bias."""
    random = np.random.default_rng(seed)
    shape = (side, side)
    tensors = {f"w{i:03}": random.standard_normal(shape, dtype=np.float32) for i in range(count)}
    save_file(tensors | {"bias": np.ones(side, np.float32)}, path)
    return path


def sharded(folder: Path) -> Path:
    """Two shards and their index; returns the folder."""
    folder.mkdir()
    random = np.random.default_rng(3)
    weight_map = {}
    for number in (1, 2):
        name = f"model-{number:05}-of-00002.safetensors"
        tensors = {
            f"layer.{number}.weight": random.standard_normal((24, 16), dtype=np.float32),
            f"layer.{number}.bias": random.standard_normal(24, dtype=np.float32),
        }
        save_file(tensors, folder / name)
        weight_map |= dict.fromkeys(tensors, name)
    index = {"metadata": {"total_size": 3264}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


def raw(header: Any, body: bytes = b"") -> bytes:
    """A safetensors file with any header at all."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + body


def entry(shape: list[int], start: int, end: int, dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


def torch_zip() -> bytes:
    buffer = io.BytesIO()
    torch.save({"w": torch.ones(2, 2)}, buffer)
    return buffer.getvalue()


def hostile() -> dict[str, tuple[bytes, str]]:
    """Name: (content, the code with which it is refused)."""
    good = raw({"w": entry([2, 2], 0, 16)}, bytes(16))
    many = {f"t{i}": entry([0], 0, 0) for i in range(200_001)}
    overlap = {"a": entry([4], 0, 16), "b": entry([4], 8, 24)}
    return {
        "pickle": (pickle.dumps({"w": [1.0]}), "pickle_file"),
        "torch zip": (torch_zip(), "torch_zip_file"),
        "truncated": (good[:-3], "file_truncated"),
        "truncated header": (good[:20], "header_truncated"),
        "empty": (b"", "file_too_short"),
        "header bomb": ((2**30).to_bytes(8, "little") + b"{" + b" " * 512, "header_too_long"),
        "too many tensors": (raw(many), "too_many_tensors"),
        "overlap": (raw(overlap, bytes(24)), "overlapping_tensors"),
    }


def not_finite(path: Path, value: float) -> Path:
    tensors = {"good": np.eye(4, dtype=np.float32), "poisoned": np.ones((4, 4), np.float32)}
    tensors["poisoned"][1, 2] = value
    save_file(tensors, path)
    return path


def rank_deficient(path: Path) -> Path:
    random = np.random.default_rng(5)
    thin = random.standard_normal((8, 2), dtype=np.float32)
    save_file({"deficient": thin @ thin.T, "zero": np.zeros((6, 6), np.float32)}, path)
    return path
