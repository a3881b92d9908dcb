"""Training jobs that cannot succeed: what is said, where, and what is left to the caller."""

from __future__ import annotations

import io
import math
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from safetensors.numpy import load_file, save_file
from trainings import training, uploaded_digits

from stiefel_client import Job, Stiefel, StiefelApiError

VIT = {
    "model_type": "vit",
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "patch_size": 4,
}


def refused(client: Stiefel, spec: dict[str, Any]) -> StiefelApiError:
    with pytest.raises(StiefelApiError) as caught:
        client.jobs.submit(spec)
    assert (caught.value.status, bool(caught.value.fix)) == (422, True)
    return caught.value


def failed(client: Stiefel, spec: dict[str, Any]) -> Job:
    """A job that the worker refuses: blamed on the caller, with a remedy, and tried once."""
    job = client.jobs.wait(client.jobs.submit(spec).id, timeout=90)
    assert job.status == "failed"
    assert job.error is not None
    assert (job.error.blame, bool(job.error.fix)) == ("user", True), job.error
    assert len(client.jobs.attempts(job.id)["data"]) == 1
    return job


def test_what_a_header_shows_is_refused_at_once(
    local: Stiefel, digits: dict[str, Any], tmp_path: Path
) -> None:
    error = refused(local, training(digits | {"label": "z"}))
    assert 'no array "z"' in error.detail
    assert error.errors[0]["pointer"] == "/spec/data/train"
    bad = uploaded_digits(local, tmp_path, y=np.full(1797, -3))
    error = refused(local, training(bad))
    assert (error.code, error.errors[0]["pointer"]) == ("label_out_of_range", "/spec/data/label")
    assert "row 0" in error.detail
    error = refused(local, training(digits, network={"family": "resnet"}))
    assert error.errors[0]["pointer"] == "/spec/network"
    assert "resnet20" in str(error.problem)
    error = refused(local, training(digits, network={"family": "lenet5"}))
    assert error.code == "network_does_not_fit"
    error = refused(local, training(digits, method="train.dlrt", include=["layer*"]))
    assert error.errors[0]["pointer"] == "/spec/include/0"
    save_file({"w": np.ones((3, 3), np.float32)}, tmp_path / "other.safetensors")
    weights = local.uploads.upload(tmp_path / "other.safetensors").id
    error = refused(local, training(digits, weights=weights))
    assert (error.code, error.errors[0]["pointer"]) == ("weights_do_not_fit", "/spec/weights")


def hugging_face(data: dict[str, Any], **changes: Any) -> dict[str, Any]:
    network = {"family": "transformers", "task": "image_classification"}
    network["config"] = VIT | changes.pop("config", {})
    return training(data, network=network, **changes)


def test_what_only_transformers_knows_fails_with_its_place(
    local: Stiefel, digits: dict[str, Any], tmp_path: Path
) -> None:
    job = failed(local, hugging_face(digits, config={"hiden_size": 8}))
    assert job.error is not None
    assert (job.error.field, job.error.code) == (
        "/network/config/hiden_size",
        "network_does_not_fit",
    )
    job = failed(local, hugging_face(digits, config={"model_type": "vti"}))
    assert job.error is not None
    assert job.error.field == "/network/config/model_type"
    job = failed(local, hugging_face(digits, method="train.dlrt", include=["*nothing*"]))
    assert job.error is not None
    assert (job.error.code, job.error.field) == ("pattern_matches_nothing", "/include/0")
    save_file({"w": np.ones((3, 3), np.float32)}, tmp_path / "other.safetensors")
    weights = local.uploads.upload(tmp_path / "other.safetensors").id
    job = failed(local, hugging_face(digits, weights=weights))
    assert job.error is not None
    assert (job.error.code, job.error.field) == ("weights_do_not_fit", "/weights")
    assert job.error.tensor


def image() -> bytes:
    buffer = io.BytesIO()
    Image.new("L", (8, 8)).save(buffer, "PNG")
    return buffer.getvalue()


def parquet(client: Stiefel, folder: Path, images: list[bytes], labels: list[int]) -> Any:
    cells = [{"bytes": data, "path": None} for data in images]
    pq.write_table(pa.table({"image": cells, "label": labels}), folder / "data.parquet")
    artifact = client.uploads.upload(folder / "data.parquet")
    return {"kind": "parquet", "train": artifact.id, "input": "image", "label": "label"}


def test_a_bad_row_of_parquet_is_named(local: Stiefel, tmp_path: Path) -> None:
    labels = [n % 3 for n in range(40)]
    broken = [image()] * 39 + [b"no image"]
    job = failed(local, training(parquet(local, tmp_path, broken, labels)))
    assert job.error is not None
    assert (job.error.code, job.error.field) == ("bad_data", "/data/train")
    assert "row 39" in (job.error.detail or "")
    wrong = [*labels[:7], -1, *labels[8:]]
    job = failed(local, training(parquet(local, tmp_path, [image()] * 40, wrong)))
    assert job.error is not None
    assert (job.error.code, job.error.field) == ("label_out_of_range", "/data/label")
    assert "row 7" in (job.error.detail or "")


def test_a_loss_that_is_no_number_leaves_the_last_good_checkpoint(
    local: Stiefel, digits: dict[str, Any], tmp_path: Path
) -> None:
    wild = training(
        digits | {"task": "regression"},
        optimizer={"name": "sgd", "learning_rate": 100.0},
        schedule={"kind": "constant", "warmup_steps": 100},
        network={"family": "mlp", "hidden": [32, 32]},
        checkpoint_every=1,
        log_every=1,
    )
    job = failed(local, wild)
    assert job.error is not None
    assert job.error.code == "loss_not_finite"
    assert "at step " in (job.error.detail or "")
    assert job.error.field == "/optimizer/learning_rate"
    paths = local.jobs.download_checkpoint(job.id, tmp_path / "good")
    weights = sorted(path for path in paths if ".weights." in path.name)
    tensors = load_file(weights[-1])
    assert set(tensors) == {
        f"{layer}.{part}"
        for layer in ("hidden.0.linear", "hidden.1.linear", "head")
        for part in ("weight", "bias")
    }
    assert all(math.isfinite(float(np.abs(tensor).max())) for tensor in tensors.values())
