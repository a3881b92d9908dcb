"""What commands tell a person: where a service is found, and what could not be measured."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from pathlib import Path

import pytest
from stub_service import Answer
from test_command_line import JOB, run
from typer.testing import CliRunner

from stiefel_client.cli import service as commands
from stiefel_client.cli.files import show_verification
from stiefel_client.cli.main import app
from stiefel_client.verify import Claim, TensorCheck, Verification


class Started:
    """A supervisor whose service is up at once and then stopped."""

    url = "http://127.0.0.1:8765"

    def __init__(self, folder: Path, **options: object) -> None: ...

    def run(self, ready: Callable[[], None]) -> int:
        ready()
        return 0


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[str]]:
    monkeypatch.setattr(commands, "Supervisor", Started)

    def printed(*arguments: object) -> list[str]:
        done = CliRunner().invoke(app, ["serve", *map(str, arguments)])
        assert done.exit_code == 0, done.output
        return done.output.splitlines()

    return printed


@pytest.mark.parametrize("by_variable", [False, True])
def test_a_folder_elsewhere_is_found_by_the_line_that_serve_prints(
    serve, service, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, by_variable: bool
) -> None:
    folder = tmp_path / ("a folder with a long name " * 6).strip()
    folder.mkdir()
    monkeypatch.delenv("STIEFEL_DATA_DIR")
    if by_variable:
        monkeypatch.setenv("STIEFEL_DATA_DIR", str(folder))
    lines = serve(*([] if by_variable else ["--data-dir", folder]))
    assert not any("on its own" in line for line in lines)
    (setting,) = (line for line in lines if line.startswith("export "))
    name, _, value = shlex.split(setting)[1].partition("=")

    (folder / "api_url").write_text(service.url)
    (folder / "api_key").write_text("stf_of_the_folder")
    service.on("GET", "/v1/jobs", Answer(200, {"data": [JOB], "has_more": False}))
    monkeypatch.setenv(name, value)
    done = run("jobs")
    assert "job_1" in done.stdout, done.stderr
    assert "stf_of_the_folder" in str(service.requests[0].headers)


def test_the_default_folder_needs_no_setting(
    serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("STIEFEL_DATA_DIR")
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    for arguments in ([], ["--data-dir", tmp_path / "stiefel"]):
        lines = serve(*arguments)
        assert any("on its own" in line for line in lines)
        assert not any("export" in line for line in lines)


@pytest.mark.parametrize(
    ("name", "word"), [("rank", "not measurable"), ("distance_to_optimum", "not unique")]
)
def test_a_figure_that_is_missing_is_told_by_its_cause(capsys, name: str, word: str) -> None:
    claim = Claim(name, 3.0, None, True)
    check = TensorCheck("a.weight", "model.safetensors", "merged", "F16", (4, 4), (claim,))
    show_verification(Verification(files=[Path("model.safetensors")], tensors=[check]))
    shown = capsys.readouterr().out
    assert [text for text in ("not measurable", "not unique") if text in shown] == [word]
