"""Products of few rows: the C++ kernel compared with oneDNN's own order of weights, in turn.

    python benchmarks/few_rows.py [--rounds N]

All linear layers of the embedded base in float32, one after the other as in a step of the engine, so that no weight is
in a cache; queries, keys and values as one product, and gate and up, too. Milliseconds of all of them, medians.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from machine import LoadWatch, gemm_gflops, processor
from torch import Tensor

from manytune.kernels.packed import Packed, pack
from manytune.store.base import load_base

ROWS = (1, 2, 4, 8, 16, 24, 32, 64, 128, 512)
#: Milliseconds of the kernel, compared with oneDNN's.
REQUIRED = 1.05


def weights_of(model: Any) -> list[Tensor]:
    """The layers' weights as they are multiplied."""
    found = []
    for block in model.model.layers:
        attention, feed_forward = block.self_attn, block.mlp
        for together in (
            (attention.q_proj, attention.k_proj, attention.v_proj),
            (attention.o_proj,),
            (feed_forward.gate_proj, feed_forward.up_proj),
            (feed_forward.down_proj,),
        ):
            found.append(torch.cat([layer.weight.detach() for layer in together]))
    return [*found, model.lm_head.weight.detach()]


def of_onednn(weight: Tensor) -> Packed:
    values = torch.ops.mkldnn._reorder_linear_weight(weight, 32)
    return Packed(values, weight.shape[0], weight.nbytes, in_panels=False)


def run(
    products: Sequence[Callable[[Tensor], Tensor]], inputs: dict[int, Tensor], widths: Sequence[int]
) -> float:
    start = time.perf_counter()
    for product, width in zip(products, widths, strict=True):
        product(inputs[width])
    return 1e3 * (time.perf_counter() - start)


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=9)
    options = parser.parse_args()
    weights = weights_of(load_base("embedded", dtype=torch.float32).model)
    widths = [weight.shape[1] for weight in weights]
    sides = {
        "kernel": [pack(weight).product(None) for weight in weights],
        "oneDNN": [of_onednn(weight).product(None) for weight in weights],
    }
    if not pack(weights[0]).in_panels:
        raise SystemExit("There is nothing to compare: this machine has no C++ kernels.")
    watch = LoadWatch()
    print("| rows | kernel, ms | oneDNN, ms | ratio |\n|---|---|---|---|")
    missed = False
    for rows in ROWS:
        inputs = {width: torch.randn(rows, width) for width in set(widths)}
        times: dict[str, list[float]] = {name: [] for name in sides}
        for _ in range(options.rounds + 1):  # the first to warm up
            for name, products in sides.items():
                times[name].append(run(products, inputs, widths))
        kernel, other = (statistics.median(own[1:]) for own in times.values())
        missed = missed or kernel > REQUIRED * other
        print(f"| {rows} | {kernel:.1f} | {other:.1f} | {kernel / other:.2f} |", flush=True)
    print(f"\n{watch.stop()}; {processor()}, {gemm_gflops():.0f} GFLOP/s, {torch.get_num_threads()} threads")
    print(f"ratio (required at most {REQUIRED}) {'MISSED' if missed else 'ok'}")


if __name__ == "__main__":
    main()
