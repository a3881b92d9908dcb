"""What lies beside the weights of a checkpoint: brought along, so that the result loads."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path

from stiefel_client.cli.show import say
from stiefel_client.tensorfile import TensorFile

_KINDS = (
    "config.json",
    "generation_config.json",
    "preprocessor_config.json",
    "tokenizer*.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.*",
    "vocab.*",
    "merges.txt",
    "*.model",
)
_FACTOR = ".factor_"  # names of factors hold it


def bring_along(source: Path, target: Path, delivered: Iterable[Path]) -> None:
    """Copy configuration and tokenizer from the input's folder, and say so in one line.

    Args:
        source: folder that the job's input came from.
        target: folder of the result; what lies there stays as it is.
        delivered: the files of the result.
    """
    copied = [file.name for file in _companions(source) if _copied(file, target / file.name)]
    if not copied:
        return
    note = f"copied {', '.join(copied)} from {source}"
    if _in_factors(delivered):
        note += "; the weights are in factors: load them with stiefel.lowrank.load_factored"
    say(note)


def _companions(folder: Path) -> Sequence[Path]:
    found = {file for kind in _KINDS for file in folder.glob(kind) if file.is_file()}
    return sorted(found)


def _copied(file: Path, target: Path) -> bool:
    if target.exists() or target.is_symlink():
        return False
    # Whole or not at all: half a tokenizer would be left alone the next time.
    draft = target.with_name(f"{target.name}.draft")
    shutil.copyfile(file, draft)
    draft.replace(target)
    return True


def _in_factors(files: Iterable[Path]) -> bool:
    for path in files:
        if path.suffix == ".safetensors":
            with TensorFile(path) as file:
                if any(_FACTOR in name for name in file.tensors):
                    return True
    return False
