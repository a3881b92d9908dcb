"""The `stiefel` command as a program: output, exit codes, detaching."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from certified_files import Certified
from stub_service import Answer, problem

JOB = {
    "id": "job_1",
    "status": "queued",
    "method": "project.unitary",
    "timestamps": {"created": "2026-01-01T00:00:00Z"},
}
STIEFEL = [sys.executable, "-c", "from stiefel_client.cli import main; main()"]


def run(*arguments: object, **options) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*STIEFEL, *map(str, arguments)], capture_output=True, text=True, timeout=60, **options
    )


@pytest.fixture
def at(service) -> list[str]:
    return ["--url", service.url, "--key", "stf_test"]


def test_verify_exits_0_and_1_and_tells_why(certified: Certified) -> None:
    good = run("verify", certified.file, "--input", certified.original)
    assert good.returncode == 0, good.stderr
    assert "VERIFIED" in good.stdout
    assert "square.weight" in good.stdout
    data = bytearray(certified.file.read_bytes())
    data[-1] ^= 1
    certified.file.write_bytes(data)
    bad = run("verify", certified.file, "--json")
    assert bad.returncode == 1
    assert json.loads(bad.stdout)["findings"][0]["code"] == "bytes_differ"
    assert run("verify", certified.file, "--certificate", "absent.json").returncode == 2


def test_submit_builds_the_spec_and_prints_the_id(service, at) -> None:
    service.on("POST", "/v1/jobs", Answer(202, JOB))
    done = run(
        *["submit", "art_9", "--method", "factorize.low_rank", "--include", "*.attention.*"],
        *["--param", "rule.by=energy", "-p", "rule.value=0.9", "--label", "team=nlp"],
        *["--seed", "3", "--priority", "high", *at],
    )
    assert (done.returncode, done.stdout) == (0, "job_1\n"), done.stderr
    assert "stiefel watch job_1" in done.stderr
    assert json.loads(service.requests[0].body) == {
        "spec": {
            "method": "factorize.low_rank",
            "input": "art_9",
            "include": ["*.attention.*"],
            "rule": {"by": "energy", "value": 0.9},
            "seed": 3,
        },
        "labels": {"team": "nlp"},
        "priority": "high",
    }


def test_a_sharded_checkpoint_goes_up_with_its_index(service, at, certified: Certified) -> None:
    folder = certified.original.parent
    index = {"weight_map": {"square.weight": "model.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    digests = iter(("art_a", "art_b"))

    def own(request):
        asked = json.loads(request.body)
        return Answer(200, {"id": next(digests), "sha256": asked["sha256"]})

    service.on("POST", "/v1/uploads", own)
    service.on("POST", "/v1/jobs", Answer(202, JOB))
    done = run("submit", folder, "--method", "project.unitary", *at)
    assert done.returncode == 0, done.stderr
    sent = json.loads(service.requests[-1].body)["spec"]["input"]
    assert sent == {"model.safetensors": "art_a", "model.safetensors.index.json": "art_b"}


def test_upload_prints_an_id_for_each_file(service, at, tmp_path: Path) -> None:
    files = [tmp_path / name for name in ("train.npz", "test.npz")]
    for file in files:
        file.write_bytes(file.name.encode())

    def own(request):
        asked = json.loads(request.body)
        named = {"id": f"art_{asked['filename'][:5]}", "name": "an older name"}
        return Answer(200, named | {"sha256": asked["sha256"]})

    service.on("POST", "/v1/uploads", own)
    done = run("upload", *files, *at)
    assert (done.returncode, done.stdout) == (0, "art_train train.npz\nart_test. test.npz\n")
    listed = json.loads(run("upload", *files, "--json", *at).stdout)
    assert [artifact["id"] for artifact in listed] == ["art_train", "art_test."]
    sent = len(service.requests)
    assert_message(run("upload", files[0], tmp_path / "absent", *at), 2, "absent")
    assert_message(run("upload", files[0], tmp_path, *at), 2, "directory")
    assert len(service.requests) == sent


def test_a_training_told_a_file_is_sent_to_upload(service, at, tmp_path: Path) -> None:
    data = tmp_path / "train.npz"
    data.write_bytes(b"numbers")
    for source in (data, "art_9"):
        done = run("submit", source, "-m", "train.dlrt", *at)
        assert_message(done, 2, "stiefel upload")
        assert "data.train" in done.stderr
    assert service.requests == []


@pytest.mark.parametrize(
    ("status", "code"), [("succeeded", 0), ("failed", 1), ("cancelled", 1), ("running", 3)]
)
def test_wait_tells_the_end_by_its_exit_code(service, at, status, code) -> None:
    error = {"code": "non_finite_weights", "detail": "w holds a NaN", "fix": "Repair w"}
    end = JOB | {"status": status, "error": error if status == "failed" else None}
    service.on("POST", "/v1/jobs", Answer(202, JOB))
    service.on("GET", "/v1/jobs/job_1", Answer(200, end))
    done = run("submit", "art_9", "-m", "project.unitary", "--wait", "--timeout", "0.3", *at)
    assert done.returncode == code, done.stderr
    assert ("w holds a NaN" in done.stderr) == (status == "failed")


def test_bad_use_exits_2_and_names_the_field(service, at) -> None:
    refusal = problem(
        *(422, "invalid_spec", "/rule/value: too large"),
        errors=[{"pointer": "/spec/rule/value", "message": "at most 1"}],
        fix="Correct the field",
    )
    service.on("POST", "/v1/jobs", refusal)
    done = run("submit", "art_9", "-m", "factorize.low_rank", *at)
    assert done.returncode == 2
    assert "/spec/rule/value: at most 1" in done.stderr
    assert "Traceback" not in done.stderr
    assert run("submit", "no-such-file", "-m", "x", *at).returncode == 2
    assert run("submit", "art_9", *at).returncode == 2
    assert run("submit", "art_9", "-m", "x", "-p", "rank", *at).returncode == 2
    assert run("jobs", "--url", "ftp://x").returncode == 2
    assert run("frobnicate").returncode == 2


def test_nobody_at_home_exits_1() -> None:
    done = run("jobs", "--url", "http://127.0.0.1:1")
    assert done.returncode == 1
    assert "stiefel serve" in done.stderr


PAGE = Answer(200, b"<html>Welcome</html>", {"Content-Type": "text/html"})
MOVED = Answer(302, b"", {"Location": "https://elsewhere.example/"})


@pytest.mark.parametrize(
    ("command", "answer"),
    [
        (["jobs"], PAGE),
        (["jobs"], Answer(200, ["surprise"])),
        (["jobs"], Answer(200, b"ok")),
        (["keys", "revoke", "key_1"], PAGE),
        (["keys", "revoke", "key_1"], MOVED),
    ],
)
def test_a_url_where_something_else_answers_is_bad_use(service, at, command, answer) -> None:
    service.on("GET", "/v1/jobs", answer)
    service.on("DELETE", "/v1/keys/key_1", answer)
    assert_message(run(*command, *at), 2, "Check the URL")


def test_a_page_in_the_place_of_events_is_bad_use(service, at) -> None:
    for path in ("/v1/jobs/job_1", "/v1/jobs/job_1/events"):
        service.on("GET", path, PAGE)
    assert_message(run("watch", "job_1", "--events", *at), 2, "Check the URL")


@pytest.mark.parametrize("url", ["http://[::1", "http://x:99999", "http://a:b", "http://"])
def test_a_url_that_is_none_is_bad_use(url: str) -> None:
    assert_message(run("jobs", "--url", url), 2, "Give one such as http://")


@pytest.mark.parametrize("key", ["stf_schlüssel", "stf_a\nb"])
def test_a_key_that_no_header_carries_is_bad_use_and_not_repeated(service, key: str) -> None:
    done = run("jobs", "--url", service.url, "--key", key)
    assert_message(done, 2, "STIEFEL_API_KEY")
    assert "stf_" not in done.stderr


def test_a_damaged_key_file_is_told_too(service, own_data_dir: Path) -> None:
    own_data_dir.mkdir()
    (own_data_dir / "api_key").write_bytes(b"\xff\xfe")
    assert_message(run("jobs", "--url", service.url), 2, "api_key in the data folder")


def test_a_file_where_a_folder_belongs_is_bad_use(service, at, tmp_path: Path) -> None:
    taken = tmp_path / "taken"
    taken.write_text("mine")
    for command in (
        ["download", "job_1", "-o", taken],
        ["download", "job_1", "-o", taken / "below"],
        ["checkpoints", "job_1", "-o", taken],
        ["submit", "art_9", "-m", "x", "--download", taken],
    ):
        assert_message(run(*command, *at), 2, "name a folder")
    assert service.requests == []
    assert taken.read_text() == "mine"


def test_a_folder_that_is_not_there_for_an_artifact_is_told(service, at, tmp_path: Path) -> None:
    record = {"id": "art_1", "name": "x", "sha256": "0" * 64, "bytes": 1}
    service.on("GET", "/v1/artifacts/art_1", Answer(200, record))
    service.on("GET", "/v1/artifacts/art_1/content", Answer(200, b"x"))
    done = run("download", "art_1", "-o", tmp_path / "no" / "x", *at)
    assert_message(done, 1, "Check the path")


def assert_message(done: subprocess.CompletedProcess[str], code: int, remedy: str) -> None:
    assert done.returncode == code, done.stderr
    assert remedy in done.stderr
    assert "Traceback" not in done.stderr


def test_ctrl_c_detaches_with_a_hint(service, at) -> None:
    service.on("GET", "/v1/jobs/job_1", Answer(200, JOB | {"status": "running"}))
    process = subprocess.Popen(
        [*STIEFEL, "watch", "job_1", *at],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # A shell that runs the tests in the background has SIGINT ignored, and that is inherited.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    end = time.monotonic() + 60
    while not service.requests and time.monotonic() < end:
        time.sleep(0.02)
    assert service.requests
    time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    _, complaint = process.communicate(timeout=20)
    assert process.returncode == 130
    assert "stiefel watch job_1" in complaint
    assert "Traceback" not in complaint


def test_watching_events_ends_on_time_too(service, at) -> None:
    def alive() -> Iterator[bytes]:
        for _ in range(200):
            yield b": still here\n\n"
            time.sleep(0.1)

    stream = Answer(200, headers={"Content-Type": "text/event-stream"}, live=alive())
    service.on("GET", "/v1/jobs/job_1/events", stream)
    service.on("GET", "/v1/jobs/job_1", Answer(200, JOB | {"status": "running"}))
    done = run("watch", "job_1", "--events", "--timeout", "0.5", *at)
    assert done.returncode == 3, done.stderr
    assert "stiefel watch job_1" in done.stderr


def test_jobs_lists_pages_as_table_and_as_json(service, at) -> None:
    first = {"data": [JOB], "has_more": True, "next": "job_1"}
    second = {"data": [JOB | {"id": "job_2"}], "has_more": False}
    service.on("GET", "/v1/jobs", Answer(200, first), Answer(200, second))
    table = run("jobs", *at)
    assert "job_1" in table.stdout
    assert "job_2" in table.stdout
    assert "project.unitary" in table.stdout
    listed = json.loads(run("jobs", "--json", *at).stdout)
    assert listed[0]["id"] == "job_2"


def test_methods_shows_the_parameters_of_one(service, at) -> None:
    schema = {"properties": {"rank": {"type": "integer", "default": 4, "description": "How many"}}}
    view = {"name": "factorize.low_rank", "schema": schema}
    service.on("GET", "/v1/methods/factorize.low_rank", Answer(200, view))
    done = run("methods", "factorize.low_rank", *at)
    assert "How many (default 4)" in done.stdout


def test_the_client_imports_none_of_the_other_packages() -> None:
    script = (
        "import sys, stiefel_client.cli, stiefel_client.verify; "
        "bad = {'torch', 'stiefel', 'stiefel_jobs', 'stiefel_api', 'stiefel_worker', 'celery'}; "
        "raise SystemExit(str(bad & set(sys.modules)) if bad & set(sys.modules) else 0)"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


def test_the_embedded_key_is_sent_to_this_machine_only(service, own_data_dir: Path) -> None:
    from stiefel_client.locate import find_service

    own_data_dir.mkdir()
    (own_data_dir / "api_key").write_text("stf_embedded\n")
    (own_data_dir / "api_url").write_text(service.url)
    assert find_service() == find_service(service.url)
    assert find_service().key == "stf_embedded"
    assert find_service("https://stiefel.example").key is None
    assert find_service("https://stiefel.example", "mine").key == "mine"
