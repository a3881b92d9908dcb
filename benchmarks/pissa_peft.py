"""Check that peft loads the adapters that ``stiefel.lowrank.save_adapter`` writes.

python benchmarks/pissa_peft.py
"""

from __future__ import annotations

import tempfile

import peft
import torch
from stage import command_line, publish
from torch import nn

from stiefel.lowrank import save_adapter, split_pissa


def main() -> None:
    net = nn.Sequential(nn.Linear(64, 96), nn.Tanh(), nn.Linear(96, 32)).eval()
    x = torch.randn(16, 64, generator=torch.Generator().manual_seed(0))
    before, weights = net(x), [net[i].weight.detach().clone() for i in (0, 2)]
    with tempfile.TemporaryDirectory() as folder:
        save_adapter(split_pissa(net, ["0", "2"], 8), folder)
        loaded = peft.PeftModel.from_pretrained(net, folder).eval()
    gap = float((loaded(x) - before).detach().abs().max())
    assert gap < 1e-5
    moved = [
        float((net[i].base_layer.weight - w).norm()) for i, w in zip((0, 2), weights, strict=True)
    ]
    row = {
        "peft": peft.__version__,
        "layers": "64 x 96, 96 x 32",
        "rank": 8,
        "weight taken into the adapters (norms)": ", ".join(f"{norm:.3f}" for norm in moved),
        "largest difference of the outputs": f"{gap:.1e}",
    }
    publish("pissa_peft", "PiSSA adapters loaded by peft", command_line(), [row])


if __name__ == "__main__":
    main()
