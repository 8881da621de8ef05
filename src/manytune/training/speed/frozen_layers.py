"""`training.cache_frozen`: layers below everything that is trained run once, and not once an epoch.

What such a layer gives for a token is a function of the tokens up to it: the same in every epoch, batch and layout. So
the last one's results are kept by prefix, in the machine's memory. A batch of which every prefix is known skips these
layers; any other runs them, and its results are kept.

Which layers these are is found by running the model: the leading ones whose result needs no gradient and up to whose
end no random number is drawn. Then a prefix of a sequence has to give the same loss without the cache, and with what
the whole sequence left there.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from manytune.data.encoding.encoded import Encoded
from manytune.errors import RunError
from manytune.layer_forwards import replaced_forwards
from manytune.training.batches import AnyBatch, Batch, Builder, TokenSequence
from manytune.training.batches.batch import base_model
from manytune.training.batches.support import virtual_tokens
from manytune.training.speed.chunked_cross_entropy import loss_sum
from manytune.training.speed.compilation import repeated_layers
from manytune.training.speed.prefixes import ENTRY_BYTES, PrefixNumbers, count_prefixes

LowerLayers = Callable[[AnyBatch], AbstractContextManager[bool]]
"""The block in which the model runs on a batch; it gives whether the lower layers are skipped."""

_LARGEST_SHARE = 0.5  # of the memory that is available
_BATCH_DEPENDENT = ("dynamic", "longrope")  # rotary embeddings that depend on the longest row of a batch


def every_layer_runs(batch: AnyBatch) -> AbstractContextManager[bool]:
    """Without a cache, every layer runs."""
    del batch
    return nullcontext(False)


@dataclass(frozen=True)
class CacheSize:
    """What is kept.

    Attributes:
        layers: How many layers run once.
        all_layers: How many the model has.
        prefixes: Distinct prefixes of the rows.
        bytes: What they take, when all have come up.
    """

    layers: int
    all_layers: int
    prefixes: int
    bytes: int

    @property
    def note(self) -> str:
        """A line for people."""
        return (
            f"the lower {self.layers} of {self.all_layers} layers run once for each of {self.prefixes:,} distinct "
            f"prefixes; keeping their results takes up to {self.bytes / 2**20:,.1f} MiB"
        )


class FrozenLayers:
    """The results of a model's leading layers, kept by prefix.

    Args:
        layers: These layers, in the order in which they run.
        size: How many prefixes can come up.
        like: A result of the last one; shape `(..., width)`.
    """

    def __init__(self, layers: Sequence[nn.Module], size: CacheSize, like: Tensor) -> None:
        self.layers = tuple(layers)
        self.size = size
        self._numbers = PrefixNumbers()
        self._hidden = torch.empty((size.prefixes, like.shape[-1]), dtype=like.dtype)
        self._known = torch.zeros(size.prefixes, dtype=torch.bool)
        # What the last layer gives in a tuple with its hidden states; None if it gives these alone.
        self._rest: tuple[None, ...] | None = None

    @contextmanager
    def __call__(self, batch: AnyBatch) -> Iterator[bool]:
        """Run the model on this batch, and on nothing else, inside the `with` block.

        Mutates: the layers, until the block ends.

        Yields:
            Whether the layers are skipped, since every prefix of the batch is known.
        """
        assert isinstance(batch, Batch), "an encoder-decoder is refused before"
        places, rows = self._rows_of(batch)
        if bool(self._known[rows].all()):
            hidden = self._hidden.new_zeros(batch.input_ids.numel(), self._hidden.shape[1])
            hidden[places] = self._hidden[rows]
            given = hidden.view(*batch.input_ids.shape, -1).to(batch.input_ids.device)

            def give(*_: Any, **__: Any) -> Any:
                return given if self._rest is None else (given, *self._rest)

            with replaced_forwards(dict.fromkeys(self.layers, give)):
                yield True
        else:
            last = self.layers[-1]
            forward = last.forward

            def keep(*args: Any, **kwargs: Any) -> Any:
                result = forward(*args, **kwargs)
                self._keep(result, places, rows)
                return result

            with replaced_forwards({last: keep}):
                yield False

    def _rows_of(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Where the batch's tokens are in `input_ids.flatten()`, and the rows of their prefixes here."""
        tokens, positions = batch.input_ids.flatten(), batch.position_ids.flatten()
        if batch.attention_mask is None:
            places = torch.arange(tokens.numel())
        else:
            places = batch.attention_mask.flatten().nonzero().squeeze(1).cpu()
        numbers = self._numbers.of(tokens.cpu()[places].tolist(), positions.cpu()[places].tolist())
        return places, torch.tensor(numbers)

    def _keep(self, result: Any, places: Tensor, rows: Tensor) -> None:
        hidden = _hidden_of(result)
        self._rest = result[1:] if isinstance(result, tuple) else None
        # Each prefix once, and what is known stays as it is: a result doesn't depend on the order of writing.
        found, first = np.unique(rows.numpy(), return_index=True)
        new = ~self._known.numpy()[found]
        kept = torch.from_numpy(found[new])
        wanted = places[torch.from_numpy(first[new])].to(hidden.device)
        self._hidden[kept] = hidden.detach().flatten(0, 1)[wanted].cpu()
        self._known[kept] = True


def cache_frozen_layers(
    model: nn.Module, build: Builder, sequences: Sequence[TokenSequence], *, pad_id: int
) -> FrozenLayers:
    """Find the layers that can be skipped, and set memory aside for their results.

    Runs the model on a few tokens. Leaves its weights, its mode and every random state as they were.

    Args:
        model: A causal language model with its method attached, inside `prepared`.
        build: The layout of its batches.
        sequences: All that it will run on.
        pad_id: Any valid token id.

    Raises:
        RunError: No layer can be skipped, the model doesn't suit, the memory isn't there, or the loss differs with
            the cache. The message names the obstacle.
    """
    _check_kind(model)
    device = next(model.parameters()).device
    tokens = tuple((11 * i + 3) % base_model(model).config.get_text_config().vocab_size for i in range(11))
    whole = build([Encoded(tokens[:8], tokens[8:], "probe", 1)], pad_id=pad_id).to(device)
    prefix = build([Encoded(tokens[:4], tokens[4:6], "probe", 2)], pad_id=pad_id).to(device)
    assert isinstance(whole, Batch) and isinstance(prefix, Batch)

    layers, all_layers, like = _leading(model, whole)
    prefixes = count_prefixes(sequences)
    size = CacheSize(
        len(layers),
        all_layers,
        prefixes,
        prefixes * (like.shape[-1] * like.element_size() + ENTRY_BYTES),
    )
    available = available_memory()
    if size.bytes > _LARGEST_SHARE * available:
        raise RunError(
            f"training.cache_frozen: {size.note}, which is more than half of the {available / 2**20:,.1f} MiB that are "
            "available. Train on fewer or shorter rows, or set training.cache_frozen to false."
        )
    probe = FrozenLayers(layers, replace(size, prefixes=whole.tokens_in), like)
    _check_agreement(model, probe, whole, prefix)
    return FrozenLayers(layers, size, like)


def available_memory(*, processes: Path = Path("/proc"), group: Path = Path("/sys/fs/cgroup")) -> int:
    """Bytes that can be taken, of the machine's memory and of the control group's limit, if there is one.

    Args:
        processes: Where Linux describes its memory.
        group: Where it describes the process's control group, as a container has one.
    """
    if not hasattr(os, "sysconf"):  # Windows
        import psutil

        return int(psutil.virtual_memory().available)
    available = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for line in _text(processes / "meminfo").splitlines():
        if line.startswith("MemAvailable:"):
            available = int(line.split()[1]) * 1024
    limit, used = _text(group / "memory.max").strip(), _text(group / "memory.current").strip()
    return min(available, int(limit) - int(used)) if limit.isdigit() and used.isdigit() else available


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except OSError:
        return ""


def _check_kind(model: nn.Module) -> None:
    base = base_model(model)
    reason = virtual_tokens(model)
    if base.config.is_encoder_decoder:
        reason = "the model has an encoder, whose layers don't follow from a token's prefix"
    for name, module in base.named_modules():
        kinds = getattr(module, "rope_type", None)
        for kind in kinds.values() if isinstance(kinds, dict) else (kinds,):
            if kind in _BATCH_DEPENDENT:
                reason = f"{name} rotates positions by the longest row of a batch (rope_type {kind!r})"
    if reason is not None:
        raise _refusal(reason)


def _leading(model: nn.Module, batch: Batch) -> tuple[list[nn.Module], int, Tensor]:
    """The layers that can be skipped, the number of all layers that run, and a result of the last one skipped."""
    ran: list[nn.Module] = []
    results: list[Tensor] = []
    random: list[bool] = []

    def look(layer: nn.Module, _: Any, result: Any) -> None:
        ran.append(layer)
        results.append(_hidden_of(result))
        random.append(not torch.equal(_random_state(device), before))

    device = batch.input_ids.device
    hooks = [layer.register_forward_hook(look) for layer in repeated_layers(model)]
    try:
        with torch.random.fork_rng(), torch.enable_grad(), _in_mode(model, training=True):
            before = _random_state(device)
            model(**batch.model_inputs(model))
    finally:
        for hook in hooks:
            hook.remove()
    if not ran:
        kind = type(base_model(model)).__name__
        raise _refusal(f"{kind} doesn't say which of its modules are its layers")
    obstacles = [hidden.requires_grad or drawn for hidden, drawn in zip(results, random, strict=True)]
    count = obstacles.index(True) if True in obstacles else len(ran)
    if not count:
        raise _refusal(_obstacle(model, ran[0], trained=results[0].requires_grad))
    return ran[:count], len(ran), results[count - 1]


def _obstacle(model: nn.Module, first: nn.Module, *, trained: bool) -> str:
    """What keeps the first layer from being skipped, as a clause."""
    upper = {m for layer in repeated_layers(model) if layer is not first for m in layer.modules()}
    names = {module: name for name, module in model.named_modules() if module not in upper}
    if trained:
        found = [
            (module in set(first.modules()), f"{names[module]}.{name}")
            for module in names
            for name, parameter in module.named_parameters(recurse=False)
            if parameter.requires_grad
        ]
        for inside, what in (
            (True, f"the first layer ({names[first]}) is"),
            (False, "what comes before it is"),
        ):
            parameters = [name for where, name in found if where is inside]
            if parameters:
                more = f" and {len(parameters) - 1} more" if len(parameters) > 1 else ""
                return f"{what} trained: {parameters[0]}{more}"
        return f"the result of {names[first]} needs a gradient"
    for module, name in names.items():
        p = module.p if isinstance(module, nn.Dropout) else getattr(module, "attention_dropout", 0.0)
        if isinstance(p, float) and p > 0:
            return f"dropout is on in the first layer or before it ({name}, p = {p})"
    return f"{names[first]}, or what comes before it, draws random numbers"


def _check_agreement(model: nn.Module, cache: FrozenLayers, whole: Batch, prefix: Batch) -> None:
    """A prefix of a sequence has to give the same loss with what the whole sequence left in the cache."""
    with torch.no_grad(), _in_mode(model, training=False):
        expected = loss_sum(model, prefix).item()
        with cache(whole):
            loss_sum(model, whole)
        with cache(prefix) as skipped:
            found = loss_sum(model, prefix).item()
    assert skipped
    tolerance = max(torch.finfo(cache._hidden.dtype).eps, torch.finfo(torch.float32).eps) ** 0.5
    if not abs(found - expected) <= tolerance * abs(expected):
        raise _refusal(
            f"a short sequence gives a loss of {found:.6g} with the cache and {expected:.6g} without, so the upper "
            "layers need more of the lower ones than their result, or a token's depends on later tokens"
        )


def _refusal(reason: str) -> RunError:
    return RunError(
        f"training.cache_frozen: the lower layers can't be kept, since {reason}. Train upper layers alone "
        "(method.layers_to_transform), with nothing random below them, or set training.cache_frozen to false."
    )


def _hidden_of(result: Any) -> Tensor:
    """A layer's hidden states, whether it gives them alone or first in a tuple of nothing else."""
    hidden, *rest = result if isinstance(result, tuple) else (result,)
    if not isinstance(hidden, Tensor) or any(other is not None for other in rest):
        raise _refusal(f"a layer gives more than hidden states ({type(result).__name__})")
    return hidden


def _random_state(device: torch.device) -> Tensor:
    host = torch.get_rng_state()
    return torch.cat((host, torch.cuda.get_rng_state(device))) if device.type == "cuda" else host


@contextmanager
def _in_mode(model: nn.Module, *, training: bool) -> Iterator[None]:
    modes = [(module, module.training) for module in model.modules()]
    model.train(training)
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode
