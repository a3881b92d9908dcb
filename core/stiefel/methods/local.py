"""Run a method on two folders, without the service: ``run_local(spec, input, output)``."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from stiefel.errors import InvalidInputError, StopRequested
from stiefel.methods import METHODS
from stiefel.methods.protocol import Delivery, Outcome
from stiefel.specs import MethodSpec

BLOCK = 4 * 2**20


@dataclass
class FolderRun:
    """A ``Run`` on local folders, which remembers what the method reported.

    Args:
        input: folder with the staged inputs by name.
        state: folder the method works in; keep it to resume.
        names: the input files to digest for the lineage; default all.
        should_stop: asked at every checkpoint; true stops the run there.
    """

    input: Path
    state: Path
    names: Collection[str] | None = None
    should_stop: Callable[[int], bool] = lambda step: False
    on_progress: Callable[[int, int, str], None] = lambda done, total, unit: None
    reports: list[tuple[int, int, str]] = field(default_factory=list)
    points: list[tuple[int, dict[str, float]]] = field(default_factory=list)
    events: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    checkpoints: list[int] = field(default_factory=list)
    memory_bytes: int = 0

    @property
    def stop_requested(self) -> bool:
        """Whether ``should_stop`` says so at the last checkpoint's step."""
        return self.should_stop(self.checkpoints[-1] if self.checkpoints else 0)

    def __post_init__(self) -> None:
        self.state.mkdir(parents=True, exist_ok=True)

    @cached_property
    def lineage(self) -> Mapping[str, Any]:
        """Digests of the input files; the rest is for the service to know."""
        present = {path.name for path in self.input.iterdir() if path.is_file()}
        names = sorted(present if self.names is None else self.names)
        return {"input": {name: _sha256(self.input / name) for name in names}}

    def progress(self, done: int, total: int, *, unit: str, bytes_done: int = 0) -> None:
        """Remember the report and hand it to ``on_progress``."""
        self.reports.append((done, total, unit))
        self.on_progress(done, total, unit)

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        """Remember the point."""
        self.points.append((step, dict(values)))

    def event(self, type: str, data: Mapping[str, Any]) -> None:  # noqa: A002 - the protocol's word
        """Remember the event."""
        self.events.append((type, dict(data)))

    def expect_memory(self, nbytes: int) -> None:
        """Remember the most that was expected."""
        self.memory_bytes = max(self.memory_bytes, nbytes)

    def checkpoint(self, step: int) -> None:
        """Note the step.

        Raises:
            StopRequested: ``should_stop`` says so.
        """
        self.checkpoints.append(step)
        if self.should_stop(step):
            raise StopRequested(f"stopped at step {step}")


def run_local(
    spec: MethodSpec,
    source: Path,
    target: Path,
    *,
    state: Path | None = None,
    on_progress: Callable[[int, int, str], None] = lambda done, total, unit: None,
) -> Outcome:
    """Run the method that ``spec`` names on the files of ``source``; results go to ``target``.

    Args:
        spec: validated; artifact ids in it are not looked up, the staged names are.
        source: folder that holds every name of ``spec.inputs()``.
        target: folder for the delivered files; created where it does not exist.
        state: where work in progress is kept. A run that ended early resumes when it is
            given the same folder. Default: ``target/.state``, removed at the end.
        on_progress: called with done, total and the unit.

    Raises:
        InvalidInputError: an input file is missing, or the method refuses its input.
    """
    missing = [name for name in spec.inputs() if not (source / name).is_file()]
    if missing:
        raise InvalidInputError(
            f"{source} holds no {missing[0]!r}",
            code="input_missing",
            fix="Put every file that spec.inputs() names into the folder.",
        )
    target.mkdir(parents=True, exist_ok=True)
    work = state or target / ".state"
    run = FolderRun(source, work, names=spec.inputs(), on_progress=on_progress)
    outcome = METHODS[spec.method].run(spec, run)
    for delivery in outcome.deliveries:
        assemble(delivery, target / delivery.name)
    if state is None:
        shutil.rmtree(work)
    return outcome


def assemble(delivery: Delivery, path: Path) -> None:
    """Write the concatenation of a delivery's parts to ``path``."""
    with path.open("wb") as whole:
        for part in delivery.parts:
            with part.open("rb") as file:
                shutil.copyfileobj(file, whole, BLOCK)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
