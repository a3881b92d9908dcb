"""Networks of other libraries through a running service: text, uploaded weights, `timm`."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from safetensors.torch import load_file
from trainings import training

from stiefel_client import Job, Stiefel, StiefelApiError

SIZES = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
BERT = {"model_type": "bert", "intermediate_size": 32, **SIZES}
GPT2 = {"model_type": "gpt2", "n_embd": 16, "n_layer": 1, "n_head": 2}


def succeeded(client: Stiefel, spec: dict[str, Any]) -> Job:
    job = client.jobs.wait(client.jobs.submit(spec).id, timeout=120)
    assert job.succeeded, job.error
    return job


def library(task: str, config: dict[str, Any]) -> dict[str, Any]:
    return {"family": "transformers", "task": task, "config": config}


def test_texts_of_parquet_are_classified(local: Stiefel, tmp_path: Path) -> None:
    texts = ["a good day", "rain all week"] * 60
    pq.write_table(pa.table({"text": texts, "label": [0, 1] * 60}), tmp_path / "texts.parquet")
    artifact = local.uploads.upload(tmp_path / "texts.parquet").id
    data = {"kind": "parquet", "train": artifact, "input": "text", "context": 12}
    spec = training(data, network=library("sequence_classification", BERT), epochs=6)
    spec |= {"optimizer": {"name": "adam", "learning_rate": 0.01}}
    job = succeeded(local, spec)
    assert job.result is not None
    assert job.result.metrics["test_accuracy"] == 1.0
    (event,) = [e for e in local.jobs.events(job.id) if e.type == "job.memory"][:1]
    assert event.data["expected_bytes"] > 2**28
    spec["network"] = library("causal_language_model", GPT2)
    with pytest.raises(StiefelApiError) as caught:  # the footer tells that the column holds text
        local.jobs.submit(spec)
    assert caught.value.code == "network_does_not_fit"
    assert caught.value.errors[0]["pointer"] == "/spec/network/task"


def test_a_language_model_goes_on_from_uploaded_weights(local: Stiefel, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    (tmp_path / "plain.txt").write_text("to be or not to be, that is the question. " * 60)
    text = local.uploads.upload(tmp_path / "plain.txt").id
    data = {"kind": "text", "train": text, "context": 16}
    spec = training(data, network=library("causal_language_model", GPT2), max_steps=6)
    first = succeeded(local, spec)
    local.jobs.download(first, tmp_path / "first")
    weights = local.uploads.upload(tmp_path / "first" / "model.safetensors").id
    spec |= {"weights": weights, "method": "train.dlrt", "exclude": ["*.wte", "*.wpe"]}
    second = succeeded(local, spec)
    local.jobs.download(second, tmp_path / "second")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "second", local_files_only=True)
    assert model.config.vocab_size == 256
    stored = load_file(tmp_path / "second" / "model.safetensors")
    assert all(bool((model.state_dict()[n] == stored[n]).all()) for n in stored)


def test_timm_where_it_is_installed_and_a_remedy_where_not(
    local: Stiefel, digits: dict[str, Any], tmp_path: Path
) -> None:
    sizes = {"patch_size": 2, "embed_dim": 24, "depth": 2, "num_heads": 2}
    network = {"family": "timm", "model": "vit_tiny_patch16_224", "config": sizes}
    spec = training(digits, method="train.dlrt", network=network, max_steps=30)
    plan = local.jobs.plan(spec)
    assert plan.training is not None
    assert "`timm`" in plan.training["decided_by_worker"][0]
    spec |= {"include": ["blocks.*"], "exclude": ["*.attn.proj"]}
    job = local.jobs.wait(local.jobs.submit(spec).id, timeout=120)
    if find_spec("timm") is None:
        assert (job.status, job.error and job.error.blame) == ("failed", "user")
        assert job.error is not None
        assert (job.error.code, job.error.field) == ("network_not_available", "/network/family")
        assert "timm" in (job.error.fix or "")
        return
    assert job.succeeded, job.error
    import timm

    local.jobs.download(job, tmp_path / "out")
    model = timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True)
    stored = load_file(tmp_path / "out" / "model.safetensors")
    assert all(bool((model.state_dict()[n] == stored[n]).all()) for n in stored)
    assert "blocks.0.attn.proj.factor_in" not in load_file(
        tmp_path / "out" / "model.factored.safetensors"
    )
