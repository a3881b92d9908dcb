"""The specs in the documentation, as a reader would submit them."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import get_args

import pytest

from stiefel.specs import parse_spec
from stiefel.specs.networks import Transformers

TRAINING = (Path(__file__).parents[2] / "docs" / "training.md").read_text(encoding="utf-8")
SPECS = [json.loads(block) for block in re.findall(r"```json\n(.*?)```", TRAINING, re.S)]


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec["method"])
def test_the_specs_of_the_page_on_training_are_accepted(spec: dict) -> None:
    uploaded = json.loads(json.dumps(spec, ensure_ascii=False).replace("art_…", "art_1"))
    assert parse_spec(uploaded).method == spec["method"]


def test_a_transformers_network_is_shown_with_every_task_there_is() -> None:
    assert "transformers" in {spec["network"]["family"] for spec in SPECS}
    tasks = get_args(Transformers.model_fields["task"].annotation)
    assert [task for task in tasks if f"`{task}`" not in TRAINING] == []
