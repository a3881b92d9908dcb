"""Tensors of a checkpoint on disk: one file, a folder, or shards under an index."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NoReturn

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from stiefel.errors import InvalidInputError
from stiefel.specs.shards import ShardIndex, load_index

WHOLE = "model.safetensors"
INDEX_SUFFIX = ".index.json"
SHARD = re.compile(r"-\d+-of-\d+\.safetensors$")
SAME_SAVE = "keep the shards and the index of one and the same save in one folder"


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Return all tensors of the checkpoint at ``path``.

    Args:
        path: a safetensors file, an index of shards beside it (``….index.json``), or a folder
            with ``model.safetensors`` that is whole, or else with one such index.

    Raises:
        InvalidInputError: a folder without either, an index that is none or that names what is not
            there, or a file that is no safetensors.
        FileNotFoundError: there is nothing at ``path``.
    """
    if path.is_dir():
        path = _of_folder(path)
    if not path.name.endswith(INDEX_SUFFIX):
        return _read(path)
    index = load_index(path)
    tensors: dict[str, Tensor] = {}
    for shard in _shards(path.parent, index):
        for name, tensor in _read(shard).items():
            if index.get(name) != shard.name:
                _refuse(
                    f"{path.name} does not place tensor {name!r} in {shard.name!r}, which holds it"
                )
            tensors[name] = tensor
    for name in sorted(index.keys() - tensors.keys()):
        _refuse(f"{path.name} places tensor {name!r} in {index[name]!r}, which does not hold it")
    return tensors


def is_shard(path: Path) -> bool:
    """Whether the file at ``path`` is one of several, by its name or by an index beside it."""
    if not path.is_file() or path.name.endswith(INDEX_SUFFIX):
        return False
    if SHARD.search(path.name):
        return True
    return any(path.name in _names(index) for index in _indices(path.parent))


def _of_folder(folder: Path) -> Path:
    found = _indices(folder)
    if (folder / WHOLE).is_file() and not any(WHOLE in _names(index) for index in found):
        return folder / WHOLE  # before an index, as transformers has it
    if len(found) == 1:
        return found[0]
    what = f"{found[0].name} and {found[1].name}" if found else f"neither {WHOLE} nor an index"
    raise InvalidInputError(
        f"{folder} holds {what}",
        code="checkpoint_unreadable",
        fix=f"give the file itself: a safetensors file or ….safetensors{INDEX_SUFFIX}",
    )


def _indices(folder: Path) -> list[Path]:
    return sorted(folder.glob(f"*.safetensors{INDEX_SUFFIX}"))


def _names(index: Path) -> set[str]:
    try:
        return set(load_index(index).values())
    except InvalidInputError:  # an index of nothing places nothing
        return set()


def _shards(folder: Path, index: ShardIndex) -> list[Path]:
    """The files that an index names; all of them are there, and in its folder."""
    names = sorted(set(index.values()))
    for name in names:
        if name in ("", ".", "..") or set(name) & set("/\\\0"):
            _refuse(f"the index names {name[:200]!r}, which is no plain file name")
        if not (folder / name).is_file():
            _refuse(f"the index names {name[:200]!r}, and {folder} has no such file")
    return [folder / name for name in names]


def _read(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except SafetensorError as error:
        raise InvalidInputError(
            f"{path} is not readable as safetensors: {error}",
            code="checkpoint_unreadable",
            fix="give a safetensors file, whole; other formats are to be converted first",
        ) from error


def _refuse(detail: str) -> NoReturn:
    raise InvalidInputError(detail, code="checkpoint_mismatch", fix=SAME_SAVE)
