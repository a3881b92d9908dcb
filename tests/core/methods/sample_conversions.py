"""The conversions' samples for the conformance suite."""

from __future__ import annotations

from converting import Job, Sample, small_checkpoint


def checkpoint(job: Job) -> Job:
    return job.stage(small_checkpoint())


SAMPLES = {
    "project.unitary": Sample({"input": "art"}, checkpoint),
    "factorize.low_rank": Sample(
        {"input": "art", "rule": {"by": "share", "value": 0.5}}, checkpoint
    ),
}
