"""Layers and the optimizer on a GPU against the CPU."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from stiefel.linalg import polar_factor
from stiefel.manifold import random_point
from stiefel.unitary import (
    FourierConv2d,
    FrameConv2d,
    OrthogonalLinear,
    OrthogonalRNN,
    ProjUNN,
    UnitaryLinear,
    euclidean_parameters,
    manifold_parameters,
    rank_k_update,
)

Build = Callable[[torch.Generator], nn.Module]
LAYERS: dict[str, tuple[Build, tuple[int, ...]]] = {
    "linear": (lambda g: OrthogonalLinear(48, 48, generator=g), (8, 48)),
    "isometry": (lambda g: OrthogonalLinear(32, 48, generator=g), (8, 32)),
    "unitary": (lambda g: UnitaryLinear(24, 24, generator=g), (8, 24)),
    "relu": (lambda g: OrthogonalRNN(6, 40, generator=g), (4, 7, 6)),
    "modrelu": (
        lambda g: OrthogonalRNN(6, 40, nonlinearity="modrelu", generator=g),
        (4, 7, 6),
    ),
    "fourier": (lambda g: FourierConv2d(6, 8, (8, 8), generator=g), (4, 6, 8, 8)),
    "frame": (lambda g: FrameConv2d(6, 12, 3, generator=g), (4, 6, 8, 8)),
}


@pytest.fixture(autouse=True)
def _no_tf32() -> Iterator[None]:
    """cuDNN rounds to ten bits by default."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    yield
    torch.backends.cudnn.allow_tf32 = before


def loss_of(layer: nn.Module, x: Tensor) -> Tensor:
    y = layer(x)
    y = y[0] if isinstance(y, tuple) else y
    return (y.abs() - 0.3).square().sum()


@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_trains_as_on_the_cpu(
    name: str, device: torch.device, generator: torch.Generator
) -> None:
    build, shape = LAYERS[name]
    layer = build(generator)
    dtype = torch.complex64 if name == "unitary" else torch.float32
    x = torch.randn(shape, generator=generator, dtype=dtype)
    losses = []
    for place in (torch.device("cpu"), device):
        copied = copy.deepcopy(layer).to(place)
        optimizer = ProjUNN(manifold_parameters(copied), lr=1e-3, rank=8, seed=1)
        others = [*euclidean_parameters(copied)]
        rest = torch.optim.SGD(others, lr=1e-3) if others else None
        found = []
        for _ in range(4):
            loss = loss_of(copied, x.to(place))
            optimizer.zero_grad()
            copied.zero_grad()
            loss.backward()
            optimizer.step()
            if rest is not None:
                rest.step()
            found.append(float(loss.detach()))
        losses.append(found)
        assert max(float(d.max()) for d in optimizer.defects().values()) < 1e-4
    # Sketches are drawn on the device: a compressed gradient differs, exact factors do not.
    assert losses[1] == pytest.approx(losses[0], rel=2e-3)
    assert losses[1][0] == pytest.approx(losses[0][0], rel=1e-5)


@pytest.mark.parametrize(
    ("scaling", "momentum"),
    [("none", 0.0), ("none", 0.9), ("rmsprop", 0.0), ("rmsprop", 0.9), ("adam", 0.9)],
)
@pytest.mark.parametrize("variant", ["tangent", "direct", "cayley"])
def test_the_optimizer_steps_as_on_the_cpu(
    scaling: Any, momentum: float, variant: Any, device: torch.device, generator: torch.Generator
) -> None:
    start = [random_point(24, 24, generator=generator).float() for _ in range(2)]
    left, right = torch.randn(2, 2, 24, 3, generator=generator)
    ends = []
    for place in ("cpu", device):
        parameters = [nn.Parameter(x.clone().to(place)) for x in start]
        optimizer = ProjUNN(
            parameters, lr=1e-2, variant=variant, rank=3, scaling=scaling, momentum=momentum
        )
        for _ in range(3):
            for index, parameter in enumerate(parameters):
                parameter.grad = (left[index] @ right[index].mT).to(place)
            optimizer.step()
        ends.append([p.detach().cpu() for p in parameters])
    for host, other in zip(*ends, strict=True):
        torch.testing.assert_close(host, other, rtol=0, atol=2e-5)


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex64, torch.complex128])
@pytest.mark.parametrize("k", [1, 4, 20])
@pytest.mark.parametrize("variant", ["tangent", "direct", "cayley"])
def test_the_eager_update_is_that_of_the_cpu(
    dtype: torch.dtype, k: int, variant: Any, device: torch.device, generator: torch.Generator
) -> None:
    W = random_point(40, 40, generator=generator, dtype=torch.complex128)
    W = (W if dtype.is_complex else random_point(40, 40, generator=generator)).to(dtype)
    a, b = torch.randn(2, 40, k, generator=generator, dtype=dtype) * 0.1
    host = rank_k_update(W, a, b, variant=variant)
    other = rank_k_update(W.to(device), a.to(device), b.to(device), variant=variant).cpu()
    narrow = dtype == torch.complex64
    torch.testing.assert_close(host, other, rtol=0, atol=1e-5 if narrow else 1e-11)


def test_a_step_that_skips_what_is_not_finite_never_waits(
    gpu: torch.device, generator: torch.Generator
) -> None:
    """With exact factors; the sketch of a dense gradient ends in an SVD, which waits."""
    layer = OrthogonalLinear(256, 256, generator=generator).to(gpu)
    optimizer = ProjUNN(manifold_parameters(layer), lr=1e-3, nonfinite="skip")
    x = torch.randn(8, 256, generator=generator).to(gpu)
    for step in range(3):
        optimizer.zero_grad()
        layer(x).square().sum().backward()
        torch.cuda.set_sync_debug_mode("error" if step else "default")
        try:
            optimizer.step()
        finally:
            torch.cuda.set_sync_debug_mode("default")


def test_it_trains_in_half_precision_with_a_grad_scaler(
    gpu: torch.device, generator: torch.Generator
) -> None:
    layer = OrthogonalLinear(64, 64, generator=generator).to(gpu)
    optimizer = ProjUNN(manifold_parameters(layer), lr=1e-3, factored=False)
    scaler = torch.amp.GradScaler("cuda")
    x, first = torch.randn(8, 64, generator=generator).to(gpu), None
    for _ in range(20):
        optimizer.zero_grad()
        with torch.autocast("cuda", dtype=torch.float16):
            loss = (layer(x) - 1).square().mean()
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        first = float(loss.detach()) if first is None else first
    assert first is not None
    assert float(loss.detach()) < first


@pytest.mark.parametrize("shape", [(64, 64), (512, 512), (3, 96, 96), (600, 150)])
@pytest.mark.parametrize("condition", [1.0, 1e2, 1e6])
def test_polar_factors_are_orthonormal_and_nearest(
    shape: tuple[int, ...], condition: float, device: torch.device, generator: torch.Generator
) -> None:
    p = shape[-1]
    left = random_point(*shape, generator=generator, dtype=torch.float64)
    right = random_point(*shape[:-2], p, p, generator=generator, dtype=torch.float64)
    sigma = torch.logspace(0, -torch.tensor(condition).log10().item(), p, dtype=torch.float64)
    x = ((left * sigma) @ right).float()
    found = polar_factor(x.to(device))
    U = found.factor.cpu().double()
    assert float(found.defect.max()) <= 2 * p * 1.2e-7
    H = U.mT @ x.double()
    rest = x.double() - U @ (H + H.mT) / 2
    assert bool((torch.linalg.matrix_norm(rest) <= p * 1.2e-7 * torch.linalg.matrix_norm(x)).all())


def test_a_singular_matrix_has_a_polar_factor_too(device: torch.device) -> None:
    found = polar_factor(torch.zeros(32, 16, device=device))
    assert float(found.defect) < 1e-5


def test_tf32_is_for_layers_not_for_the_manifold(
    gpu: torch.device, generator: torch.Generator
) -> None:
    before = torch.backends.cuda.matmul.fp32_precision
    torch.backends.cuda.matmul.fp32_precision = "tf32"
    try:
        layer = OrthogonalLinear(128, 128, generator=generator).to(gpu)
        optimizer = ProjUNN(manifold_parameters(layer), lr=1e-2)
        x = torch.randn(8, 128, generator=generator).to(gpu)
        for _ in range(300):
            optimizer.zero_grad()
            (layer(x) - 1).square().mean().backward()
            optimizer.step()
    finally:
        torch.backends.cuda.matmul.fp32_precision = before
    W = layer.frame.detach().double()
    defect = torch.linalg.matrix_norm(W.mT @ W - torch.eye(128, device=gpu))
    assert float(defect) < 2e-6 * 128**0.5
