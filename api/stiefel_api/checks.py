"""A job never exists invalid: the spec, its files' headers and the plan, before the submit.

Headers are read by byte range from the store, so that a pattern that matches nothing is told in
the answer to the request and not by a failed job.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

from stiefel.errors import StiefelError
from stiefel.specs import MethodSpec, parse_spec
from stiefel.specs.conversion import ConversionSpec
from stiefel.specs.header import TensorTable, read_table
from stiefel.specs.plan import Plan, plan
from stiefel.specs.shards import MAX_INDEX, ShardIndex, read_index
from stiefel.specs.training import TrainingSpec
from stiefel.specs.training_plan import TrainingPlan
from stiefel_api.problems import Problem, of_input
from stiefel_api.service import Service
from stiefel_api.training import Ranges, training_plan
from stiefel_api.views.history import PlanView, TrainingPlanView
from stiefel_jobs.errors import NotFoundError
from stiefel_jobs.records import Artifact
from stiefel_jobs.store import artifacts
from stiefel_jobs.store.workers import largest_share, list_workers, too_large

_LISTED = 1000
#: A checkpoint of many shards has few tensors in each; all of them together stay parseable.
_MAX_TENSORS = 200_000


@dataclass(frozen=True)
class Checked:
    """A request that can be carried out."""

    spec: MethodSpec
    plan: Plan
    queue: str
    training: TrainingPlan | None = None
    doubts: tuple[str, ...] = ()  # why no worker takes it now

    @property
    def peak_memory_bytes(self) -> int:
        """Estimated memory of the worker's processes, of one GPU; 0 where it is not known."""
        if self.training is None:
            return self.plan.peak_memory_bytes
        devices = getattr(self.spec, "devices", 1) if self.queue == "cuda" else 1
        return self.training.peak_memory_bytes // int(devices)

    def view(self, *, listed: int = _LISTED) -> PlanView:
        """Show the plan, with at most ``listed`` tensors of each kind."""
        planned = self.plan.to_dict(limit=listed) | {"peak_memory_bytes": self.peak_memory_bytes}
        training = self.training.to_dict(limit=listed) if self.training else None
        return PlanView(
            method=self.spec.method,
            spec=self.spec.model_dump(mode="json"),
            queue=self.queue,
            tensors_selected=planned.pop("selected"),
            tensors_skipped=planned.pop("skipped"),
            warnings=[*self.doubts, *(self.training.doubts if self.training else ())],
            training=TrainingPlanView.model_validate(training) if training else None,
            **planned,
        )


class Headers:
    """Headers read within one request: the cells of a batch mostly name the same files."""

    def __init__(self) -> None:
        self._known: dict[str, TensorTable] = {}
        self.ranges = Ranges()

    def table(self, artifact: Artifact, read: Callable[[], TensorTable]) -> TensorTable:
        """Return the artifact's table, reading it where it is not known yet."""
        if artifact.sha256 not in self._known:
            table = read()
            if (
                len(table.tensors) + sum(len(t.tensors) for t in self._known.values())
                > _MAX_TENSORS
            ):
                self._known.clear()
            self._known[artifact.sha256] = table
        return self._known[artifact.sha256]


def check(
    service: Service,
    tenant: str,
    data: Mapping[str, Any],
    *,
    device: Literal["cpu", "cuda"] | None,
    headers: Headers | None = None,
    admit: bool = True,
) -> Checked:
    """Validate a spec against the files it names, and its memory against the workers.

    Args:
        service: where files and workers are known.
        tenant: whose files.
        data: the spec as it was sent.
        device: the queue, if the caller chose one.
        headers: what has been read of this tenant's files already.
        admit: refuse what is too large for every worker known; otherwise the plan warns.

    Raises:
        Problem: 404 for an artifact that is unknown, foreign or expired; 422 for the rest, with
            a pointer into the request's body.
    """
    headers = headers or Headers()
    try:
        spec = parse_spec(data)
    except StiefelError as error:
        raise of_input(error, pointer="/spec") from error
    files = _find_inputs(service, tenant, spec)
    try:
        planned = _plan(service, spec, files, headers)
        training = None
        if isinstance(spec, TrainingSpec):
            training = training_plan(service, spec, files, headers.ranges)
    except StiefelError as error:
        raise of_input(error, pointer="/spec") from error
    checked = Checked(spec, planned, device or _queue(service, spec), training)
    share = largest_share(service.db, checked.queue)
    if share is None and not list_workers(service.db, queue=checked.queue):
        return replace(checked, doubts=(_unserved(checked.queue),))
    if share is None or checked.peak_memory_bytes <= share:
        return checked
    misfit = too_large(checked.peak_memory_bytes, share)
    if admit:
        raise Problem(422, misfit["code"], misfit["detail"], fix=misfit["fix"])
    return replace(checked, doubts=(misfit["detail"],))


def _unserved(queue: str) -> str:
    return f"no worker serves the queue {queue} at present: the job would wait for one"


def _find_inputs(service: Service, tenant: str, spec: MethodSpec) -> dict[str, Artifact]:
    found: dict[str, Artifact] = {}
    for name, artifact_id in spec.inputs().items():
        try:
            found[name] = artifacts.get_artifact(service.db, tenant=tenant, artifact_id=artifact_id)
        except NotFoundError as error:
            raise Problem(
                404,
                error.code,
                error.detail,
                fix="Upload the file first: PUT /v1/uploads/{filename} answers its id.",
                errors=[{"pointer": _pointer(spec, name), "message": error.detail}],
            ) from error
    return found


def _pointer(spec: MethodSpec, name: str) -> str:
    if not isinstance(spec, ConversionSpec):
        return "/spec"
    return "/spec/input" if isinstance(spec.input, str) else f"/spec/input/{name}"


def _plan(
    service: Service, spec: MethodSpec, files: Mapping[str, Artifact], headers: Headers
) -> Plan:
    if not isinstance(spec, ConversionSpec):
        return plan(spec, {})
    with service.parsing:
        tables: dict[str, TensorTable] = {}
        for name in spec.weight_files():
            read = partial(_table, service, spec, name, files[name])
            tables[name] = headers.table(files[name], read)
            if sum(len(table.tensors) for table in tables.values()) > _MAX_TENSORS:
                raise Problem(
                    422,
                    "too_many_tensors",
                    f"The files hold more than {_MAX_TENSORS:,} tensors in all.",
                    fix="Convert the checkpoint in several jobs.",
                    errors=[{"pointer": "/spec/input", "message": "too many tensors"}],
                )
        return plan(spec, tables, index=_index(service, spec, files))


def _table(service: Service, spec: MethodSpec, name: str, artifact: Artifact) -> TensorTable:
    read = partial(service.blobs.read, artifact.tenant, artifact.sha256)
    try:
        return read_table(read, artifact.size)
    except StiefelError as error:
        raise of_input(error, pointer=_pointer(spec, name)) from error


def _index(
    service: Service, spec: ConversionSpec, files: Mapping[str, Artifact]
) -> ShardIndex | None:
    name = spec.index_file()
    if name is None:
        return None
    artifact = files[name]
    length = min(artifact.size, MAX_INDEX + 1)
    try:
        return read_index(service.blobs.read(artifact.tenant, artifact.sha256, 0, length))
    except StiefelError as error:
        raise of_input(error, pointer=_pointer(spec, name)) from error


def _queue(service: Service, spec: MethodSpec) -> str:
    """Choose a queue: what the spec says; ``auto`` means a GPU where one is at work."""
    device = getattr(spec, "device", "cpu")
    if device != "auto":
        return str(device)
    return "cuda" if list_workers(service.db, queue="cuda") else "cpu"
