"""Whether data fit a network: checks that need no torch, made before a submit and before a run."""

from __future__ import annotations

from itertools import pairwise

from stiefel.errors import InvalidInputError
from stiefel.specs.networks import OrthogonalCNN
from stiefel.specs.signature import Signature


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
