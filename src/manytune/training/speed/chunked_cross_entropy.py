"""Chunked cross-entropy: the head runs on chunks of rows, so that the logits of all targets are never held at once.

With a vocabulary of 50,000, the logits of 500 targets take 100 MB, their softmax and their gradient as much again. The
loss is a sum over targets, so a chunk's logits can give their share of the loss and of its gradient, and be freed:

    L = sum_c nll(head(h_c)),    dL/dh_c = (dnll/dz)(head(h_c)) · (dhead/dh)(h_c)

Both are computed in the forward pass; the backward pass scales them. The head is whatever module the model has: tied,
untied, with an adapter, or trained in full.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from transformers import PreTrainedModel

from manytune.kernels.products import is_plain
from manytune.layer_forwards import replaced_forwards
from manytune.sharded import fsdp_units
from manytune.training.batches import AnyBatch, Batch, LabelledBatch, Seq2SeqBatch
from manytune.training.batches.batch import base_model
from manytune.training.batches.target_loss import nll_and_gradient, weighted_nll
from manytune.training.speed.chunk_size import CHUNK_LOGITS, rows_of_chunk

_HEAD_IS_LAST: WeakKeyDictionary[nn.Module, bool] = WeakKeyDictionary()


def loss_sum(model: nn.Module, batch: AnyBatch, *, chunk_logits: int = CHUNK_LOGITS) -> Tensor:
    """Run the model on a batch and sum the negative log likelihoods of its target tokens.

    A classifier has a label a row and few logits. A model that computes something after its head, other than a soft
    cap that its configuration names, gives all logits at once.

    Args:
        model: A language model or a classifier, inside `packed_attention` if the batch has a layout.
        batch: On the model's device.
        chunk_logits: How many logits are held at once, at most.

    Returns:
        A scalar in nats, with a gradient where gradients are on. Divided by `batch.targets` it is the mean
        loss.
    """
    if isinstance(batch, LabelledBatch):
        return batch.loss_sum(batch.logits(model))
    inputs = batch.model_inputs(model)
    base = base_model(model)
    head = base.get_output_embeddings()
    if head is None or _is_watched(head) or not _head_is_last(model, base, head, inputs):
        return batch.loss_sum(model(**inputs).logits)
    vocabulary = base.config.get_text_config().vocab_size
    with _without_cap(base) as cap:
        targets = _Targets(head, cap, rows_of_chunk(vocabulary, chunk_logits), batch)
        with replaced_forwards({head: targets.loss_sum}):
            loss: Tensor = model(**inputs).logits
    return loss


class _Targets:
    """A batch's targets and the head that predicts them, a chunk of rows at a time.

    Args:
        head: The model's, with its own forward in place.
        cap: The soft cap of its logits, if they have one.
        most_rows: How many rows it runs on at once.
        batch: The batch.
    """

    def __init__(
        self,
        head: nn.Module,
        cap: float | None,
        most_rows: int,
        batch: Batch | Seq2SeqBatch,
    ) -> None:
        self._head, self._cap, self._most_rows, self._batch = head, cap, most_rows, batch
        self._run: Callable[[Tensor], Tensor] = head.forward
        self._owned = cap is None and is_plain(head)
        order = batch.target_rows.argsort(stable=True)
        self._rows = batch.target_rows[order]
        self._labels, self._weights = batch.labels[order], batch.weights[order]

    def loss_sum(self, hidden: Tensor) -> Tensor:
        """The sum over all targets, in place of the head's forward.

        It is computed inside the model's own call, where wrappers such as DistributedDataParallel and FSDP2 expect the
        head to run: the latter has gathered its weights then.

        Args:
            hidden: What the head reads, shape `(rows, kept or columns, width)`.
        """
        trained = [parameter for parameter in self._head.parameters() if parameter.requires_grad]
        kept = self._batch.kept(hidden).flatten(0, 1)
        loss: Tensor = _ChunkedCrossEntropy.apply(kept, self, *trained)  # type: ignore[no-untyped-call]
        return loss

    def chunks(self, rows: int) -> Iterator[tuple[slice, tuple[Tensor, Tensor, Tensor]]]:
        """Slices of so many rows in all, and the targets that read each: row in the slice, label, weight."""
        count = math.ceil(rows / self._most_rows)
        step = math.ceil(rows / count)  # all of a size: a small rest would cost as much as a whole chunk
        starts = range(0, rows, step)
        bounds = torch.tensor([*starts, rows], device=self._rows.device)
        edges = torch.searchsorted(self._rows, bounds).tolist()
        for start, first, last in zip(starts, edges, edges[1:], strict=False):
            own = slice(first, last)
            yield slice(start, start + step), (self._rows[own] - start, self._labels[own], self._weights[own])

    def logits(self, hidden: Tensor) -> Tensor:
        """A slice's logits."""
        logits = self._run(hidden)
        return logits if self._cap is None else self._cap * torch.tanh(logits / self._cap)

    def owned(self, logits: Tensor) -> Tensor:
        """The logits' values in memory that may be written to: a linear layer's backward doesn't read its result."""
        values = logits.detach()
        return values if self._owned else values.clone()


class _ChunkedCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, targets: _Targets, *trained: Tensor) -> Tensor:
        needs_hidden, _, *needs_trained = ctx.needs_input_grad
        total = hidden.new_zeros((), dtype=torch.promote_types(hidden.dtype, torch.float32))
        weights = [p for p, needed in zip(trained, needs_trained, strict=True) if needed]
        weight_grads = [torch.zeros_like(weight) for weight in weights]
        hidden_grad = torch.empty_like(hidden) if needs_hidden else None
        for rows, chunk in targets.chunks(len(hidden)):
            part = hidden[rows].detach().requires_grad_(needs_hidden)
            wanted = [part, *weights] if needs_hidden else weights
            if not wanted:
                total += weighted_nll(targets.logits(part), *chunk)
                continue
            with torch.enable_grad():
                logits = targets.logits(part)
            loss, grad = nll_and_gradient(targets.owned(logits), *chunk)
            total += loss
            grads = list(torch.autograd.grad(logits, wanted, grad))
            if hidden_grad is not None:
                hidden_grad[rows] = grads.pop(0)
            for summed, grad in zip(weight_grads, grads, strict=True):
                summed += grad
        found = iter(weight_grads)
        trained_grads = [next(found) if needed else None for needed in needs_trained]
        ctx.save_for_backward(hidden_grad, *trained_grads)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        (scale,) = grad_outputs
        hidden, *trained = (
            None if grad is None else grad * scale.to(grad.dtype) for grad in ctx.saved_tensors
        )
        return hidden, None, *trained


def _is_watched(head: nn.Module) -> bool:
    """Whether hooks expect logits of the head, or a part of it is a unit of FSDP2 and gathers its weights in hooks."""
    own = 1 if head in (units := fsdp_units(head)) else 0  # FSDP2's own hook before it, and behind it
    return (
        len(head._forward_hooks) > own
        or len(head._forward_pre_hooks) > own
        or bool(head._backward_hooks or head._backward_pre_hooks)
        or len(units) > own
    )


def _head_is_last(model: nn.Module, base: PreTrainedModel, head: nn.Module, inputs: dict[str, Any]) -> bool:
    """Whether the head's output, or its softly capped form, is what the model returns; found out once a model."""
    if base not in _HEAD_IS_LAST:
        training = [module for module in base.modules() if module.training]
        outputs: list[Any] = []
        hooks = [
            module.register_forward_hook(lambda *call: outputs.append(call[-1])) for module in (head, base)
        ]
        base.eval()
        try:
            with torch.no_grad(), _without_cap(base):
                model(**inputs)
            logits, found = outputs[-2:]
            _HEAD_IS_LAST[base] = found.logits is logits
        finally:
            for hook in hooks:
                hook.remove()
            for module in training:
                module.training = True
    return _HEAD_IS_LAST[base]


@contextmanager
def _without_cap(base: PreTrainedModel) -> Iterator[float | None]:
    """Let a model leave its logits without their soft cap; gives the cap, if there is one."""
    config = base.config.get_text_config()
    cap = getattr(config, "final_logit_softcapping", None)
    if cap is not None:
        config.final_logit_softcapping = None
    try:
        yield cap
    finally:
        if cap is not None:
            config.final_logit_softcapping = cap
