"""A training step's model FLOP/s utilization (MFU): its required FLOPs over what the machine could do in its time.

Required for LoRA on a frozen base, a step on T computed tokens: 2 P T for the forward products with the P
weights of the layers and as much for the gradients of their inputs; the adapter's own products, 6 r (in +
out) T; the head on the rows that predict targets, forward and backward; attention over the pairs that see
each other. What the machine can do is measured, in FLOP/s of products of exactly these shapes.
"""

from __future__ import annotations

import statistics
import time
from collections import Counter
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from manytune.data.encoding.encoded import Encoded
from manytune.kernels.products import fast_products, product
from manytune.store.base import Base
from manytune.training.batches import Batch, packed_attention
from manytune.training.batches.shared_prefix import build
from manytune.training.speed.chunked_cross_entropy import loss_sum
from manytune.training.speed.compilation import compiled_layers


def model_flops_utilization(
    model: nn.Module, batches: Sequence[Sequence[Encoded]], base: Base, *, compiled: bool
) -> float:
    """MFU: required FLOPs of training steps ÷ (their time × FLOP/s of the same products alone); the median.

    Args:
        model: With LoRA attached.
        batches: A few batches; the first warms up.
        base: For the head's shape and the padding id.
        compiled: Whether the layers are compiled first.
    """
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-5, fused=True)

    def step(rows: Sequence[Encoded]) -> Batch:
        batch = build(rows, pad_id=base.tokenizer.pad_token_id)
        (loss_sum(model, batch) / batch.targets).backward()
        optimizer.step()
        optimizer.zero_grad()
        return batch

    def first_loss() -> Tensor:
        return loss_sum(model, build(batches[0], pad_id=base.tokenizer.pad_token_id))

    utilizations = []
    with (
        packed_attention(model.train()),
        fast_products(model),
        compiled_layers(model, first_loss, enabled=compiled),
    ):
        step(batches[0])
        for rows in batches[1:]:
            start = time.perf_counter()
            batch = step(rows)
            seconds = time.perf_counter() - start
            utilizations.append(_required_seconds(model, batch, rows, base) / seconds)
    return statistics.median(utilizations)


def _required_seconds(model: nn.Module, batch: Batch, rows: Sequence[Encoded], base: Base) -> float:
    """How long the required FLOPs of a step would take at the FLOP/s of its largest products."""
    config = base.model.config
    linear = Counter(
        (m.in_features, m.out_features) for n, m in base.model.named_modules() if _is_layer_linear(n, m)
    )
    tokens, heads = batch.tokens_computed, len(batch.logit_positions)
    shapes = Counter({(tokens, *shape): count for shape, count in linear.items()})
    shapes[(heads, config.hidden_size, config.vocab_size)] += 1
    products = sum(4 * n * i * o * count for (n, i, o), count in shapes.items())
    products_seconds = sum(_seconds(n, i, o) * count for (n, i, o), count in shapes.items())
    head_dim = getattr(config, "head_dim", config.hidden_size // config.num_attention_heads)
    attention = 12 * _pairs(rows) * config.num_attention_heads * head_dim * config.num_hidden_layers
    adapters = 6 * tokens * sum(p.numel() for p in model.parameters() if p.requires_grad)
    return (products + attention + adapters) * products_seconds / products


def _is_layer_linear(name: str, module: nn.Module) -> bool:
    return isinstance(module, nn.Linear) and "lora_" not in name and not name.endswith("lm_head")


def _pairs(rows: Sequence[Encoded]) -> int:
    """Pairs of a computed token and one that it sees: each distinct prefix is one token, and sees its own length."""
    prefixes = {row.input_ids[: end + 1] for row in rows for end in range(len(row.input_ids) - 1)}
    return sum(map(len, prefixes))


def _seconds(n: int, i: int, o: int) -> float:
    """Time of the two products that a frozen linear layer needs on n rows: y = x Wᵀ and the gradient of x."""
    x, w, g = torch.randn(n, i), torch.randn(o, i), torch.randn(n, o)
    return _median(lambda: product(x, w)) + _median(lambda: product(g, w.t()))


def _median(work: Callable[[], object]) -> float:
    times = []
    for _ in range(6):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return statistics.median(times[1:])
