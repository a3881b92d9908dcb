"""The folder that a child may fill with anything."""

from __future__ import annotations

import os
import threading
from concurrent.futures import Future
from pathlib import Path

import pytest

from stiefel_jobs.blobs import Blobs
from stiefel_jobs.errors import StaleFenceError
from stiefel_jobs.records import Checkpoint, StateFile
from stiefel_worker.checkpoints import Checkpointer
from stiefel_worker.scratch import (
    Scratch,
    UnsafePathError,
    clear_abandoned,
    safe_name,
    safe_path,
)
from stiefel_worker.staging import restore_state
from stiefel_worker.uploads import Ledger, Snapshot, deliver


@pytest.fixture
def scratch(tmp_path: Path) -> Scratch:
    made = Scratch(tmp_path / "scratch" / "job_1-1")
    made.make()
    return made


@pytest.fixture
def blobs(tmp_path: Path) -> Blobs:
    return Blobs(f"file://{tmp_path}/store")


def test_a_scratch_folder_is_private_and_wiped(scratch: Scratch) -> None:
    assert scratch.root.stat().st_mode & 0o777 == 0o700
    (scratch.state / "x").write_bytes(b"x")
    scratch.wipe()
    assert not scratch.root.exists()


def test_only_the_scratch_of_the_dead_is_cleared(scratch: Scratch) -> None:
    dead = scratch.root.with_name("job_2-1")
    (dead / "state").mkdir(parents=True)
    assert clear_abandoned(scratch.root.parent) == ["job_2-1"]
    assert scratch.state.is_dir()
    assert not dead.exists()
    assert clear_abandoned(scratch.root / "nowhere") == []


def test_plain_files_open(scratch: Scratch) -> None:
    (scratch.state / "body").write_bytes(b"bytes")
    with scratch.open(scratch.state / "body") as file:
        assert file.read() == b"bytes"


def lead_outside(scratch: Scratch) -> Path:
    return Path("/etc/passwd")


def climb(scratch: Scratch) -> Path:
    outside = scratch.root.parent / "secret"
    outside.write_bytes(b"x")
    return scratch.state / ".." / ".." / "secret"


def link(scratch: Scratch) -> Path:
    (scratch.state / "link").symlink_to("/etc/passwd")
    return scratch.state / "link"


def link_folder(scratch: Scratch) -> Path:
    (scratch.state / "folder").symlink_to("/etc")
    return scratch.state / "folder" / "passwd"


def pipe(scratch: Scratch) -> Path:
    os.mkfifo(scratch.state / "pipe")
    return scratch.state / "pipe"


def folder(scratch: Scratch) -> Path:
    return scratch.state


@pytest.mark.parametrize("trick", [lead_outside, climb, link, link_folder, pipe, folder])
def test_nothing_else_opens(scratch: Scratch, trick: object) -> None:
    assert callable(trick)
    path = trick(scratch)
    with pytest.raises(UnsafePathError), scratch.open(path):
        pytest.fail("opened")


@pytest.mark.parametrize("name", ["", ".", "..", ".hidden", "a/b", "a\x00", "a b", "x" * 300])
def test_unsafe_names_are_refused(name: str) -> None:
    with pytest.raises(UnsafePathError):
        safe_name(name)


@pytest.mark.parametrize("path", ["../x", "/etc/passwd", "a/../../b", "a/.b"])
def test_unsafe_paths_are_refused(path: str) -> None:
    with pytest.raises(UnsafePathError):
        safe_path(path)


def grow(scratch: Scratch, data: bytes) -> dict[str, int]:
    with (scratch.state / "body.bin").open("ab") as file:
        file.write(data)
    return {"body.bin": (scratch.state / "body.bin").stat().st_size}


def test_a_checkpoint_uploads_only_what_was_added(scratch: Scratch, blobs: Blobs) -> None:
    ledger = Ledger(blobs, "tenant")
    first = ledger.upload(Snapshot(scratch, 1, grow(scratch, b"one")))
    later = Snapshot(scratch, 2, grow(scratch, b"two"))
    grow(scratch, b"not yet")
    second = ledger.upload(later)
    assert [s.size for s in second[0].segments] == [3, 3]
    assert second[0].segments[0] == first[0].segments[0]
    assert second[0].size == 6
    assert ledger.upload(later) == second


def test_a_restored_state_has_exactly_the_checkpoints_bytes(
    scratch: Scratch, blobs: Blobs, tmp_path: Path
) -> None:
    ledger = Ledger(blobs, "tenant")
    for data in (b"one", b"two"):
        files = ledger.upload(Snapshot(scratch, 1, grow(scratch, data)))
    checkpoint = Checkpoint(1, 2, 1, 6, tuple(files), 0.0)
    fresh = Scratch(tmp_path / "scratch" / "job_1-2")
    fresh.make()
    restore_state(blobs, "tenant", checkpoint, fresh)
    assert [(p.name, p.read_bytes()) for p in fresh.state.iterdir()] == [("body.bin", b"onetwo")]
    resumed = Ledger.resume(blobs, "tenant", checkpoint)
    third = resumed.upload(Snapshot(fresh, 3, grow(fresh, b"three")))
    assert third[0].segments[:2] == files[0].segments


def test_a_damaged_size_does_not_restore(scratch: Scratch, blobs: Blobs) -> None:
    good = Ledger(blobs, "tenant").upload(Snapshot(scratch, 1, grow(scratch, b"one")))[0]
    bad = StateFile("body.bin", 4, good.segments)
    with pytest.raises(OSError, match="another size"):
        restore_state(blobs, "tenant", Checkpoint(1, 1, 1, 4, (bad,), 0.0), scratch)


def test_a_file_that_shrinks_breaks_the_protocol(scratch: Scratch, blobs: Blobs) -> None:
    ledger = Ledger(blobs, "tenant")
    ledger.upload(Snapshot(scratch, 1, grow(scratch, b"long")))
    (scratch.state / "body.bin").write_bytes(b"sh")
    with pytest.raises(UnsafePathError, match="shrank"):
        ledger.upload(Snapshot(scratch, 2, {"body.bin": 2}))


def test_a_delivery_is_the_concatenation_of_its_parts(scratch: Scratch, blobs: Blobs) -> None:
    (scratch.state / "a").write_bytes(b"head")
    (scratch.state / "b").write_bytes(b"body")
    parts = [str(scratch.state / "a"), str(scratch.state / "b")]
    (artifact,) = deliver(
        blobs, "tenant", scratch, [{"name": "x.bin", "kind": "text", "parts": parts}]
    )
    assert b"".join(blobs.open_range("tenant", artifact.sha256)) == b"headbody"
    assert (artifact.name, artifact.size) == ("x.bin", 8)


class Later:
    """An executor whose work is done when the test says so."""

    def __init__(self) -> None:
        self.jobs: list[tuple[Future[None], object, Snapshot]] = []

    def submit(self, action: object, snapshot: Snapshot) -> Future[None]:
        future: Future[None] = Future()
        self.jobs.append((future, action, snapshot))
        return future


def test_checkpoints_are_overtaken_while_one_is_uploaded(scratch: Scratch) -> None:
    courier, kept = Later(), []
    checkpointer = Checkpointer(scratch, courier, lambda s: kept.append(s.step))  # type: ignore[arg-type]
    for step in (1, 2, 3, 4):
        checkpointer.offer(step, grow(scratch, b"x"))
        checkpointer.advance(at_once=True)
    assert [snapshot.step for _, _, snapshot in courier.jobs] == [1]
    courier.jobs[0][0].set_result(None)
    checkpointer.advance(at_once=True)
    assert [snapshot.step for _, _, snapshot in courier.jobs] == [1, 4]
    assert not checkpointer.settled
    courier.jobs[1][0].set_exception(ConnectionError("the store is away"))
    checkpointer.advance(at_once=True)
    assert checkpointer.settled


def test_a_lost_fence_surfaces(scratch: Scratch) -> None:
    courier = Later()
    checkpointer = Checkpointer(scratch, courier, lambda _: None)  # type: ignore[arg-type]
    checkpointer.offer(1, grow(scratch, b"x"))
    checkpointer.advance()
    courier.jobs[0][0].set_exception(StaleFenceError("moved on"))
    with pytest.raises(StaleFenceError):
        checkpointer.advance()


def test_a_checkpoint_whose_file_is_gone_is_overtaken(scratch: Scratch) -> None:
    checkpointer = Checkpointer(scratch, Later(), lambda _: None)  # type: ignore[arg-type]
    checkpointer.offer(1, {"gone.bin": 3})
    assert checkpointer.settled


def test_a_snapshot_outlives_its_files(scratch: Scratch, blobs: Blobs) -> None:
    snapshot = Snapshot(scratch, 1, grow(scratch, b"kept"))
    (scratch.state / "body.bin").unlink()
    files = Ledger(blobs, "tenant").upload(snapshot)
    assert files[0].size == 4
    snapshot.close()
    assert threading.active_count() < 50
