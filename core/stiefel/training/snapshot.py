"""Nested state as one safetensors file: tensors as they are, everything else as JSON.

What ``torch.save`` would pickle (optimizer and generator state) is a tree of dicts, lists, numbers,
strings and tensors; the tensors become entries of the file and the tree, with their names in their
place, goes into its metadata. Nothing is executed on loading, and nothing but one tensor at a time
is in memory twice.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from stiefel.weights import header_bytes
from stiefel.weights.dtypes import NAMES, TORCH

TENSOR = "\0tensor"  # marks the place of a tensor in the tree
PAIRS = "\0pairs"  # marks a dict with keys that are not strings


def save_tree(path: Path, tree: Any) -> None:
    """Write ``tree`` to a new file; tensors of any device and dtype, bit for bit.

    Raises:
        TypeError: a leaf is neither a tensor nor JSON.
    """
    tensors: dict[str, Tensor] = {}
    skeleton = _pack(tree, tensors)
    _save(path, tensors, {"tree": json.dumps(skeleton)})


def save_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write ``tensors`` under their own names: a plain safetensors file, bit for bit."""
    _save(path, tensors, {"format": "pt"})


def load_tree(path: Path) -> Any:
    """Read what :func:`save_tree` wrote; tensors are on the CPU.

    Bytes beyond the end that the header states are of an attempt that died, and are ignored.
    """
    metadata, tensors = _load(path)
    return _unpack(json.loads(metadata["tree"]), tensors)


def load_tensors(path: Path) -> dict[str, Tensor]:
    """Read what :func:`save_tensors` wrote, in the same way."""
    return _load(path)[1]


def _save(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write header, then tensor after tensor, those of the widest numbers first."""
    ordered = sorted(tensors.items(), key=lambda item: -item[1].element_size())
    entries, at = [], 0
    for name, tensor in ordered:
        end = at + tensor.numel() * tensor.element_size()
        shape, dtype = list(tensor.shape), NAMES[tensor.dtype]
        entries.append({"name": name, "dtype": dtype, "shape": shape, "begin": at, "end": end})
        at = end
    with path.open("wb") as file:
        file.write(header_bytes(entries, metadata))
        for _, tensor in ordered:
            flat = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
            file.write(flat.numpy().data)


def _load(path: Path) -> tuple[dict[str, str], dict[str, Tensor]]:
    with path.open("rb") as file:
        start = 8 + int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(start - 8))
        metadata = header.pop("__metadata__")
        tensors = {}
        for name, entry in header.items():
            begin, end = entry["data_offsets"]
            content = bytearray(end - begin)
            file.seek(start + begin)
            if file.readinto(content) != len(content):
                raise EOFError(f"{path.name} ends within {name}")
            flat = torch.frombuffer(content or bytearray(1), dtype=torch.uint8)[: len(content)]
            tensors[name] = flat.view(TORCH[entry["dtype"]]).reshape(entry["shape"])
    return metadata, tensors


def _pack(node: Any, tensors: dict[str, Tensor]) -> Any:
    if isinstance(node, Tensor):
        name = f"{len(tensors):06d}"
        tensors[name] = node
        return {TENSOR: name}
    if isinstance(node, dict):
        if all(isinstance(key, str) for key in node):
            return {key: _pack(value, tensors) for key, value in node.items()}
        return {PAIRS: [[key, _pack(value, tensors)] for key, value in node.items()]}
    if isinstance(node, list | tuple):
        return [_pack(item, tensors) for item in node]
    if node is None or isinstance(node, bool | int | float | str):
        return node
    raise TypeError(f"cannot keep a {type(node).__name__} in a snapshot")


def _unpack(node: Any, tensors: dict[str, Tensor]) -> Any:
    if isinstance(node, dict):
        if TENSOR in node:
            return tensors[node[TENSOR]]
        if PAIRS in node:
            return {key: _unpack(value, tensors) for key, value in node[PAIRS]}
        return {key: _unpack(value, tensors) for key, value in node.items()}
    if isinstance(node, list):
        return [_unpack(item, tensors) for item in node]
    return node
