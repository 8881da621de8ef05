"""The C++ kernels compared with torch's own operations for the same work, in one run.

    python benchmarks/cpu_kernels.py --e2e devset.csv [--rounds 15] [--rank 8]

Attention: a layer's, forward and backward, over shared-prefix batches of 16 examples from E2E and of 9 questions from
ACLSum, SmolLM2-135M's heads. LoRA: what it adds to the seven linear layers of one of its blocks, forward and
backward, without the layers' own products. Either side in turn; shown are medians and their ratio.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from machine import LoadWatch, gemm_gflops
from torch import Tensor

from manytune.kernels import low_rank
from manytune.kernels.build import load_kernels
from manytune.store.base import Base, load_base
from manytune.training.batches import Batch, builder
from manytune.training.batches.attention import cpu as cpu_attention
from manytune.training.batches.attention import kernel as kernel_attention
from manytune.training.batches.grouping import plan_batches, rows_of_one
from training import SCENARIOS, examples_of


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--e2e", required=True, help="the E2E development set: CSV, columns mr and ref")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--rank", type=int, default=8, help="of LoRA; the kernel takes up to 32")
    options = parser.parse_args()
    kernels = load_kernels()
    if kernels.library is None:
        raise SystemExit(f"There is nothing to compare: {kernels.note}.")
    base = load_base("embedded", dtype=torch.float32)
    print(f"{torch.get_num_threads()} threads, {gemm_gflops():.0f} GFLOP/s, torch {torch.__version__}")
    watch = LoadWatch()
    for scenario in SCENARIOS:
        examples = examples_of(scenario, base, options.e2e)
        plan = plan_batches(
            rows_of_one(examples), seed=9, batch_size=scenario.batch_size, group_prefixes=scenario.grouped
        )
        batch = builder("shared-prefix")([examples[i] for i in plan[0]], pad_id=base.tokenizer.pad_token_id)
        sides = [_attention(way.attend, batch, base) for way in (kernel_attention, cpu_attention)]
        _show(f"attention, {scenario.name}, {batch.tokens_computed} tokens", *sides, rounds=options.rounds)
        layers = _layers(base, batch.tokens_computed, options.rank)
        sides = [_through(layers, way) for way in (_by_kernel, _by_torch)]
        _show(f"LoRA, {scenario.name}, {batch.tokens_computed} tokens", *sides, rounds=options.rounds)
    print(watch.stop())


def _attention(attend: Callable[..., Tensor], batch: Batch, base: Base) -> Callable[[], object]:
    config, draw = base.model.config, torch.Generator().manual_seed(0)
    heads, key_heads = config.num_attention_heads, config.num_key_value_heads
    dim = config.hidden_size // heads
    query, key, value, grad = (
        torch.randn(batch.tokens_computed, count, dim, generator=draw)
        for count in (heads, key_heads, key_heads, heads)
    )
    inputs = [x.requires_grad_() for x in (query, key, value)]

    def work() -> object:
        out = attend(*inputs, batch.layout, dim**-0.5, None)
        return torch.autograd.grad(out, inputs, grad)

    return work


def _layers(base: Base, rows: int, rank: int) -> list[tuple[Tensor, ...]]:
    """Inputs, factors, outputs and their gradients, of the first block's linear layers."""
    block = base.model.get_decoder().layers[0]
    weights = [m.weight for m in block.modules() if isinstance(m, torch.nn.Linear)]
    draw = torch.Generator().manual_seed(0)
    return [
        tuple(
            torch.randn(*shape, generator=draw)
            for shape in ((rows, w.shape[1]), (rank, w.shape[1]), (w.shape[0], rank), (rows, w.shape[0]))
        )
        for w in weights
    ]


def _through(layers: list[tuple[Tensor, ...]], way: Callable[..., None]) -> Callable[[], object]:
    return lambda: [way(*layer) for layer in layers]


def _by_kernel(x: Tensor, a: Tensor, b: Tensor, grad: Tensor) -> None:
    library = load_kernels().loaded()
    y, grad_x = torch.zeros_like(grad), torch.zeros_like(x)
    low = low_rank.forward(library, x, a, b, y, 2.0)
    low_rank.backward(library, grad, x, low, a, b, grad_x, 2.0)


def _by_torch(x: Tensor, a: Tensor, b: Tensor, grad: Tensor) -> None:
    y, grad_x = torch.zeros_like(grad), torch.zeros_like(x)
    low = x @ a.t()
    y.addmm_(low, b.t(), alpha=2.0)
    grad_low = (grad @ b.t().contiguous().t()).mul_(2.0)
    grad_x.addmm_(grad_low, a)
    grad_low.t() @ x
    (low.t() @ grad).mul_(2.0).t().contiguous()


def _show(name: str, ours: Callable[[], object], theirs: Callable[[], object], *, rounds: int) -> None:
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(rounds + 2):
        for work, spent in zip((ours, theirs), times, strict=True):
            start = time.perf_counter()
            work()
            spent.append(1e3 * (time.perf_counter() - start))
    kernel, torch_own = (statistics.median(spent[2:]) for spent in times)
    print(f"{name}: {kernel:.1f} ms against {torch_own:.1f}, {kernel / torch_own:.2f}x", flush=True)


if __name__ == "__main__":
    main()
