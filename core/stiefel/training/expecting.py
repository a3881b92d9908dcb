"""How much memory a run will take, said before it takes it.

Networks of this library are known by arithmetic. Of those of another library the parameters are
counted on a copy without numbers, before anything is drawn; what one example leaves behind for the
backward pass is measured on the network itself, on two examples.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from stiefel.conv1d import is_transposed_linear
from stiefel.errors import InvalidInputError
from stiefel.models import FAMILIES
from stiefel.models.adapter import Adapter, architecture, out_of_memory
from stiefel.models.signature import Signature
from stiefel.run import Run
from stiefel.specs.data_facts import DataFacts
from stiefel.specs.families import layer_table
from stiefel.specs.layers import Layer, Shape
from stiefel.specs.selecting import select_layers
from stiefel.specs.training import TrainingSpec
from stiefel.specs.training_memory import Activations, estimate_memory, step_bytes
from stiefel.training.data.dataset import Dataset

_EXAMPLES = 2  # normalisation over a batch needs more than one
#: Blocks of many sizes leave holes between them: 1.3 to 1.6 times what they hold was measured.
_HOLES = (8, 5)
_LARGEST_ANSWER = 4  # loss, its softmax and their gradients hold the answer so often


def expect_memory(spec: TrainingSpec, run: Run, signature: Signature) -> int:
    """Announce what ``spec`` needs for data of ``signature``, before the network is built.

    Returns the bytes that a step touches, without activations where only a trial can tell them.

    Raises:
        TooLargeError: more than the run may have.
        InvalidInputError: the network does not fit the data, or a pattern matches no layer.
    """
    table = layer_table(spec.network, signature)
    kept = None
    if table is None:
        with torch.device("meta"):
            network = FAMILIES[spec.network.family](spec.network, signature)
        table, kept = _table(architecture(network)), Activations(0, 0)
    return _announce(spec, run, signature, table, kept)


def rehearse(spec: TrainingSpec, run: Run, network: nn.Module, dataset: Dataset) -> int | None:
    """Put two examples through a network of another library, and announce what it keeps of them.

    The network is as it was afterwards. Returns the bytes that a step touches; None where the
    network is one of this library.

    Raises:
        TooLargeError: more than the run may have.
        InvalidInputError: the network cannot take the data, or answers in another shape.
    """
    if not isinstance(network, Adapter):
        return None
    signature = dataset.signature
    with torch.random.fork_rng(devices=[]):
        x = next(iter(dataset.test(batch_size=_EXAMPLES))).x
    x = x.repeat(_EXAMPLES, *[1] * (x.dim() - 1))[:_EXAMPLES]  # a test set may have only one
    kept = _measured(spec, network, x, signature)
    return _announce(spec, run, signature, _table(network.inner), kept)


def _announce(
    spec: TrainingSpec,
    run: Run,
    signature: Signature,
    table: list[Layer],
    kept: Activations | None,
) -> int:
    layers = select_layers(spec, table)
    run.expect_memory(estimate_memory(spec, DataFacts(signature), table, layers, kept))
    return step_bytes(spec, signature, table, kept)


def _measured(
    spec: TrainingSpec, network: nn.Module, x: Tensor, signature: Signature
) -> Activations:
    """Numbers per example that the forward pass saves for the backward pass."""
    own = {tensor.untyped_storage().data_ptr() for tensor in network.state_dict().values()}
    saved: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    buffers = [buffer.clone() for buffer in network.buffers()]
    device = next(network.parameters()).device
    network.train()
    try:
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            answer = network(x.to(device))
    except Exception as error:
        if out_of_memory(error):
            raise
        words = " ".join(str(error).split())[:300]
        what = f"it cannot take examples of shape {list(signature.shape)}: {words}"
        raise _misfit(what) from error
    finally:
        for buffer, before in zip(network.buffers(), buffers, strict=True):
            buffer.data.copy_(before)
    shape = (*signature.shape, signature.outputs) if signature.per_step else (signature.outputs,)
    if tuple(answer.shape[1:]) != shape:
        raise _misfit(f"it answers in shape {list(answer.shape[1:])}, not {list(shape)}")
    sizes = [size // 4 for size in saved.values()]
    answers = _LARGEST_ANSWER * answer.numel()
    kept = (sum(sizes) + answers) * _HOLES[0] // _HOLES[1]
    return Activations(kept // _EXAMPLES, max(sizes, default=0) // _EXAMPLES)


def _misfit(detail: str) -> InvalidInputError:
    return InvalidInputError(
        f"the network does not fit the data: {detail}"[:1000],
        code="network_does_not_fit",
        fix="correct network.config: image size, patch size, positions and the like must suit "
        "the examples",
        field="/network/config",
    )


def _table(network: nn.Module) -> list[Layer]:
    """Every module with parameters of its own; tied ones where they come first."""
    seen: set[int] = set()
    table = []
    for name, module in network.named_modules():
        own = {n: p for n, p in module.named_parameters(recurse=False) if id(p) not in seen}
        seen |= {id(p) for p in own.values()}
        if own:
            transposed = is_transposed_linear(module)
            shapes: dict[str, Shape] = {
                n: tuple(p.shape[::-1] if transposed else p.shape) for n, p in own.items()
            }
            kind = "Linear" if transposed else type(module).__name__
            table.append(Layer(name, kind, shapes))
    return table
