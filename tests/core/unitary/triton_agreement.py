"""Run by test_triton in a process of its own: Triton reads TRITON_INTERPRET when it is imported.

``interpret`` takes steps on the CPU by Triton's interpreter and compares them with PyTorch;
``compile`` compiles both kernels for an H100, for which no GPU is needed.
"""

from __future__ import annotations

import os
import sys

MODE = sys.argv[1]
os.environ["TRITON_INTERPRET"] = "1" if MODE == "interpret" else "0"

import torch  # noqa: E402

from stiefel.unitary import kernels_cuda  # noqa: E402
from stiefel.unitary.drift import restore_columns_  # noqa: E402
from stiefel.unitary.rank_k_update import rank_k_update_  # noqa: E402

# Tiles are 16 or 64 by 64: whole ones, rests, one matrix, stacks, tall frames, padded ranks.
CASES = [((64, 64), 1), ((100, 70), 3), ((3, 65, 33), 2), ((2, 130, 130), 8), ((5, 5), 5)]


def interpret() -> None:
    generator = torch.Generator().manual_seed(0)
    for shape, k in CASES:
        W = torch.linalg.qr(torch.randn(shape, generator=generator)).Q.contiguous()
        a = torch.randn(*shape[:-1], k, generator=generator) / (10 * shape[-1])
        b = torch.randn(*shape[:-2], shape[-1], k, generator=generator)
        for variant in ("tangent", "direct", "cayley"):
            for columns in (range(0), range(2, 4)):
                eager, fused = W.clone(), W.clone()
                rank_k_update_(eager, a, b, variant=variant)
                if columns:
                    restore_columns_(eager, columns)
                kernels_cuda.step_(fused, a, b, variant=variant, columns=columns)
                error = float((eager - fused).abs().max())
                assert error < 3e-6, (shape, k, variant, columns, error)


def compile_() -> None:
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from stiefel.unitary import cuda_sweeps

    tile = {"ROWS": kernels_cuda._ROWS, "COLUMNS": kernels_cuda._COLUMNS}
    kernels = [(cuda_sweeps.update, tile)]
    for rank in range(1, kernels_cuda.LARGEST_RANK + 1):
        sizes = {"K": kernels_cuda._padded(rank), "ROWS": kernels_cuda._PRODUCT_ROWS}
        kernels.append((cuda_sweeps.products, tile | sizes))
    for kernel, sizes in kernels:
        whole = ("n", "p", "k", "q", "blocks")
        signature = {
            name: "constexpr" if name in sizes else "i32" if name in whole else "*fp32"
            for name in kernel.arg_names
        }
        source = ASTSource(fn=kernel, signature=signature, constexprs=sizes)
        compiled = triton.compile(source, target=GPUTarget("cuda", 90, 32))
        assert "ptx" in compiled.asm


{"interpret": interpret, "compile": compile_}[MODE]()
