"""The job's input, where the caller still has it: its digests and its matrices."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

from stiefel_client.shards import shards
from stiefel_client.tensorfile import Array, TensorEntry, TensorFile, decodable
from stiefel_client.verify.report import Verification


class Sources:
    """The opened input files; without a path, a stand-in that knows no tensor.

    Args:
        path: a safetensors file, a folder of them, or ``model.safetensors.index.json``.

    Raises:
        UnreadableFileError: an input is missing or damaged.
    """

    def __init__(self, path: Path | None) -> None:
        self.given = path is not None
        self._files: list[TensorFile] = []
        try:
            for found in shards(path) if path else []:
                self._files.append(TensorFile(found))
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the files."""
        for file in self._files:
            file.close()

    def matrix(self, name: str) -> Array | None:
        """The matrix of a tensor as float64 or complex128; None where it is unknown."""
        for file in self._files:
            entry = file.tensors.get(name)
            if entry is not None and decodable(entry) and len(entry.shape) >= 2:
                return file.rows(entry, 0, entry.matrix_shape[0])
        return None

    def entry(self, name: str) -> TensorEntry | None:
        """The header entry of a tensor; None where it is unknown."""
        return next((f.tensors[name] for f in self._files if name in f.tensors), None)

    def digest(self, name: str) -> str | None:
        """sha256 of a tensor's bytes; None where it is unknown."""
        for file in self._files:
            if name in file.tensors:
                return tensor_digest(file, file.tensors[name])
        return None

    def check_digests(self, promised: Mapping[str, str], outcome: Verification) -> None:
        """Note every input file that is not the one the job read."""
        for file in self._files:
            digest = hashlib.sha256(file.header)
            for entry in file.tensors.values():
                for chunk in file.chunks(entry):
                    digest.update(chunk)
            if promised and digest.hexdigest() not in promised.values():
                outcome.add("input", "input_differs", f"{file.path} is not the file the job read")


def tensor_digest(file: TensorFile, entry: TensorEntry) -> str:
    """sha256 of a tensor's bytes."""
    digest = hashlib.sha256()
    for chunk in file.chunks(entry):
        digest.update(chunk)
    return digest.hexdigest()
