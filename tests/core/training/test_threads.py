"""Small networks are trained by one thread, large ones by all there are."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from stiefel.methods import METHODS
from stiefel.methods.local import FolderRun
from stiefel.specs import parse_spec

VIT = {"model_type": "vit", "num_hidden_layers": 1, "num_attention_heads": 2, "patch_size": 4}


@pytest.fixture
def two_threads() -> None:
    torch.set_num_threads(2)  # the room's own fixture sets them back


@pytest.mark.parametrize(
    ("network", "batch_size", "threads"),
    [
        ({"family": "mlp", "hidden": [16]}, 8, 1),
        ({"family": "mlp", "hidden": [800]}, 8, 2),  # 0.6 million weights
        ({"family": "mlp", "hidden": [64] * 4}, 2048, 2),  # as many numbers of the examples
        (
            {
                "family": "transformers",
                "task": "image_classification",
                "config": VIT | {"hidden_size": 8, "intermediate_size": 8},
            },
            8,
            1,
        ),
        (
            {
                "family": "transformers",
                "task": "image_classification",
                "config": VIT | {"hidden_size": 128, "intermediate_size": 128},
            },
            256,
            2,
        ),
    ],
)
@pytest.mark.usefixtures("two_threads")
def test_the_step_decides_how_many_threads_take_it(
    network: dict[str, object], batch_size: int, threads: int, tmp_path: Path
) -> None:
    seen: set[int] = set()
    source = np.random.default_rng(0)
    x = source.standard_normal((4096, 1, 28, 28), dtype=np.float32)
    (tmp_path / "in").mkdir()
    with (tmp_path / "in" / "train").open("wb") as file:
        np.savez(file, x=x, y=np.arange(4096) % 2)
    spec = parse_spec(
        {
            "method": "train.dense",
            "network": network,
            "data": {"kind": "arrays", "train": "art_1", "input": "x", "label": "y"},
            "batch_size": batch_size,
            "epochs": 1,
            "max_steps": 1,
        }
    )
    run = FolderRun(
        tmp_path / "in",
        tmp_path / "state",
        on_progress=lambda *_: seen.add(torch.get_num_threads()),
    )
    METHODS[spec.method].run(spec, run)
    assert seen == {threads}
    assert torch.get_num_threads() == 2
