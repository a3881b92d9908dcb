from __future__ import annotations

import csv
import io
import statistics
from typing import Any

import httpx
import pytest
from house import House, arrays, checkpoint, problem, put

from stiefel_api.comparing import pareto

FILES = {"report.json": b"{}"}
# (tau, seed) -> accuracy and parameters; the larger tau with seed 1 fails.
DLRT = {(0.1, 0): (0.95, 400), (0.1, 1): (0.97, 420), (0.3, 0): (0.90, 100)}
DENSE = {0: (0.96, 1000), 1: (0.94, 1000)}


@pytest.fixture
def batch(client: httpx.Client, house: House) -> dict[str, Any]:
    """A low-rank grid over tau and seed beside a dense baseline; all but one job has ended."""
    data = {"kind": "arrays", "train": put(client, arrays(), "d.npz"), "input": "x", "label": "y"}
    base = {"network": {"family": "mlp", "hidden": [32]}, "data": data}
    seeds = {"seed": [0, 1]}
    body = {
        "name": "tau | digits",
        "spec": {**base, "method": "train.dlrt"},
        "grid": {"truncation_tolerance": [0.1, 0.3], **seeds},
        "jobs": [
            {"custom_id": "dense", "spec": {**base, "method": "train.dense"}, "grid": seeds},
        ],
    }
    made: dict[str, Any] = client.post("/v1/batches", json=body).json()
    for job in made["jobs"]:
        cell = job["cell"]
        known = DLRT if cell["method"] == "train.dlrt" else DENSE
        key = (cell["truncation_tolerance"], cell["seed"]) if known is DLRT else cell["seed"]
        if key in known:
            accuracy, parameters = known[key]
            figures = {"test_accuracy": accuracy, "parameters_after": parameters, "rank/0": 3}
            house.deliver(job["job"], FILES, **figures)
    return made


def report(client: httpx.Client, batch: dict[str, Any], **parameters: str) -> dict[str, Any]:
    answer = client.get(batch["links"]["report"], params=parameters)
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


def test_rows_stand_in_grid_order_with_their_figures(
    client: httpx.Client, batch: dict[str, Any]
) -> None:
    found = report(client, batch)
    assert (found["status"], found["counts"]) == ("running", {"queued": 1, "succeeded": 5})
    assert found["varying"] == ["method", "truncation_tolerance", "seed"]
    assert found["metrics"] == ["test_accuracy", "parameters_after", "wall_seconds", "rank/0"]
    rows = found["rows"]
    assert [row["job"] for row in rows] == [job["job"] for job in batch["jobs"]]
    assert rows[1]["cell"] == {"method": "train.dlrt", "truncation_tolerance": 0.1, "seed": 1}
    assert rows[1]["metrics"]["test_accuracy"] == 0.97
    assert rows[1]["metrics"]["wall_seconds"] >= 0
    assert (rows[3]["status"], rows[3]["metrics"], rows[3]["on_front"]) == ("queued", {}, False)
    assert rows[4]["cell"] == {"method": "train.dense", "seed": 0}


def test_the_front_is_size_against_accuracy(client: httpx.Client, batch: dict[str, Any]) -> None:
    found = report(client, batch)
    assert found["front"] == {
        "size": "parameters_after",
        "quality": "test_accuracy",
        "better": "more",
    }
    on_front = [row["number"] for row in found["rows"] if row["on_front"]]
    assert on_front == [0, 1, 2], "dense is as good as none and larger than all"
    # By another measure of quality, none but the smallest remains.
    other = report(client, batch, quality="-rank/0")
    assert other["front"]["better"] == "less"
    assert [row["number"] for row in other["rows"] if row["on_front"]] == [2]
    unknown = client.get(batch["links"]["report"], params={"size": "weight"})
    document = problem(unknown, 422, "unknown_metric")
    assert "parameters_after" in document["fix"]


def test_cells_that_differ_in_the_seed_are_summed_up(
    client: httpx.Client, batch: dict[str, Any]
) -> None:
    groups = report(client, batch)["groups"]
    assert [group["rows"] for group in groups] == [[0, 1], [2, 3], [4, 5]]
    assert groups[0]["cell"] == {"method": "train.dlrt", "truncation_tolerance": 0.1}
    accuracy = groups[0]["metrics"]["test_accuracy"]
    assert accuracy["mean"] == pytest.approx(0.96)
    assert accuracy["std"] == pytest.approx(statistics.stdev([0.95, 0.97]))
    assert accuracy["count"] == 2
    assert groups[1]["metrics"]["test_accuracy"] == {"mean": 0.90, "std": None, "count": 1}
    assert groups[2]["custom_id"] == "dense"
    assert [group["on_front"] for group in groups] == [True, True, False]


def test_the_report_comes_as_csv(client: httpx.Client, batch: dict[str, Any]) -> None:
    answer = client.get(batch["links"]["report"], headers={"Accept": "text/csv, */*;q=0.1"})
    assert answer.headers["content-type"].startswith("text/csv")
    rows = list(csv.DictReader(io.StringIO(answer.text)))
    assert [row["kind"] for row in rows] == ["cell"] * 6 + ["mean", "std"] * 3
    assert rows[1]["job"] == batch["jobs"][1]["job"]
    assert float(rows[1]["test_accuracy"]) == 0.97
    assert (rows[3]["status"], rows[3]["test_accuracy"]) == ("queued", "")
    assert (rows[4]["truncation_tolerance"], rows[4]["method"]) == ("", "train.dense")
    assert float(rows[6]["test_accuracy"]) == pytest.approx(0.96)
    assert (rows[6]["seed"], rows[6]["on_front"]) == ("", "true")


def test_the_report_comes_as_markdown(client: httpx.Client, batch: dict[str, Any]) -> None:
    answer = client.get(batch["links"]["report"], params={"format": "markdown"})
    assert answer.headers["content-type"].startswith("text/markdown")
    assert answer.headers["vary"] == "Accept"
    lines = answer.text.splitlines()
    assert lines[0] == "# tau \\| digits"
    first = next(line for line in lines if line.startswith("| train.dlrt | 0.1 | 0 |"))
    assert "| succeeded | 0.95 | 400 |" in first
    assert first.endswith("| ● |")
    assert any(line.startswith("| train.dense |  | 2 | 0.95 ± 0.01414 |") for line in lines)
    assert "rank/0" not in answer.text, "tables for people show what they look at first"


def test_a_report_is_known_by_its_version(
    client: httpx.Client, batch: dict[str, Any], house: House
) -> None:
    path = batch["links"]["report"]
    seen = client.get(path).headers["etag"]
    assert client.get(path, headers={"If-None-Match": seen}).status_code == 304
    other = client.get(path, headers={"If-None-Match": seen}, params={"format": "csv"})
    assert other.status_code == 200
    house.work(batch["jobs"][3]["job"])
    assert client.get(path, headers={"If-None-Match": seen}).status_code == 200


def test_a_batch_without_results_has_a_report_too(client: httpx.Client) -> None:
    spec = {"method": "project.unitary", "input": put(client, checkpoint()), "include": ["a.*"]}
    made = client.post("/v1/batches", json={"spec": spec}).json()
    found = report(client, made)
    assert (found["metrics"], found["groups"], found["varying"]) == ([], [], [])
    assert found["front"]["size"] is None
    text = client.get(made["links"]["report"], params={"format": "markdown"}).text
    assert "| spec | queued |" in text


def test_a_point_is_on_the_front_unless_another_is_better_in_both() -> None:
    points = [(1.0, 3.0), (2.0, 2.0), (3.0, 1.0), (3.0, 2.0), (2.0, 2.0), None, (9.0, 1.0)]
    assert pareto(points) == {0, 1, 2, 4}
    assert pareto([None]) == set()
