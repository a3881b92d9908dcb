"""What the sandbox lets a child read, by folder."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

import stiefel
from stiefel_jobs.settings import Settings
from stiefel_worker.readable import readable
from stiefel_worker.shop import private_folders


def covers(granted: list[Path], path: Path) -> bool:
    return any(path.is_relative_to(tree.resolve()) for tree in granted)


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder on Python's path with code, a key, and the service's data two levels down."""
    for name in ("code/helper.py", "code/.ssh/id", "code/var/data/stiefel.db", "code/var/log"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("x")
    monkeypatch.setattr(sys, "path", [str(tmp_path / "code"), *sys.path])
    return tmp_path / "code"


def test_a_folder_of_code_is_readable_but_for_the_data_in_it(home: Path) -> None:
    (home / "shortcut").symlink_to(home / "var" / "data")
    (home / "up").symlink_to("/")
    granted = readable([str(home / "var" / "data")])
    assert covers(granted, home / "helper.py")
    assert covers(granted, home / "var" / "log")
    assert not covers(granted, home / "var" / "data" / "stiefel.db")
    assert not covers(granted, Path("/etc/shadow"))


def test_the_current_folder_is_not_readable_for_being_that(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(home)
    granted = readable([])
    assert not covers(granted, home / ".ssh" / "id")
    assert covers(granted, Path(stiefel.__file__))
    assert covers(granted, Path(os.__file__))


def test_every_place_of_the_service_is_private(tmp_path: Path) -> None:
    settings = Settings(
        data_dir=tmp_path / "data",
        scratch_dir=tmp_path / "fast",
        database_url=f"sqlite:///{tmp_path}/db/jobs.db",
        store_url=f"file://{tmp_path}/sto%20re",
    )
    names = ("data", "db", "fast", "sto re")
    assert private_folders(settings) == [str(tmp_path / name) for name in names]
    far = Settings(
        data_dir=tmp_path, database_url="postgresql://u@h/d", store_url="s3://bucket/prefix"
    )
    assert private_folders(far) == [str(tmp_path), str(tmp_path / "scratch")]
