from __future__ import annotations

import pytest
import torch
from torch import Tensor

from stiefel.errors import InvalidInputError, NotConvergedError
from stiefel.linalg import choice, hermitian, orthogonality_defect, polar_factor
from stiefel.linalg.polar import ALGORITHMS, Algorithm, default_tolerance

REAL = [torch.float32, torch.float64]
ALL = [*REAL, torch.complex64, torch.complex128]
SHAPES = [(1, 1), (5, 3), (40, 40), (130, 70), (3, 20, 20), (2, 2, 30, 10)]


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def orthonormal(shape: tuple[int, ...], dtype: torch.dtype, seed: int) -> Tensor:
    return torch.linalg.qr(torch.randn(*shape, dtype=dtype, generator=generator(seed)))[0]


def conditioned(shape: tuple[int, ...], condition: float, dtype: torch.dtype) -> Tensor:
    """A matrix with singular values log-uniform between 1 and 1 / condition, exact in float64."""
    wide = torch.complex128 if dtype.is_complex else torch.float64
    p = shape[-1]
    sigma = torch.logspace(0, -torch.log10(torch.tensor(condition)).item(), p, dtype=wide)
    left, right = orthonormal(shape, wide, 1), orthonormal((*shape[:-2], p, p), wide, 2)
    return ((left * sigma) @ right.mH).to(dtype)


def svd_polar(x: Tensor) -> Tensor:
    wide = x.to(torch.complex128 if x.is_complex() else torch.float64)
    left, _, right = torch.linalg.svd(wide, full_matrices=False)
    return left @ right


@pytest.mark.parametrize("dtype", ALL)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("condition", [1.0, 3.0, 50.0, 1e3])
def test_factor_is_orthonormal_and_leaves_a_hermitian_psd_rest(
    shape: tuple[int, ...], condition: float, dtype: torch.dtype
) -> None:
    x = conditioned(shape, condition, dtype)
    factor, defect, _, _ = polar_factor(x)
    eps = torch.finfo(dtype).eps
    assert factor.shape == x.shape
    assert defect.shape == x.shape[:-2]
    assert torch.allclose(defect, orthogonality_defect(factor))
    assert float(defect.max()) <= default_tolerance(x)
    rest = factor.mH @ x
    assert float((rest - rest.mH).abs().max()) < 40 * eps * shape[-1]
    assert float(torch.linalg.eigvalsh(hermitian(rest)).min()) > -40 * eps * shape[-1]


@pytest.mark.parametrize("algorithm", list(ALGORITHMS))
@pytest.mark.parametrize("dtype", ALL)
@pytest.mark.parametrize("shape", [(40, 40), (96, 24), (3, 20, 20)])
@pytest.mark.parametrize("condition", [1.0, 1.2, 4.0, 20.0])
def test_every_algorithm_finds_the_same_factor(
    shape: tuple[int, ...], condition: float, dtype: torch.dtype, algorithm: Algorithm
) -> None:
    x = conditioned(shape, condition, dtype)
    factor = polar_factor(x, algorithm=algorithm).factor
    bound = 30 * condition * torch.finfo(dtype).eps
    assert float((factor - svd_polar(x)).abs().max()) < bound


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
def test_factor_is_nearer_than_any_other_unitary_matrix(dtype: torch.dtype) -> None:
    x = torch.randn(12, 7, dtype=dtype, generator=generator())
    nearest = torch.linalg.matrix_norm(x - polar_factor(x).factor)
    for seed in range(50):
        assert nearest <= torch.linalg.matrix_norm(x - orthonormal((12, 7), dtype, seed))


@pytest.mark.parametrize("algorithm", ["auto", *ALGORITHMS])
@pytest.mark.parametrize("scale", [1e-20, 1e20, 1e-38, 1e30])
def test_factor_does_not_change_with_scale(scale: float, algorithm: Algorithm) -> None:
    x = conditioned((24, 16), 5.0, torch.float32)
    scaled = polar_factor(x * scale, algorithm=algorithm).factor
    assert torch.allclose(scaled, polar_factor(x, algorithm=algorithm).factor, atol=1e-5)


def test_scale_may_differ_between_the_members_of_a_batch() -> None:
    x = conditioned((3, 24, 16), 1.1, torch.float64)
    scales = torch.tensor([1e-200, 1.0, 1e150], dtype=torch.float64)[:, None, None]
    assert torch.allclose(polar_factor(x * scales).factor, svd_polar(x), atol=1e-12)


@pytest.mark.parametrize("dtype", ALL)
def test_singular_and_zero_matrices_get_an_orthonormal_factor(dtype: torch.dtype) -> None:
    rank_three = conditioned((20, 3), 2.0, dtype) @ conditioned((3, 3), 2.0, dtype)
    x = torch.stack([torch.zeros(20, 8, dtype=dtype), torch.cat([rank_three] * 3, dim=1)[:, :8]])
    result = polar_factor(x)
    assert result.algorithm == "svd"
    assert float(result.defect.max()) <= default_tolerance(x)


def test_one_zero_singular_value_among_ones_is_found_out() -> None:
    x = torch.eye(600)
    x[0, 0] = 0
    assert polar_factor(x).algorithm == "svd"
    x[0, 0] = 1e-3
    assert torch.allclose(polar_factor(x).factor, torch.eye(600), atol=1e-6)


def test_one_huge_singular_value_among_ones_is_found_out() -> None:
    x = torch.eye(700, dtype=torch.float64)
    x[0, 0] = 9.0
    assert torch.allclose(polar_factor(x).factor, torch.eye(700, dtype=torch.float64))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_and_returned_in_float32(dtype: torch.dtype) -> None:
    x = conditioned((32, 32), 10.0, torch.float32).to(dtype)
    result = polar_factor(x)
    assert result.factor.dtype == torch.float32
    assert torch.equal(result.factor, polar_factor(x.float()).factor)


@pytest.mark.parametrize(
    ("x", "code"),
    [
        (torch.zeros(3, 4), "wide_matrix"),
        (torch.zeros(3), "wide_matrix"),
        (torch.tensor([[1.0], [torch.nan]]), "non_finite_weights"),
        (torch.tensor([[1.0], [torch.inf]]), "non_finite_weights"),
        (torch.ones(3, 3, dtype=torch.int64), "invalid_input"),
        (torch.eye(3).to_sparse(), "invalid_input"),
    ],
)
def test_unusable_input_is_refused(x: Tensor, code: str) -> None:
    with pytest.raises(InvalidInputError) as caught:
        polar_factor(x)
    assert caught.value.code == code


def test_an_unknown_algorithm_is_refused() -> None:
    with pytest.raises(InvalidInputError, match="halley"):
        polar_factor(torch.eye(2), algorithm="halley")  # type: ignore[arg-type]


@pytest.mark.parametrize("algorithm", ["newton", "newton_schulz", "polynomial", "gram"])
def test_an_iteration_forced_on_a_singular_matrix_says_so(algorithm: Algorithm) -> None:
    with pytest.raises(NotConvergedError, match=algorithm):
        polar_factor(torch.diag(torch.tensor([1.0, 1.0, 0.0])), algorithm=algorithm)


def test_a_tolerance_under_the_rounding_error_says_so() -> None:
    with pytest.raises(NotConvergedError):
        polar_factor(conditioned((50, 50), 3.0, torch.float32), tolerance=1e-9)


@pytest.mark.parametrize("shape", [(0, 5, 3), (4, 0), (0, 0)])
def test_empty_input_gives_an_empty_factor(shape: tuple[int, ...]) -> None:
    assert polar_factor(torch.zeros(shape)).factor.shape == shape


def test_batch_equals_loop_and_layout_does_not_matter() -> None:
    x = conditioned((4, 30, 20), 1.3, torch.float64)
    looped = torch.stack([polar_factor(member).factor for member in x])
    assert torch.allclose(polar_factor(x).factor, looped, atol=1e-13)
    transposed = x.mT.contiguous().mT
    assert torch.allclose(polar_factor(transposed).factor, looped, atol=1e-13)


def test_complex_equals_its_real_embedding() -> None:
    x = conditioned((16, 12), 8.0, torch.complex128)

    def embed(a: Tensor) -> Tensor:
        return torch.cat([torch.cat([a.real, -a.imag], 1), torch.cat([a.imag, a.real], 1)])

    assert torch.allclose(polar_factor(embed(x)).factor, embed(polar_factor(x).factor), atol=1e-13)


@pytest.mark.parametrize(
    ("shape", "intel", "amd"),
    [
        ((600, 600), ["newton", "newton", "newton"], ["gram", "newton", "svd"]),
        ((256, 256), ["polynomial", "newton", "newton"], ["gram", "newton", "svd"]),
        ((128, 128), ["polynomial", "polynomial", "newton"], ["polynomial", "polynomial", "svd"]),
        ((1024, 256), ["gram", "polynomial", "newton"], ["gram", "newton", "svd"]),
        ((64, 64), ["polynomial", "polynomial", "svd"], ["polynomial", "polynomial", "svd"]),
        ((256, 64), ["polynomial", "polynomial", "svd"], ["gram", "polynomial", "svd"]),
        ((12, 64, 64), ["polynomial"] * 3, ["polynomial"] * 3),
        (
            (5, 256, 256),
            ["polynomial", "polynomial", "newton"],
            ["polynomial", "polynomial", "svd"],
        ),
    ],
)
def test_the_choice_follows_shape_condition_and_processor(
    shape: tuple[int, ...], intel: list[str], amd: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs = [conditioned(shape, c, torch.float32) for c in (1.05, 30.0, 1e3, 1e8)]
    for regimes, names in ((choice.INTEL, intel), (choice.AMD, amd)):
        monkeypatch.setattr(choice, "measured", lambda regimes=regimes: regimes)
        assert [polar_factor(x).algorithm for x in inputs] == ["newton_schulz", *names]


def test_a_processor_has_regimes_whatever_its_maker() -> None:
    assert choice.measured() in (choice.INTEL, choice.AMD)


@pytest.mark.parametrize("algorithm", ["svd", "newton", "polynomial"])
@pytest.mark.parametrize("shape", [(64, 64), (300, 300), (96, 40), (3, 100, 100)])
@pytest.mark.parametrize("condition", [1e4, 1e6, 1e8])
def test_ill_conditioned_input_leaves_a_small_backward_error(
    shape: tuple[int, ...], condition: float, algorithm: Algorithm
) -> None:
    x = conditioned(shape, condition, torch.float32)
    factor = polar_factor(x, algorithm=algorithm).factor.double()
    rest = factor.mH @ x.double()
    error = torch.linalg.matrix_norm(x.double() - factor @ hermitian(rest))
    eps = torch.finfo(torch.float32).eps
    assert bool((error <= shape[-1] * eps * torch.linalg.matrix_norm(x)).all())
    assert float(torch.linalg.eigvalsh(hermitian(rest)).min()) > -shape[-1] * eps


def test_one_hidden_small_singular_value_does_not_change_the_answer() -> None:
    left, right = orthonormal((80, 80), torch.float64, 1), orthonormal((80, 80), torch.float64, 2)
    sigma = torch.linspace(1, 2, 80, dtype=torch.float64)
    sigma[3] = 1e-7
    x = (left * sigma) @ right
    assert torch.allclose(polar_factor(x).factor, left @ right, atol=1e-7)


def test_a_numerically_singular_matrix_gets_an_orthonormal_factor() -> None:
    for seed in range(5):
        g = generator(seed)
        x = torch.randn(300, 40, generator=g) @ torch.randn(40, 300, generator=g)
        result = polar_factor(x)
        assert float(result.defect) <= default_tolerance(x)
        rest = result.factor.mH @ x
        assert float((rest - rest.mH).norm()) <= 300 * 1.2e-7 * float(x.norm())


def test_the_factor_carries_no_graph() -> None:
    assert not polar_factor(torch.eye(3, requires_grad=True)).factor.requires_grad
