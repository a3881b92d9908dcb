"""What every method promises, checked over the registry: a new method inherits this suite.

A method joins with a sample: a spec and the files it needs, in the ``SAMPLES`` of any module
``sample_*.py`` beside this one. The suite fails for a method without one.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from converting import Job, Sample
from pydantic import ValidationError

from stiefel.errors import StopRequested
from stiefel.methods import METHODS
from stiefel.specs import SPECS

SAMPLES: dict[str, Sample] = {
    name: sample
    for path in sorted(Path(__file__).parent.glob("sample_*.py"))
    for name, sample in import_module(path.stem).SAMPLES.items()
}
NAMES = sorted(SAMPLES)


def job_of(name: str, folder: Path) -> Job:
    sample = SAMPLES[name]
    return sample.stage(Job(folder, {"method": name, **sample.spec}))


def test_every_spec_has_a_method_and_every_method_a_sample() -> None:
    assert METHODS.keys() == SPECS.keys() == SAMPLES.keys()


@pytest.mark.parametrize("name", sorted(METHODS))
def test_the_method_fits_its_name_and_spec(name: str) -> None:
    method = METHODS[name]
    assert method.name == name
    assert method.spec is SPECS[name]
    assert method.spec.summary


@pytest.mark.parametrize("name", NAMES)
def test_the_spec_is_closed(name: str) -> None:
    with pytest.raises(ValidationError, match="colour"):
        SPECS[name].model_validate({"method": name, **SAMPLES[name].spec, "colour": 1})


@pytest.mark.parametrize("name", sorted(METHODS))
def test_every_number_text_and_list_is_bounded(name: str) -> None:
    assert not list(unbounded(SPECS[name].model_json_schema()))


def unbounded(schema: Any, path: str = "") -> list[str]:
    """Paths of a JSON Schema at which a caller could send something without limit."""
    if isinstance(schema, list):
        return [p for i, item in enumerate(schema) for p in unbounded(item, f"{path}/{i}")]
    if not isinstance(schema, dict):
        return []
    found = [] if {"enum", "const"} & schema.keys() else list(_missing_bounds(schema, path))
    for key, value in schema.items():
        if key not in ("examples", "default", "enum", "const"):
            found += unbounded(value, f"{path}/{key}")
    return found


def _missing_bounds(schema: dict[str, Any], path: str) -> list[str]:
    kind = schema.get("type")
    if kind in ("integer", "number"):
        low = {"minimum", "exclusiveMinimum"} & schema.keys()
        high = {"maximum", "exclusiveMaximum"} & schema.keys()
        return [] if low and high else [path]
    if kind == "string":
        return [] if {"maxLength", "pattern", "format"} & schema.keys() else [path]
    if kind == "array":
        return [] if "maxItems" in schema else [path]
    return []


@pytest.mark.parametrize("name", NAMES)
def test_the_same_seed_gives_the_same_bits(name: str, tmp_path: Path) -> None:
    first = job_of(name, tmp_path / "a").finish()
    second = job_of(name, tmp_path / "b").finish()
    assert first.bits() == second.bits()


@pytest.mark.parametrize("name", NAMES)
def test_a_stop_is_obeyed_at_the_next_checkpoint(name: str, tmp_path: Path) -> None:
    job = job_of(name, tmp_path)
    with pytest.raises(StopRequested):
        job.attempt(should_stop=lambda step: True)
    assert len(job.run.checkpoints) == 1


@pytest.mark.parametrize("name", NAMES)
def test_a_run_stopped_at_every_checkpoint_ends_with_the_same_bits(
    name: str, tmp_path: Path
) -> None:
    whole = job_of(name, tmp_path / "whole").finish()
    job = job_of(name, tmp_path / "pieces")
    stops = 0
    while True:
        try:
            job.attempt(should_stop=lambda step: True)
            break
        except StopRequested:
            stops += 1
            assert stops < 1000
    assert stops >= 2
    assert job.finish().bits() == whole.bits()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("stop_at", [1, 4])
def test_what_a_dead_attempt_wrote_after_its_checkpoint_is_ignored(
    name: str, stop_at: int, tmp_path: Path
) -> None:
    whole = job_of(name, tmp_path / "whole").finish()
    job = job_of(name, tmp_path / "torn")
    with pytest.raises(StopRequested):
        job.attempt(should_stop=lambda step: len(job.run.checkpoints) >= stop_at)
    for path in (tmp_path / "torn" / "state").iterdir():
        with path.open("ab") as file:
            file.write(b'{"torn":')
    assert job.finish().bits() == whole.bits()


@pytest.mark.parametrize("name", NAMES)
def test_state_files_only_grow(name: str, tmp_path: Path) -> None:
    seen: dict[str, bytes] = {}
    state = tmp_path / "state"

    def look(step: int) -> bool:
        for file, content in seen.items():
            path = state / file
            if path.exists():
                assert path.read_bytes().startswith(content), file
        seen.update({path.name: path.read_bytes() for path in state.iterdir()})
        return False

    job_of(name, tmp_path).attempt(should_stop=look)
    assert seen


@pytest.mark.parametrize("name", NAMES)
def test_progress_reaches_its_total(name: str, tmp_path: Path) -> None:
    job = job_of(name, tmp_path)
    job.attempt()
    done, total, _ = job.run.reports[-1]
    assert done == total > 0


@pytest.mark.parametrize("name", NAMES)
def test_deliveries_have_safe_names_and_a_certificate(name: str, tmp_path: Path) -> None:
    outcome = job_of(name, tmp_path).attempt()
    names = [delivery.name for delivery in outcome.deliveries]
    assert len(set(names)) == len(names)
    assert {"certificate.json", "report.json"} <= set(names)
    for delivery in outcome.deliveries:
        assert Path(delivery.name).name == delivery.name
        assert all(part.parent == tmp_path / "state" for part in delivery.parts)
