"""Which files make up a checkpoint: one file, a folder, or an index of shards."""

from __future__ import annotations

import json
from pathlib import Path

from stiefel_client.errors import UnreadableFileError


def index_of(path: Path) -> Path | None:
    """The index that belongs to a path, if there is one."""
    if path.is_dir():
        path = path / "model.safetensors.index.json"
    return path if path.name.endswith(".index.json") and path.is_file() else None


def shards(path: Path) -> list[Path]:
    """The safetensors files that a path stands for.

    Raises:
        UnreadableFileError: no such file, an index that is none, or a folder without any.
    """
    if path.is_dir():
        index = index_of(path)
        found = shards(index) if index else sorted(path.glob("*.safetensors"))
        if not found:
            raise UnreadableFileError(f"{path} holds no .safetensors file")
        return found
    if not path.name.endswith(".index.json"):
        return [path]
    try:
        names = set(json.loads(path.read_bytes())["weight_map"].values())
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UnreadableFileError(
            f"{path} is no index of a sharded checkpoint ({error!r})",
            fix="An index has a weight_map from tensor names to file names",
        ) from error
    unsafe = sorted(str(name) for name in names if Path(str(name)).name != name)
    if unsafe:
        raise UnreadableFileError(f"{path} names {unsafe[0]!r}, which is no plain file name")
    return [path.parent / name for name in sorted(names)]
