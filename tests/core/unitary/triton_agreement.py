"""Run by test_triton in a process of its own: Triton reads TRITON_INTERPRET when it is imported.

``interpret`` takes steps on the CPU by Triton's interpreter and compares them with PyTorch;
``compile`` compiles all kernels for an H100, for which no GPU is needed.
"""

from __future__ import annotations

import os
import sys
from typing import Any

MODE = sys.argv[1]
os.environ["TRITON_INTERPRET"] = "1" if MODE == "interpret" else "0"

import torch  # noqa: E402

from stiefel.unitary import cuda_algebra, kernels_cuda  # noqa: E402
from stiefel.unitary.drift import restore_columns_  # noqa: E402
from stiefel.unitary.rank_k_update import (  # noqa: E402
    Variant,
    _core,
    _grams,
    rank_k_update_,
    skinny_products,
)

VARIANTS: tuple[Variant, ...] = ("tangent", "direct", "cayley")
# One matrix, stacks, tall frames, padded ranks, whole tiles and rests, swept and multiplied.
CASES = [((64, 64), 1), ((100, 70), 3), ((3, 65, 33), 2), ((5, 5), 5), ((6, 6), 1)]


def interpret() -> None:
    generator = torch.Generator().manual_seed(0)
    for shape, k in CASES:
        W = torch.linalg.qr(torch.randn(shape, generator=generator)).Q.contiguous()
        a = torch.randn(*shape[:-1], k, generator=generator) * (0.3 / shape[-1])
        b = torch.randn(*shape[:-2], shape[-1], k, generator=generator)
        square = shape[-1] == shape[-2]
        for variant in VARIANTS if square else ("tangent", "cayley"):
            for columns in (range(0), range(2, 3), range(2, 4)):
                _compare(W, a, b, variant, columns, known=False)
            _compare(W, a, b, variant, range(2, 3), known=True)
    for dtype in (torch.float64, torch.complex128):
        for k in (1, 3):
            _small(dtype, k, generator)


def _compare(W: Any, a: Any, b: Any, variant: Variant, columns: range, *, known: bool) -> None:
    exact, fused = W.double(), W.clone()
    if len(columns) == 1:
        restore_columns_(exact, columns)
    rank_k_update_(exact, a.double(), b.double(), variant=variant)
    if len(columns) > 1:
        restore_columns_(exact, columns)
    products = skinny_products(W, a, b) if known else None
    kernels_cuda.step_(fused, a, b, variant=variant, columns=columns, products=products)
    error = float((exact - fused).abs().max())
    assert error < 3e-6, (W.shape, a.shape, variant, columns, known, error)


def _small(dtype: torch.dtype, k: int, generator: torch.Generator) -> None:
    W = torch.linalg.qr(torch.randn(2, 20, 20, dtype=dtype, generator=generator)).Q
    a, b = torch.randn(2, 2, 20, k, dtype=dtype, generator=generator) * 0.1
    Wa = W.mH @ a
    for variant in VARIANTS:
        wanted = _core(a, b, Wa, variant)
        grams = _grams(a, b, Wa, of_steps=variant != "direct")
        found = cuda_algebra.core(*grams, variant, accuracy=1e-17)
        error = float((wanted - found).abs().max() / wanted.abs().max())
        assert error < 1e-12, (dtype, k, variant, error)


def compile_() -> None:
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from stiefel.unitary import cuda_core, cuda_small, cuda_sweeps

    kernels: list[tuple[Any, dict[str, Any]]] = [
        (cuda_small.small, {"COMPLEX": True, "K": 4, "VARIANT": 1, "ACCURACY": 1e-17})
    ]
    for K in (1, 2, 8):
        sizes = {"K": K, "DRIFT": True, "LENGTH": 64}
        tiles = {"PRODUCTS": True, "BLOCK": 64, "ROWS": 8, "COLUMNS": 256}
        kernels.append((cuda_core.gathered, sizes | {"SUMMED": 1, "SWEPT": 16}))
        kernels += [
            (cuda_core.core, sizes | {"VARIANT": variant, "SUMMED": 8}) for variant in range(3)
        ]
        kernels.append((cuda_sweeps.products, {"K": K, "DRIFT": True} | tiles))
        rest = {"DRIFT": True, "ROWS": 4, "COLUMNS": 1024}
        kernels.append((cuda_sweeps.update, {"RANK": K} | rest))
    wide = ("grams", "gamma", "gram", "M")
    whole = ("n", "p", "k", "column", "chunks", "blocks", "sweeps", "parts")
    for kernel, sizes in kernels:
        signature = {
            name: "constexpr"
            if name in sizes
            else "i32"
            if name in whole or name.endswith(("_matrix", "_row", "_rank"))
            else "*fp64"
            if name in wide
            else "*fp32"
            for name in kernel.arg_names
        }
        source = ASTSource(fn=kernel, signature=signature, constexprs=sizes)
        compiled = triton.compile(source, target=GPUTarget("cuda", 90, 32))
        assert "ptx" in compiled.asm


{"interpret": interpret, "compile": compile_}[MODE]()
