"""How the program starts, and what it may cost before it has done anything."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import httpx
from house import House, running

from stiefel_jobs.settings import Settings
from stiefel_jobs.store import keys

ROOT = Path(__file__).parents[2]


def command(*arguments: str, **settings: Any) -> subprocess.CompletedProcess[str]:
    environment = {k: v for k, v in os.environ.items() if not k.startswith("STIEFEL_")}
    environment |= {f"STIEFEL_{name.upper()}": str(value) for name, value in settings.items()}
    return subprocess.run(
        [sys.executable, "-m", "stiefel_api", *arguments],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
    )


def resident_bytes(pid: int, entry: str = "VmRSS") -> int:
    """Return what a process holds in memory, now or (``VmHWM``) at its peak."""
    status = Path(f"/proc/{pid}/status").read_text()
    line = next(line for line in status.splitlines() if line.startswith(entry))
    return int(line.split()[1]) * 1024


def test_a_started_service_has_no_torch_and_stays_small(tmp_path: Path) -> None:
    with running(tmp_path) as house, house.client() as client:
        assert client.get("/v1/jobs").status_code == 200
        assert client.get("/openapi.json").status_code == 200
        time.sleep(1)
        maps = Path(f"/proc/{house.pid}/maps").read_text()
        assert "torch" not in maps
        assert "numba" not in maps
        assert resident_bytes(house.pid) < 200e6


def test_a_file_passes_through_without_staying_in_memory(tmp_path: Path) -> None:
    size = 256 * 2**20
    block = os.urandom(2**20)
    with running(tmp_path) as house, house.client() as client:
        client.put("/v1/uploads/small.bin", content=block)
        client.get("/v1/jobs")
        before = resident_bytes(house.pid, "VmHWM")
        blocks = (block for _ in range(size // len(block)))
        artifact = client.put("/v1/uploads/big.bin", content=blocks).json()
        assert artifact["bytes"] == size
        with client.stream("GET", artifact["links"]["content"]) as answer:
            assert sum(map(len, answer.iter_raw())) == size
        assert resident_bytes(house.pid, "VmHWM") - before < 100e6


def test_building_the_application_imports_neither_torch_nor_celery(tmp_path: Path) -> None:
    code = (
        "import sys; from stiefel_api.app import create_app; "
        "from stiefel_jobs.settings import Settings; create_app(Settings()).openapi(); "
        "print(sorted({m.split('.')[0] for m in sys.modules} & {'torch', 'celery', 'kombu'}))"
    )
    environment = os.environ | {"STIEFEL_DATA_DIR": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=60
    )
    assert done.stdout.strip() == "[]", done.stderr


def test_the_first_key_is_written_for_its_owner_and_shown_once(tmp_path: Path) -> None:
    for start in range(2):
        with running(tmp_path) as house:
            path = house.settings.data_dir / "api_key"
            secret = path.read_text().strip()
            assert stat.S_IMODE(path.stat().st_mode) == 0o600
            assert stat.S_IMODE(house.settings.data_dir.stat().st_mode) == 0o700
            log = (tmp_path / "log").read_text()
            assert (secret in log) == (start == 0)
            with house.client(secret) as client:
                assert client.get("/v1/whoami").json()["tenant"] == "default"


def test_a_key_file_of_another_database_gives_way(tmp_path: Path) -> None:
    path = tmp_path / "data" / "api_key"
    path.parent.mkdir()
    path.write_text("stf_of_a_database_that_is_gone\n")
    with running(tmp_path) as house:
        secret = path.read_text().strip()
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        with house.client(secret) as client:
            assert client.get("/v1/whoami").json()["tenant"] == "default"
        for key in keys.list_keys(house.db, tenant="default"):
            keys.revoke_key(house.db, tenant="default", key_id=key.id)
    assert path.with_name("api_key.old").read_text() == "stf_of_a_database_that_is_gone\n"
    assert f"it is in {path}.old now" in (tmp_path / "log").read_text()
    with running(tmp_path):
        assert path.read_text().strip() == secret, "revoked keys are not lost ones"


def test_it_listens_to_others_only_with_a_key(tmp_path: Path) -> None:
    database = f"sqlite:///{tmp_path}/other.db"
    settings = {
        "data_dir": tmp_path,
        "database_url": database,
        "broker_url": "redis://127.0.0.1:1/0",
        "api_host": "0.0.0.0",
    }
    assert command("migrate", **settings).returncode == 0
    refused = command(**settings)
    assert refused.returncode == 2
    assert "create-key" in refused.stderr
    insecure = command(**settings, insecure=True)
    assert insecure.returncode == 2
    assert "open to everyone" in insecure.stderr
    secret = command("create-key", "--tenant", "acme", "--scope", "jobs:read", **settings)
    assert secret.stdout.startswith("stf_")
    # Now it would serve: a port that is taken proves that it went on.
    with running(tmp_path / "other") as other:
        taken = command(**settings, api_port=other.settings.api_port)
    assert "address already in use" in taken.stdout + taken.stderr


def test_keys_may_be_switched_off_on_loopback(tmp_path: Path) -> None:
    with running(tmp_path, insecure=True) as house:
        who = httpx.get(f"{house.url}/v1/whoami").json()
        assert (who["tenant"], who["key"]) == ("default", None)
        bad = httpx.get(f"{house.url}/v1/whoami", headers={"Authorization": "Bearer x"})
        assert bad.status_code == 401


def test_the_committed_description_is_current(embedded: House) -> None:
    """Refresh it with ``python -m stiefel_api openapi > docs/openapi.json``."""
    committed = json.loads((ROOT / "docs" / "openapi.json").read_text(encoding="utf-8"))
    assert httpx.get(f"{embedded.url}/openapi.json").json() == committed


def test_everything_in_the_description_is_described(embedded: House) -> None:
    described = httpx.get(f"{embedded.url}/openapi.json").json()
    assert described["openapi"].startswith("3.1")
    bare = []
    for path, operations in described["paths"].items():
        for method, operation in operations.items():
            assert operation["summary"], (method, path)
            if path.startswith("/v1"):
                assert operation["security"] == [{"key": []}]
                for status in ("401", "500"):
                    content = operation["responses"][status]["content"]
                    assert "application/problem+json" in content
            for parameter in operation.get("parameters", []):
                if not parameter.get("description"):
                    bare.append((path, parameter["name"]))
    for name, schema in described["components"]["schemas"].items():
        if name.endswith("View") or name.startswith("New"):
            bare += [
                (name, field)
                for field, entry in schema.get("properties", {}).items()
                if not entry.get("description")
            ]
    assert bare == []
    assert_references_resolve(described, described)


def assert_references_resolve(part: Any, whole: dict[str, Any]) -> None:
    if isinstance(part, dict):
        if isinstance(reference := part.get("$ref"), str):
            target: Any = whole
            for step in reference.removeprefix("#/").split("/"):
                target = target[step]
        for value in part.values():
            assert_references_resolve(value, whole)
    elif isinstance(part, list):
        for value in part:
            assert_references_resolve(value, whole)


def test_settings_do_not_show_secrets() -> None:
    settings = Settings(s3_secret_access_key="hush", database_url="postgresql://u:hush@h/d")
    assert "hush" not in repr(settings)
