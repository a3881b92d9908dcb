"""Identities of low-rank training on small shapes: in float64, and in float32 to its rounding."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch
from torch import nn

from stiefel.lowrank import LowRankIntegrator, LowRankLinear, RankRule
from stiefel.lowrank.product import Tape
from stiefel.lowrank.steps import (
    Factors,
    Gradients,
    augment,
    augmented_gradient,
    rotate,
    transport_first,
    transport_second,
)
from stiefel.lowrank.truncation import kept_rank, truncate_core

_spec = importlib.util.spec_from_file_location(
    "lowrank_reference", Path(__file__).with_name("reference.py")
)
reference = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(reference)

N, M, R, B = 14, 11, 3, 20


@pytest.fixture(params=[torch.float64, torch.float32], ids=["float64", "float32"])
def dtype(request):
    return request.param


def close(got, expected, tight=None):
    """Equal to ``tight`` in float64, by default to rounding of the entries; in float32 to 1e-5."""
    if got.dtype == torch.float32:
        torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)
    elif tight is None:
        torch.testing.assert_close(got, expected)
    else:
        torch.testing.assert_close(got, expected, atol=tight, rtol=0)


@pytest.fixture
def problem(normal, factors):
    """Factors, the dense gradient G of a nonlinear loss, and what our tape recorded for it."""
    f = factors(N, M, R)
    x, y = normal(B, M), normal(B, N)

    def loss(weight):
        return ((torch.tanh(x @ weight.mT) - y) ** 2).mean()

    layer = LowRankLinear.from_factors(f, None)
    layer.tape = Tape()
    ((torch.tanh(layer(x)) - y) ** 2).mean().backward()
    dense = f.product().requires_grad_()
    loss(dense).backward()
    return f, dense.grad, layer, loss


def gradients(layer):
    return Gradients(layer.tape.grad_k, layer.tape.grad_l, layer.S.grad)


def test_one_tape_yields_the_gradients_by_k_l_and_s(problem):
    f, G, layer, loss = problem
    got = gradients(layer)
    close(got.grad_k, G @ f.right)
    close(got.grad_l, G.mT @ f.left)
    close(got.grad_s, f.left.mT @ G @ f.right)
    K = (f.left @ f.core).requires_grad_()
    loss(K @ f.right.mT).backward()
    close(got.grad_k, K.grad)
    L = (f.right @ f.core.mT).requires_grad_()
    loss(f.left @ L.mT).backward()
    close(got.grad_l, L.grad)
    U = f.left.clone().requires_grad_()
    loss(U @ f.core @ f.right.mT).backward()
    close(got.grad_k, U.grad @ torch.linalg.inv(f.core).mT)


@pytest.mark.parametrize("algorithm", ["householder", "cholesky"])
def test_augmentation_changes_nothing_but_the_bases(problem, algorithm):
    f, _, layer, loss = problem
    got = gradients(layer)
    grown, _, _ = augment(f, got.grad_k, got.grad_l, algorithm=algorithm)
    close(grown.product(), f.product(), 1e-14)
    for basis in (grown.left, grown.right):
        close(basis.mT @ basis, torch.eye(2 * R, dtype=basis.dtype), 1e-14)
    # The K-, L- and S-pass of the published method see one and the same function.
    K, L = f.left @ f.core, f.right @ f.core.mT
    losses = torch.stack([loss(w) for w in (K @ f.right.mT, f.left @ L.mT, grown.product())])
    close(losses, losses[0].expand(3), 1e-14)


def stepped(problem, variant, rate):
    f, _, layer, _ = problem
    got = gradients(layer)
    grown, new_left, new_right = augment(f, got.grad_k, got.grad_l)
    corner = layer.corner(layer.tape, new_left, new_right) if variant == "exact" else None
    gradient = augmented_gradient(got, new_left, new_right, corner)
    return grown, gradient, grown.left @ (grown.core - rate * gradient) @ grown.right.mT


def test_exact_step_is_the_projected_gradient_step(problem):
    f, G, _, _ = problem
    grown, gradient, product = stepped(problem, "exact", 0.3)
    close(gradient, grown.left.mT @ G @ grown.right)
    left, right = grown.left @ grown.left.mT, grown.right @ grown.right.mT
    close(product, f.product() - 0.3 * left @ G @ right)


def test_parallel_step_is_the_riemannian_gradient_step(problem):
    f, G, _, _ = problem
    _, _, product = stepped(problem, "parallel", 0.3)
    left, right = f.left @ f.left.mT, f.right @ f.right.mT
    tangent = left @ G + G @ right - left @ G @ right
    close(product, f.product() - 0.3 * tangent)


def test_variants_differ_by_the_corner_alone(problem):
    f, G, layer, _ = problem
    got = gradients(layer)
    _, new_left, new_right = augment(f, got.grad_k, got.grad_l)
    exact, parallel = stepped(problem, "exact", 0.3)[2], stepped(problem, "parallel", 0.3)[2]
    corner = new_left @ new_left.mT @ G @ new_right @ new_right.mT
    close(exact - parallel, -0.3 * corner)


@pytest.mark.parametrize("variant", ["exact", "parallel"])
def test_full_rank_training_without_truncation_is_dense_training(normal, generator, dtype, variant):
    sizes, x = [9, 7, 8], normal(B, 9)
    target = torch.randint(0, 8, (B,), generator=generator)
    net = nn.Sequential(
        LowRankLinear(9, 7, 7, generator=generator, dtype=dtype),
        nn.Tanh(),
        LowRankLinear(7, 8, 7, generator=generator, dtype=dtype),
    )
    dense = nn.Sequential(nn.Linear(9, 7), nn.Tanh(), nn.Linear(7, 8)).to(dtype)
    with torch.no_grad():
        for i in (0, 2):
            dense[i].weight.copy_(net[i].weight)
            dense[i].bias.copy_(net[i].bias)
    ours = torch.optim.SGD(net.parameters(), lr=0.1)
    theirs = torch.optim.SGD(dense.parameters(), lr=0.1)
    integrator = LowRankIntegrator(net, ours, tolerance=0.0, phase=1, variant=variant)
    for _ in range(10):
        for model, step in ((net, integrator.step), (dense, theirs.step)):
            model.zero_grad()
            nn.functional.cross_entropy(model(x), target).backward()
            step()
    assert sizes[1] == net[0].rank
    for i in (0, 2):
        close(net[i].weight, dense[i].weight, 1e-11)


def test_one_pass_equals_the_mended_three_pass_method(normal, generator, dtype):
    x = normal(B, 12)
    target = torch.randint(0, 10, (B,), generator=generator)
    net = nn.Sequential(
        LowRankLinear(12, 16, 4, bias=False, generator=generator, dtype=dtype),
        nn.Tanh(),
        LowRankLinear(16, 10, 4, bias=False, generator=generator, dtype=dtype),
    )
    layers = [net[0].factors, net[2].factors]
    integrator = LowRankIntegrator(
        net, torch.optim.SGD(net.parameters(), lr=0.2), tolerance=0.05, phase=1, min_rank=1
    )

    def loss(weights):
        return nn.functional.cross_entropy(torch.tanh(x @ weights[0].mT) @ weights[1].mT, target)

    for _ in range(20):
        layers = [reference.truncate(f, 0.05) for f in reference.three_pass_step(layers, loss, 0.2)]
        net.zero_grad()
        nn.functional.cross_entropy(net(x), target).backward()
        integrator.step()
        assert [f.core.shape[0] for f in layers] == [net[0].rank, net[2].rank]
    for f, i in zip(layers, (0, 2), strict=True):
        close(net[i].weight, f.product(), 1e-12)


@pytest.mark.parametrize("tolerance", [1e-3, 0.05, 0.1, 0.3, 0.9])
def test_truncation_keeps_the_least_rank_within_the_tolerance(normal, dtype, tolerance):
    core = normal(12, 12) * torch.logspace(0, -4, 12, dtype=dtype)
    cut = truncate_core(core, RankRule(tolerance))
    sigma = torch.linalg.svdvals(core)
    rebuilt = cut.left @ torch.diag(cut.sigma) @ cut.right.mT
    distance = torch.linalg.norm(rebuilt - core)
    close(distance, sigma[cut.rank :].norm(), 1e-12)
    assert distance <= tolerance * sigma.norm()
    assert sigma[cut.rank - 1 :].norm() > tolerance * sigma.norm()


def test_truncation_at_both_ends():
    sigma = torch.tensor([4.0, 3.0, 2.0, 1.0])
    assert kept_rank(sigma, RankRule(0.0)) == 4
    # A tail of one entry counts: dropping sigma_4 = 1 is allowed from 1 / sqrt(30) on.
    assert kept_rank(sigma, RankRule(30**-0.5 + 1e-9)) == 3
    assert kept_rank(sigma, RankRule(30**-0.5 - 1e-6)) == 4
    assert kept_rank(sigma, RankRule(1.0, least=2)) == 2
    assert kept_rank(sigma, RankRule(5.0)) == 1
    assert kept_rank(sigma, RankRule(0.0, most=3)) == 3
    assert kept_rank(sigma, RankRule(1.0, relative=False)) == 3
    assert kept_rank(sigma, RankRule(0.99, relative=False)) == 4


def test_truncation_without_loss_leaves_an_unsymmetric_product_unchanged(factors):
    """The published code takes V from the rows of Q^T; the product is then another matrix."""
    f = factors(9, 8, 5)
    cut = truncate_core(f.core, RankRule(0.0))
    got = rotate(f, cut.left, cut.sigma, cut.right)
    close(got.product(), f.product(), 1e-13)
    wrong = rotate(f, cut.left, cut.sigma, cut.right.mT)
    assert torch.linalg.norm(wrong.product() - f.product()) > 0.5


def test_bases_stay_orthonormal_over_ten_thousand_steps(generator):
    net = nn.Sequential(LowRankLinear(12, 10, 3, generator=generator))
    integrator = LowRankIntegrator(
        net, torch.optim.SGD(net.parameters(), lr=0.05), phase=2, max_rank=4, tolerance=0.1
    )
    x = torch.randn(16, 12, generator=generator)
    y = torch.randn(16, 10, generator=generator)
    for _ in range(10_000):
        net.zero_grad()
        ((net(x) - y) ** 2).mean().backward()
        integrator.step()
    for basis in (net[0].U, net[0].V):
        assert torch.linalg.norm(basis.mT @ basis - torch.eye(basis.shape[1])) <= 1e-5


def test_signs_of_the_new_directions_do_not_matter(problem):
    f, _, layer, _ = problem
    got = gradients(layer)
    grown, new_left, new_right = augment(f, got.grad_k, got.grad_l)
    products = []
    for sign in (1, -1):
        corner = layer.corner(layer.tape, sign * new_left, new_right)
        gradient = augmented_gradient(got, sign * new_left, new_right, corner)
        left = torch.cat((f.left, sign * new_left), 1)
        products.append(left @ (grown.core - 0.3 * gradient) @ grown.right.mT)
    close(*products)


def test_small_steps_descend_at_the_predicted_rate(problem, dtype):
    f, _, _, loss = problem
    # In float32 the loss itself is known to 1e-7: a step of 1e-4 changes it too little to tell.
    rates = ((1e-4, 1e-3), (1e-2, 0.1)) if dtype == torch.float64 else ((1e-2, 0.1),)
    for rate, margin in rates:
        _, gradient, product = stepped(problem, "exact", rate)
        ratio = (loss(f.product()) - loss(product)) / (rate * gradient.norm() ** 2)
        assert abs(ratio - 1) < margin


def test_tiny_singular_values_do_no_harm(normal, dtype):
    """dK holds no inverse of S: the step with sigma_r = 1e-10 is as exact as any."""
    x, y = normal(B, M), normal(B, N)
    left, right = torch.linalg.qr(normal(N, R)).Q, torch.linalg.qr(normal(M, R)).Q
    f = Factors(left, torch.diag(torch.tensor([1.0, 1e-5, 1e-10], dtype=dtype)), right)
    layer = LowRankLinear.from_factors(f, None)
    layer.tape = Tape()
    ((layer(x) - y) ** 2).sum().backward()
    G = 2 * (x @ f.product().mT - y).mT @ x
    close(layer.tape.grad_k, G @ right, 1e-10)
    close(layer.tape.grad_l, G.mT @ left, 1e-10)


def test_rotated_momentum_gives_the_same_next_iterate(problem, normal):
    f, G, _, _ = problem
    momentum = normal(R, R)
    P, Q = torch.linalg.qr(normal(R, R)).Q, torch.linalg.qr(normal(R, R)).Q
    turned = Factors(f.left @ P, P.mT @ f.core @ Q, f.right @ Q)
    close(turned.product(), f.product())
    iterates = []
    for g, m in ((f, momentum), (turned, transport_first(momentum, P, Q))):
        m = 0.9 * m + g.left.mT @ G @ g.right
        iterates.append(g.left @ (g.core - 0.1 * m) @ g.right.mT)
    close(*iterates)


def test_second_moments_turn_as_those_of_entries_that_do_not_correlate(normal):
    P, Q = torch.linalg.qr(normal(R, R)).Q, torch.linalg.qr(normal(R, R)).Q
    v = normal(R, R).square()
    turned = transport_second(v, P, Q)
    close(turned.sum(), v.sum())
    close(transport_second(torch.ones_like(v), P, Q), torch.ones_like(v))
    sampled = [(P.mT @ (v.sqrt() * normal(R, R)) @ Q).square() for _ in range(4000)]
    error = (torch.stack(sampled).mean(0) - turned).abs().max()
    assert float(error) < 0.15 * float(turned.max())
    swap = torch.eye(R, dtype=v.dtype).roll(1, 0) * normal(R).sign()
    close(transport_second(v, swap, swap), swap.mT.abs() @ v @ swap.abs())
    # No entry of the mean is large against its root, whatever the bases do.
    m = v.sqrt() * normal(R, R).sign()
    step = transport_first(m, P, Q).abs() / turned.sqrt()
    assert float(step.max()) <= R
