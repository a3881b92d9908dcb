"""The plan of a training job, from the heads of its uploaded files."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

from stiefel.specs.data_facts import Source
from stiefel.specs.training import TrainingSpec
from stiefel.specs.training_plan import TrainingPlan, plan_training
from stiefel_api.service import Service
from stiefel_jobs.records import Artifact


def training_plan(
    service: Service, spec: TrainingSpec, files: Mapping[str, Artifact]
) -> TrainingPlan:
    """Return what the job would do.

    Raises:
        InvalidInputError: data, network, patterns or weights that the worker would refuse too.
    """
    with service.parsing:
        return plan_training(spec, {name: _source(service, file) for name, file in files.items()})


def _source(service: Service, artifact: Artifact) -> Source:
    return Source(partial(service.blobs.read, artifact.tenant, artifact.sha256), artifact.size)
