"""Whether data fit a network: checks that need no torch, made before a submit and before a run."""

from __future__ import annotations

from itertools import pairwise

from stiefel.errors import InvalidInputError
from stiefel.specs.networks import OrthogonalCNN
from stiefel.specs.signature import Signature
from stiefel.specs.training import TrainingSpec


def check_images(signature: Signature, *, least: int) -> None:
    """Refuse data that are not images of at least ``least`` x ``least``."""
    if signature.kind != "image" or min(signature.shape[1:]) < least:
        raise InvalidInputError(
            f"this network needs images of at least {least} x {least}; "
            f"the data has examples of kind {signature.kind} and shape {list(signature.shape)}",
            code="network_does_not_fit",
            fix="choose family mlp, or data with larger images",
            field="/network",
        )


def check_patches(patch: int, signature: Signature) -> None:
    """Refuse data that patches of ``patch`` x ``patch`` do not tile."""
    if signature.kind != "image" or any(size % patch for size in signature.shape[1:]):
        raise InvalidInputError(
            f"patches of {patch} x {patch} do not tile examples of kind "
            f"{signature.kind} and shape {list(signature.shape)}",
            code="network_does_not_fit",
            fix="choose a patch size that divides height and width",
            field="/network/patch",
        )


def check_numbers(signature: Signature) -> None:
    """Refuse data that are no numbers with one answer for each example."""
    if signature.kind == "tokens" or signature.per_step:
        what = "tokens" if signature.kind == "tokens" else "sequences with an answer at every step"
        raise InvalidInputError(
            f"an mlp needs numbers with one answer for each example; these data are {what}",
            code="network_does_not_fit",
            fix="choose family rnn for sequences, transformers for text, or other data",
            field="/network/family",
        )


def check_batch(spec: TrainingSpec, examples: int | None) -> None:
    """Refuse a batch that leaves a device without an example, or batch normalisation with one.

    Args:
        spec: how batches are cut.
        examples: for training; a batch holds no more. None where it is not known.
    """
    batch = spec.batch_size if examples is None else min(spec.batch_size, examples)
    share = batch // spec.devices
    least = share // max(1, min(spec.accumulate, share))
    if not share:
        held, rows = _too_few(spec, batch)
        raise InvalidInputError(
            f"{held}, fewer than {spec.devices} devices",
            code="batch_too_small",
            fix=f"{rows}, or lower devices",
            field="/devices",
        )
    if getattr(spec.network, "normalisation", None) == "batch" and least < 2:
        raise lone_example(spec, batch)


def lone_example(spec: TrainingSpec, batch: int) -> InvalidInputError:
    """The refusal of batch normalisation over one example, where ``batch`` are cut into slices."""
    held, rows = _too_few(spec, batch)
    return InvalidInputError(
        f"{held}: over {spec.devices} device(s) in {spec.accumulate} slice(s) that leaves one "
        "example at a time, from which batch normalisation learns nothing",
        code="batch_too_small",
        fix=f"{rows}, lower accumulate or devices, or choose another normalisation",
        field="/batch_size",
    )


def _too_few(spec: TrainingSpec, batch: int) -> tuple[str, str]:
    """What keeps a batch small, and how to have more."""
    if batch < spec.batch_size:
        return f"the training data hold {batch} examples", "give more examples"
    return f"batch_size is {batch}", "raise batch_size"


def check_sequences(signature: Signature) -> None:
    """Refuse data that are not sequences."""
    if signature.kind != "sequence":
        raise InvalidInputError(
            f"a recurrent network needs sequences; the data has examples of kind {signature.kind}",
            code="network_does_not_fit",
            fix="set data.as_sequence, or choose a synthetic task or another family",
            field="/network/family",
        )


def check_channels(spec: OrthogonalCNN, signature: Signature) -> None:
    """Refuse data that are not images, and channels that become fewer on the way."""
    if signature.kind != "image":
        detail = f"an orthogonal CNN needs images; the data has examples of kind {signature.kind}"
        raise _misfit(detail, "family")
    for index, (n_in, n_out) in enumerate(pairwise((signature.shape[0], *spec.channels))):
        if n_out < n_in:
            detail = f"orthogonal CNN: {n_in} channels cannot become {n_out}"
            raise _misfit(detail, f"channels/{index}")


def _misfit(detail: str, where: str) -> InvalidInputError:
    return InvalidInputError(
        detail,
        code="network_does_not_fit",
        fix="give images and channels that never fall",
        field=f"/network/{where}",
    )


#: What each task of a `transformers` network is fed with: kind, whether every step is answered,
#: and the data that are so.
TASKS = {
    "image_classification": ("image", False, "images"),
    "sequence_classification": ("tokens", False, "a text column of parquet with labels"),
    "causal_language_model": ("tokens", True, "data of kind text"),
}


def check_task(task: str, signature: Signature) -> None:
    """Refuse data of another kind than a `transformers` task needs."""
    kind, per_step, needed = TASKS[task]
    if (signature.kind, signature.per_step) != (kind, per_step):
        answers = "an answer at every step" if signature.per_step else "one answer each"
        raise InvalidInputError(
            f"task {task} needs {needed}; these are {signature.kind} data with {answers}",
            code="network_does_not_fit",
            fix="choose the task that goes with the data, or other data",
            field="/network/task",
        )
