"""Nested state as one safetensors file: tensors as they are, everything else as JSON.

What ``torch.save`` would pickle (optimizer and generator state) is a tree of dicts, lists, numbers,
strings and tensors; the tensors become entries of the file and the tree, with their names in their
place, goes into its metadata. Nothing is executed on loading.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import load, save_file
from torch import Tensor

TENSOR = "\0tensor"  # marks the place of a tensor in the tree
PAIRS = "\0pairs"  # marks a dict with keys that are not strings


def save_tree(path: Path, tree: Any) -> None:
    """Write ``tree`` to a new file; tensors of any device and dtype, bit for bit.

    Raises:
        TypeError: a leaf is neither a tensor nor JSON.
    """
    tensors: dict[str, Tensor] = {}
    skeleton = _pack(tree, tensors)
    save_file(tensors, path, metadata={"tree": json.dumps(skeleton)})


def save_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write ``tensors`` under their own names: a plain safetensors file, bit for bit."""
    # Copies, because tensors that share memory (tied weights) cannot be written otherwise.
    own = {name: t.detach().cpu().contiguous().clone() for name, t in tensors.items()}
    save_file(own, path, metadata={"format": "pt"})


def load_tree(path: Path) -> Any:
    """Read what :func:`save_tree` wrote; tensors are on the CPU.

    Bytes beyond the end that the header states are of an attempt that died, and are ignored.
    """
    metadata, tensors = _load(path)
    return _unpack(json.loads(metadata["tree"]), tensors)


def load_tensors(path: Path) -> dict[str, Tensor]:
    """Read what :func:`save_tensors` wrote, in the same way."""
    return _load(path)[1]


def _load(path: Path) -> tuple[dict[str, str], dict[str, Tensor]]:
    content = path.read_bytes()
    start = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:start])
    metadata = header.pop("__metadata__")
    size = max((entry["data_offsets"][1] for entry in header.values()), default=0)
    return metadata, load(content[: start + size])


def _pack(node: Any, tensors: dict[str, Tensor]) -> Any:
    if isinstance(node, Tensor):
        name = f"{len(tensors):06d}"
        tensors[name] = node.detach().cpu().contiguous().clone()
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
