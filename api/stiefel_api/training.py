"""The plan of a training job, from the heads of its uploaded files."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

from stiefel.specs.data_facts import Source
from stiefel.specs.training import TrainingSpec
from stiefel.specs.training_plan import TrainingPlan, plan_training
from stiefel_api.service import Service
from stiefel_jobs.records import Artifact

_KEPT = 2**24  # bytes of files that one request holds on to


class Ranges:
    """Parts of files read within one request: the cells of a batch mostly name the same files."""

    def __init__(self) -> None:
        self._known: dict[tuple[str, int, int], bytes] = {}
        self._size = 0

    def read(self, service: Service, artifact: Artifact, start: int, length: int) -> bytes:
        """Return ``length`` bytes of the artifact from ``start``."""
        key = (artifact.sha256, start, length)
        if key not in self._known:
            data = service.blobs.read(artifact.tenant, artifact.sha256, start, length)
            if self._size + length > _KEPT:
                return data
            self._known[key], self._size = data, self._size + length
        return self._known[key]


def training_plan(
    service: Service, spec: TrainingSpec, files: Mapping[str, Artifact], ranges: Ranges
) -> TrainingPlan:
    """Return what the job would do.

    Raises:
        InvalidInputError: data, network, patterns or weights that the worker would refuse too.
    """
    with service.parsing:
        sources = {
            name: Source(partial(ranges.read, service, artifact), artifact.size)
            for name, artifact in files.items()
        }
        return plan_training(spec, sources)
