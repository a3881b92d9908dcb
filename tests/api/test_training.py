"""Training jobs at the door: the plan of a dry run, and what is refused before anything runs."""

from __future__ import annotations

import io
import math
from typing import Any

import httpx
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from house import House, problem, put
from safetensors.numpy import save

from stiefel_jobs.store.workers import forget_worker, report_worker


def npz(rows: int = 100, classes: int = 10, **arrays: Any) -> bytes:
    buffer = io.BytesIO()
    x, y = np.zeros((rows, 8, 8), np.float32), np.arange(rows) % classes
    np.savez_compressed(buffer, **{"x": x, "y": y} | arrays)
    return buffer.getvalue()


def data(client: httpx.Client, content: bytes | None = None, **more: Any) -> dict[str, Any]:
    artifact = put(client, npz() if content is None else content, name="digits.npz")
    return {"kind": "arrays", "train": artifact, "input": "x", "label": "y"} | more


def training(**changes: Any) -> dict[str, Any]:
    spec = {"method": "train.dlrt", "network": {"family": "mlp", "hidden": [64, 64]}}
    return {"spec": spec | {"epochs": 3, "batch_size": 20} | changes}


def dry(client: httpx.Client, body: dict[str, Any]) -> dict[str, Any]:
    answer = client.post("/v1/jobs", params={"dry_run": "true"}, json=body)
    assert answer.status_code == 200, answer.text
    plan: dict[str, Any] = answer.json()
    return plan


def test_a_dry_run_names_layers_parameters_steps_and_memory(client: httpx.Client) -> None:
    plan = dry(client, training(data=data(client), exclude=["hidden.1.*"]))
    found = plan["training"]
    assert found["layers"] == [
        {
            "name": "hidden.0.linear",
            "kind": "Linear",
            "shape": [64, 64],
            "parameters": 4160,
            "rank": 15,
            "constraint": "low_rank",
        },
        {
            "name": "hidden.1.linear",
            "kind": "Linear",
            "shape": [64, 64],
            "parameters": 4160,
            "reason": "excluded by 'hidden.1.*'",
        },
        {
            "name": "head",
            "kind": "Linear",
            "shape": [10, 64],
            "parameters": 650,
            "reason": "the last layer is kept",
        },
    ]
    assert (found["layers_constrained"], found["layers_left"]) == (1, 2)
    assert (found["parameters"], found["parameters_constrained"]) == (8970, 4096)
    assert found["parameters_at_start"] == 8970 - 4096 + 15 * 128
    assert (found["steps_per_epoch"], found["steps"]) == (4, 12)
    assert found["decided_by_worker"] == []
    assert plan["peak_memory_bytes"] > 2**28
    assert client.get("/v1/jobs").json()["data"] == []


def test_a_dry_run_warns_of_a_warm_up_that_outlasts_the_run(client: httpx.Client) -> None:
    late = training(data=data(client), method="train.oialr", delay=12)
    (warning,) = [text for text in dry(client, late)["warnings"] if "warm-up" in text]
    assert "after 12 steps" in warning
    assert "/spec/delay" in warning
    for soon in (late["spec"] | {"delay": 11}, late["spec"] | {"delay": None}):
        assert "warm-up" not in " ".join(dry(client, {"spec": soon})["warnings"])


def test_the_same_arrays_in_safetensors_give_the_same_plan(client: httpx.Client) -> None:
    arrays = {"x": np.zeros((100, 8, 8), np.float32), "y": np.arange(100, dtype=np.int32) % 10}
    artifact = put(client, save(arrays), name="digits.safetensors")
    plan = dry(client, training(data=data(client)))
    again = dry(client, training(data=data(client) | {"train": artifact}))
    assert again["training"] == plan["training"]


MLP = {"family": "mlp", "hidden": [16]}


def table(client: httpx.Client, **columns: Any) -> dict[str, Any]:
    buffer = io.BytesIO()
    pq.write_table(pa.table(columns), buffer)
    return {"kind": "parquet", "train": put(client, buffer.getvalue(), name="data.parquet")}


def test_what_only_the_worker_finds_out_is_named(client: httpx.Client) -> None:
    config = {"model_type": "vit", "hidden_size": 16}
    network = {"family": "transformers", "task": "image_classification", "config": config}
    found = dry(client, training(data=data(client), network=network))
    assert found["training"]["layers"] == []
    assert found["training"]["parameters"] is None
    assert found["training"]["steps"] == 12
    (unknown,) = found["training"]["decided_by_worker"]
    assert "transformers" in unknown
    assert found["peak_memory_bytes"] == 0
    images = [{"bytes": b"decoded by the worker", "path": None}] * 100
    parquet = table(client, image=images, label=[n % 3 for n in range(100)])
    found = dry(client, training(data=parquet | {"input": "image"}, max_steps=7))["training"]
    assert [layer["name"] for layer in found["layers"]] == [
        "hidden.0.linear",
        "hidden.1.linear",
        "head",
    ]
    assert all("shape" not in layer for layer in found["layers"])
    assert (found["parameters"], found["steps"]) == (None, 7)
    assert found["steps_per_epoch"] is not None
    assert len(found["decided_by_worker"]) == 2


def test_the_footer_of_a_parquet_file_tells_columns_rows_and_classes(
    client: httpx.Client,
) -> None:
    labels = [n % 5 for n in range(100)]
    rows = np.zeros((100, 6), np.float32)
    parquet = table(client, x=list(rows), z=[1.5] * 100, text=["words"] * 100, label=labels)
    plan = dry(client, training(data=parquet | {"input": ["x", "z"]}, network=MLP))
    found = plan["training"]
    assert [layer["shape"] for layer in found["layers"]] == [[16, 7], [5, 16]]
    assert found["decided_by_worker"] == []
    assert plan["peak_memory_bytes"] > 2**28
    bert = {"family": "transformers", "task": "sequence_classification"}
    bert |= {"config": {"model_type": "bert"}}
    plan = dry(client, training(data=parquet | {"input": "text"}, network=bert))
    assert len(plan["training"]["decided_by_worker"]) == 1
    for changes, text in (
        ({"input": "image"}, 'no column "image"; the file has label, text, x, z'),
        ({"input": "x", "label": "class"}, 'no column "class"'),
        ({"input": "x", "train": data(client)["train"]}, "not readable as parquet"),
    ):
        answer = client.post("/v1/jobs", json=training(data=parquet | changes, network=MLP))
        assert text in problem(answer, 422, "bad_data")["detail"]
    nulls = table(client, x=[1.0, 2.0], label=[None, 1])
    answer = client.post("/v1/jobs", json=training(data=nulls | {"input": "x"}, network=MLP))
    assert 'column "label" has nulls' in problem(answer, 422, "bad_data")["detail"]


VIT = {"family": "vit", "patch": 3, "width": 12, "heads": 2, "hidden": 24}
BAD_SPECS: list[tuple[dict[str, Any], str, str]] = [
    ({"include": ["q_proj*"]}, "pattern_matches_nothing", "/spec/include/0"),
    ({"exclude": ["hidden.*", "tail"]}, "pattern_matches_nothing", "/spec/exclude/1"),
    ({"exclude": ["hidden.*"]}, "nothing_converted", "/spec/include"),
    ({"network": {"family": "perceptron"}}, "invalid_spec", "/spec/network"),
    ({"network": {"family": "mlp", "widths": [3]}}, "invalid_spec", "/spec/network/widths"),
    ({"network": {"family": "rnn"}}, "network_does_not_fit", "/spec/network/family"),
    ({"network": {"family": "lenet5"}}, "network_does_not_fit", "/spec/network"),
    ({"network": VIT}, "network_does_not_fit", "/spec/network/patch"),
]


@pytest.mark.parametrize(("changes", "code", "pointer"), BAD_SPECS, ids=str)
def test_a_spec_that_cannot_be_trained_is_refused(
    embedded: House, changes: dict[str, Any], code: str, pointer: str
) -> None:
    with embedded.client() as client:
        body = training(data=data(client), **changes)
        for params in ({}, {"dry_run": "true"}):
            document = problem(client.post("/v1/jobs", json=body, params=params), 422, code)
            assert [fault["pointer"] for fault in document["errors"]] == [pointer]
            assert document["fix"]


BAD_DATA: list[tuple[dict[str, Any], str, str, str]] = [
    ({"y": np.arange(100) - 1}, "label_out_of_range", "/spec/data/label", "row 0: -1"),
    ({"y": np.full(100, math.nan)}, "label_out_of_range", "/spec/data/label", "row 0: nan"),
    ({"y": np.full(100, 0.5)}, "label_out_of_range", "/spec/data/label", "row 0: 0.5"),
    ({"y": np.arange(99) % 3}, "bad_data", "/spec/data/train", "100 rows, labels have 99"),
    ({"x": np.array(["a"] * 100)}, "bad_data", "/spec/data/train", "must be numeric"),
    ({"x": np.zeros((0, 3)), "y": np.zeros(0)}, "bad_data", "/spec/data/train", "no rows"),
]


@pytest.mark.parametrize(("arrays", "code", "pointer", "text"), BAD_DATA, ids=lambda c: str(c)[:30])
def test_data_that_cannot_be_used_are_refused(
    embedded: House, arrays: dict[str, Any], code: str, pointer: str, text: str
) -> None:
    with embedded.client() as client:
        answer = client.post("/v1/jobs", json=training(data=data(client, npz(**arrays))))
        document = problem(answer, 422, code)
        assert [fault["pointer"] for fault in document["errors"]] == [pointer]
        assert text in document["detail"]


def test_arrays_that_are_missing_or_of_another_shape_are_named(embedded: House) -> None:
    with embedded.client() as client:
        good = data(client)
        document = problem(
            client.post("/v1/jobs", json=training(data=good | {"label": "z"})), 422, "bad_data"
        )
        assert 'no array "z"; the file has x, y' in document["detail"]
        other = put(client, npz(x=np.zeros((100, 4, 4))), name="other.npz")
        answer = client.post("/v1/jobs", json=training(data=good | {"test": other}))
        assert "[1, 4, 4]" in problem(answer, 422, "data_mismatch")["detail"]
        text = put(client, b"no arrays at all", name="notes.txt")
        answer = client.post("/v1/jobs", json=training(data=good | {"train": text}))
        assert "neither" in problem(answer, 422, "bad_data")["detail"]


def test_weights_of_another_network_are_refused_by_tensor(embedded: House) -> None:
    shapes = {"hidden.0.linear": (64, 64), "hidden.1.linear": (64, 64), "head": (10, 64)}
    good = {f"{name}.weight": np.zeros(shape, np.float32) for name, shape in shapes.items()}
    good |= {f"{name}.bias": np.zeros(shape[0], np.float32) for name, shape in shapes.items()}
    cases = [
        (good | {"head.weight": np.zeros((9, 64), np.float32)}, "head.weight"),
        (good | {"tail.weight": np.zeros(3, np.float32)}, "tail.weight"),
        ({n: v for n, v in good.items() if n != "head.bias"}, "head.bias"),
    ]
    with embedded.client() as client:
        train = data(client)
        for tensors, name in cases:
            weights = put(client, save(tensors), name="model.safetensors")
            answer = client.post("/v1/jobs", json=training(data=train, weights=weights))
            document = problem(answer, 422, "weights_do_not_fit")
            assert document["tensor"] == name
            assert [fault["pointer"] for fault in document["errors"]] == ["/spec/weights"]
        weights = put(client, save(good), name="model.safetensors")
        dry(client, training(data=train, weights=weights))
        nines = good | {"head.weight": np.zeros((9, 64), np.float32)}
        weights = put(client, save(nines), name="model.safetensors")
        dry(client, training(data=train, weights=weights, fresh=["head.*"]))
        weights = put(client, npz(), name="d.npz")
        text = put(client, b"to be or not to be " * 99, name="t.txt")
        gpt2 = {"family": "transformers", "config": {"model_type": "gpt2"}}
        of_text = {
            "network": gpt2 | {"task": "causal_language_model"},
            "data": {"kind": "text", "train": text, "context": 8},
        }
        for other in ({}, of_text):
            body = training(**{"data": train, "weights": weights} | other)
            document = problem(client.post("/v1/jobs", json=body), 422, "weights_do_not_fit")
            assert ".npz" in document["detail"]
            assert [fault["pointer"] for fault in document["errors"]] == ["/spec/weights"]


def test_a_job_that_fits_no_worker_is_refused_with_the_figure(embedded: House) -> None:
    def reported(name: str, memory: int, queue: str = "cpu") -> None:
        devices = {"memory_bytes": memory}
        report_worker(
            embedded.db, worker=name, host="h", queues=[queue], version="0", devices=devices
        )

    with embedded.client() as client:
        body = training(data=data(client), network={"family": "mlp", "hidden": [20_000] * 3})
        body |= {"device": "cpu"}
        plan = dry(client, body)
        needed = plan["peak_memory_bytes"]
        assert "no worker serves the queue cpu" in plan["warnings"][0]
        accepted = client.post("/v1/jobs", json=body)  # nobody is known: it waits for a worker
        assert accepted.status_code == 202
        assert accepted.json()["queue"]["workers"] == 0
        reported("small", 2**30)
        reported("elsewhere", 2**40, "cuda")
        document = problem(client.post("/v1/jobs", json=body), 422, "too_large")
        assert f"{needed / 2**30:.1f} GiB" in document["detail"]
        assert "1.0 GiB" in document["detail"]
        assert "batch_size" in document["fix"]
        plan = dry(client, body)
        assert "1.0 GiB" in plan["warnings"][0]
        reported("large", needed)
        accepted = client.post("/v1/jobs", json=body)
        assert (accepted.status_code, accepted.json()["queue"]["workers"]) == (202, 2)
        for name in ("small", "elsewhere", "large"):
            forget_worker(embedded.db, worker=name)
