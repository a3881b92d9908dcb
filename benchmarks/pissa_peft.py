"""Check that peft loads the adapters that ``stiefel.lowrank.save_adapter`` writes.

python benchmarks/pissa_peft.py
"""

from __future__ import annotations

import tempfile

import peft
import torch
from torch import nn

from stiefel.lowrank import save_adapter, split_pissa


def main() -> None:
    net = nn.Sequential(nn.Linear(64, 96), nn.Tanh(), nn.Linear(96, 32)).eval()
    x = torch.randn(16, 64, generator=torch.Generator().manual_seed(0))
    before = net(x)
    with tempfile.TemporaryDirectory() as folder:
        save_adapter(split_pissa(net, ["0", "2"], 8), folder)
        loaded = peft.PeftModel.from_pretrained(net, folder).eval()
    gap = float((loaded(x) - before).detach().abs().max())
    print(f"peft {peft.__version__}: largest difference of the outputs {gap:.1e}")
    assert gap < 1e-5


if __name__ == "__main__":
    main()
