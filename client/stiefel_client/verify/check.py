"""Verification: every byte against the certificate's digests, every claim against the numbers."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from stiefel_client.errors import UnreadableFileError
from stiefel_client.tensorfile import TensorEntry, TensorFile
from stiefel_client.verify.certificate import (
    Certificate,
    CertifiedTensor,
    certificate_beside,
    certified_files,
    read_certificate,
)
from stiefel_client.verify.claims import check_claims, check_factors
from stiefel_client.verify.report import TensorCheck, Verification
from stiefel_client.verify.sources import Sources, tensor_digest

HASHERS = min(4, os.cpu_count() or 1)


def verify(
    target: str | Path,
    *,
    certificate: str | Path | None = None,
    original: str | Path | None = None,
) -> Verification:
    """Check a safetensors file, an index or a folder against its certificate, offline.

    Args:
        target: what to check.
        certificate: default ``certificate.json`` beside the target.
        original: the job's input; with it the distances are recomputed too. Needs memory
            for a few copies of the largest converted matrix in float64; without it, memory
            is a few blocks of 32 MiB and the Gram matrix of a matrix's smaller side.

    Returns:
        What was found. A file that is damaged is a finding, not an error.

    Raises:
        UnreadableFileError: no certificate, or the original cannot be read.

    Cost: one read for the digests, a second for the claims of converted matrices; n p^2
        operations for the defect of an n x p matrix, n p^2 more with ``original`` for the SVD.
    """
    begun = time.perf_counter()
    target = Path(target)
    found = read_certificate(Path(certificate) if certificate else certificate_beside(target))
    outcome = Verification()
    with Sources(Path(original) if original else None) as sources:
        sources.check_digests(found.inputs, outcome)
        opened: dict[str, TensorFile] = {}
        try:
            for name, path in certified_files(target, found).items():
                _check_file(name, path, found, outcome, opened)
            for name, file in opened.items():
                check_claims(file, _rows(found, name), sources, outcome, rotation=found.rotation)
            check_factors(opened, found.tensors, sources, outcome)
        finally:
            for file in opened.values():
                file.close()
    outcome.seconds = time.perf_counter() - begun
    return outcome


def _rows(certificate: Certificate, name: str) -> list[CertifiedTensor]:
    return [row for row in certificate.tensors if row.file == name]


def _check_file(
    name: str,
    path: Path,
    certificate: Certificate,
    outcome: Verification,
    opened: dict[str, TensorFile],
) -> None:
    """Digests of one file; it stays open for the claims when its header is the certified one."""
    outcome.files.append(path)
    try:
        file = TensorFile(path)
    except UnreadableFileError as error:
        outcome.add("file", "unreadable", error.detail)
        return
    promised = certificate.files[name]
    if hashlib.sha256(file.header).hexdigest() != promised.header_sha256:
        outcome.add("header", "header_differs", f"{path}: the header is not the certified one")
    if file.size != promised.bytes:
        outcome.add("file", "size_differs", f"{path}: {file.size} bytes, not {promised.bytes}")
    outcome.bytes_read += len(file.header)
    rows = {row.name: row for row in _rows(certificate, name)}
    _check_names(path, file.tensors, rows, outcome)
    known = [entry for entry in file.tensors.values() if entry.name in rows]
    # Reading and hashing release the interpreter: two threads nearly halve the time.
    with ThreadPoolExecutor(HASHERS) as pool:
        digests = pool.map(lambda entry: tensor_digest(file, entry), known)
        for entry, digest in zip(known, digests, strict=True):
            _check_tensor(entry, digest, rows[entry.name], outcome)
    opened[name] = file


def _check_names(
    path: Path, present: Iterable[str], certified: Iterable[str], outcome: Verification
) -> None:
    present, certified = set(present), set(certified)
    for name in sorted(certified - present):
        outcome.add(name, "tensor_missing", f"{path}: certified, but not in the file")
    for name in sorted(present - certified):
        outcome.add(name, "tensor_uncertified", f"{path}: in the file, but not certified")


def _check_tensor(
    entry: TensorEntry, digest: str, row: CertifiedTensor, outcome: Verification
) -> None:
    if (entry.dtype, entry.shape) != (row.dtype, row.shape):
        outcome.add(
            entry.name,
            "form_differs",
            f"{entry.dtype} {list(entry.shape)}, certified {row.dtype} {list(row.shape)}",
        )
    outcome.bytes_read += entry.end - entry.start
    if digest != row.sha256:
        outcome.add(entry.name, "bytes_differ", "its bytes are not the certified ones")
        return
    check = TensorCheck(entry.name, row.file, row.role, entry.dtype, entry.shape)
    outcome.tensors.append(check)
