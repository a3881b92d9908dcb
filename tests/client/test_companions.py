"""What `stiefel submit FOLDER --download OUT` brings along from the folder."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save
from stub_service import Answer, StubService
from test_command_line import JOB, run

BESIDE = (
    *("config.json", "generation_config.json", "preprocessor_config.json", "merges.txt"),
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
    *("vocab.txt", "spiece.model", "chat_template.jinja"),
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A checkpoint as the Hub has it, with what else may lie there."""
    made = tmp_path / "checkpoint"
    made.mkdir()
    (made / "model.safetensors").write_bytes(save({"a.weight": np.eye(2)}))
    for name in (*BESIDE, "README.md", "pytorch_model.bin"):
        (made / name).write_text(f"the input's {name}")
    (made / "other.model").mkdir()
    return made


def converted(service: StubService, files: dict[str, bytes]) -> None:
    """Have the service take one file and answer ``files``."""

    def own(request):
        return Answer(200, {"id": "art_1", "sha256": json.loads(request.body)["sha256"]})

    described = {}
    for name, content in files.items():
        digest = hashlib.sha256(content).hexdigest()
        described[name] = {"artifact": "art_2", "sha256": digest, "bytes": len(content)}
        service.on("GET", f"/v1/jobs/job_1/files/{name}", Answer(200, content))
    end = JOB | {"status": "succeeded", "result": {"files": described, "metrics": {}}}
    service.on("POST", "/v1/uploads", own)
    service.on("POST", "/v1/jobs", Answer(202, JOB))
    service.on("GET", "/v1/jobs/job_1", Answer(200, end))


@pytest.fixture
def at(service: StubService) -> list[str]:
    return ["--method", "project.unitary", "--url", service.url, "--key", "stf_test"]


def test_configuration_and_tokenizer_come_along(service, at, folder: Path, tmp_path: Path) -> None:
    converted(service, {"model.safetensors": save({"a.weight": np.ones((2, 2))})})
    target = tmp_path / "out"
    done = run("submit", folder, "--download", target, *at)
    assert done.returncode == 0, done.stderr
    assert {file.name for file in target.iterdir()} == {"model.safetensors", *BESIDE}
    assert (target / "config.json").read_text() == "the input's config.json"
    (line,) = [line for line in done.stderr.splitlines() if "copied" in line]
    assert all(name in line for name in BESIDE)
    assert "load_factored" not in done.stderr
    again = run("submit", folder, "--download", target, *at)
    assert again.returncode == 0, again.stderr
    assert "copied" not in again.stderr


def test_what_lies_in_the_target_stays(service, at, folder: Path, tmp_path: Path) -> None:
    weights = save({"a.weight": np.ones((2, 2))})
    converted(service, {"model.safetensors": weights, "config.json": b"delivered"})
    target = tmp_path / "out"
    target.mkdir()
    (target / "vocab.txt").symlink_to(tmp_path / "nowhere")
    done = run("submit", folder, "--download", target, *at)
    assert done.returncode == 0, done.stderr
    assert (target / "config.json").read_bytes() == b"delivered"
    assert (target / "model.safetensors").read_bytes() == weights
    assert not (tmp_path / "nowhere").exists()
    assert (target / "merges.txt").exists()


def test_factors_are_sent_to_what_loads_them(service, at, folder: Path, tmp_path: Path) -> None:
    factors = {"a.factor_out": np.ones((2, 1)), "a.factor_in": np.ones((1, 2))}
    converted(service, {"model.safetensors": save(factors)})
    done = run("submit", folder, "--download", tmp_path / "out", *at)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out" / "config.json").exists()
    assert "stiefel.lowrank.load_factored" in done.stderr


def test_a_file_alone_brings_nothing(service, at, folder: Path, tmp_path: Path) -> None:
    converted(service, {"model.safetensors": save({"a.weight": np.ones((2, 2))})})
    done = run("submit", folder / "model.safetensors", "--download", tmp_path / "out", *at)
    assert done.returncode == 0, done.stderr
    assert [file.name for file in (tmp_path / "out").iterdir()] == ["model.safetensors"]
