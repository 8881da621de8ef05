"""`training.cache_frozen` trains to the same weights, and runs the lower layers once."""

from __future__ import annotations

import copy
import functools
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.random_cases import some
from tests.training.batches import tiny
from tests.training.tiny_run import as_rows, settings
from torch import nn

from manytune.data.encoding.encoded import Encoded
from manytune.data.mixing import mix
from manytune.methods.registry import peft_config_from
from manytune.model.attach import get_peft_model
from manytune.training.batches import BUILDERS, builder
from manytune.training.dry_run import estimate_training
from manytune.training.loop.counters import Counters
from manytune.training.loop.train import TrainingResult, train_model
from manytune.training.resume import Checkpoints, latest_checkpoint
from manytune.training.speed.chunked_cross_entropy import loss_sum
from manytune.training.speed.compilation import repeated_layers
from manytune.training.speed.frozen_layers import FrozenLayers, cache_frozen_layers
from manytune.training.speed.layout_choice import choose_layout, prepared
from manytune.training.speed.required_flops import ModelSize

LAYERS = 3
# Some share a prefix, one is a prefix of another, and one occurs twice.
ROWS = [
    Encoded((1, 2, 3), (4, 5, 0), "rows.jsonl", 1),
    Encoded((1, 2, 3), (4, 6, 0), "rows.jsonl", 2),
    Encoded((1, 2), (3, 0), "rows.jsonl", 3),
    Encoded((6, 5, 4, 3, 2, 1), (1, 0), "rows.jsonl", 4),
    Encoded((6,), (5, 4, 0), "rows.jsonl", 5),
    Encoded((3, 3, 3, 3), (3, 3, 0), "rows.jsonl", 6),
    Encoded((1, 2, 3), (4, 5, 0), "rows.jsonl", 7),
]
VALIDATION = [Encoded((1, 2, 3), (6, 0), "rows.jsonl", 8), Encoded((2, 1), (0,), "rows.jsonl", 9)]


def model(kind: str, monkeypatch: pytest.MonkeyPatch, *, layers: list[int], **options: Any) -> nn.Module:
    """A tiny model of three layers in float64, with LoRA on some of them; the same one every time."""
    monkeypatch.setitem(tiny.SHAPE, "num_hidden_layers", LAYERS)
    base = tiny.model(kind)
    if kind == "gpt2":
        base = _with_third_block(base)
    torch.manual_seed(0)
    config = peft_config_from(
        "lora",
        task_type="CAUSAL_LM",
        r=2,
        target_modules="all-linear",
        layers_to_transform=layers,
        init_lora_weights=False,
        **options,
    )
    # transformers' Trainer casts nothing, so that the adapter is in float64 too.
    return get_peft_model(base, config).to(torch.float64)


def _with_third_block(base: Any) -> Any:
    base.transformer.h.append(copy.deepcopy(base.transformer.h[0]))
    base.transformer.h[2].attn.layer_idx = 2
    base.transformer.h[2].attn.config = base.config
    base.config.n_layer = LAYERS
    return base


@contextmanager
def counted(model: nn.Module) -> Iterator[list[int]]:
    """How often each layer's attention has run; a layer that is skipped doesn't reach it."""
    runs = [0] * LAYERS

    def count(index: int) -> Callable[..., None]:
        def hook(*_: Any) -> None:
            runs[index] += 1

        return hook

    attentions = [
        next(child for name, child in layer.named_children() if "attn" in name)
        for layer in repeated_layers(model)
    ]
    hooks = [attention.register_forward_hook(count(index)) for index, attention in enumerate(attentions)]
    try:
        yield runs
    finally:
        for hook in hooks:
            hook.remove()


def trained(model: nn.Module, *, cache: bool, **changes: Any) -> TrainingResult:
    changed = settings(epochs=3.0, cache_frozen=cache, **changes)
    return train_model(model, as_rows(ROWS, VALIDATION), changed)


def assert_same_training(found: Any, expected: Any, models: tuple[nn.Module, nn.Module]) -> None:
    assert [r.loss for r in found.step_reports] == pytest.approx(
        [r.loss for r in expected.step_reports], abs=1e-10
    )
    losses = [[r.validation_loss for r in result.validation_reports] for result in (found, expected)]
    assert losses[0] == pytest.approx(losses[1], abs=1e-10)
    for (name, ours), (_, theirs) in zip(*(m.named_parameters() for m in models), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-10, rtol=1e-10, msg=name)


@pytest.mark.parametrize(
    ("kind", "layout"),
    some(
        [(kind, layout) for kind in ("llama", "gpt2") for layout in BUILDERS],
        *(("llama", layout) for layout in BUILDERS),
        ("gpt2", "shared-prefix"),
    ),
)
def test_it_trains_to_the_same_weights(kind: str, layout: str, monkeypatch: pytest.MonkeyPatch) -> None:
    plain, cached = (model(kind, monkeypatch, layers=[2]) for _ in range(2))
    expected = trained(plain, cache=False, batching=layout)
    found = trained(cached, cache=True, batching=layout)
    assert found.layout.used == layout
    assert found.cache is not None and found.cache.layers == 2
    assert found.counters.skipped_tokens > 0
    assert_same_training(found, expected, (cached, plain))


@pytest.mark.parametrize(
    "changes",
    [{"accumulation": 2}, {"gradient_checkpointing": True}, {"group_prefixes": True}],
    ids=lambda changes: next(iter(changes)),
)
def test_it_goes_with_other_settings(changes: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    plain, cached = (model("llama", monkeypatch, layers=[1, 2], lora_dropout=0.2) for _ in range(2))
    expected = trained(plain, cache=False, **changes)
    found = trained(cached, cache=True, **changes)
    assert found.cache is not None and found.cache.layers == 1
    assert_same_training(found, expected, (cached, plain))


def test_it_goes_with_several_tasks(monkeypatch: pytest.MonkeyPatch) -> None:
    """An epoch has one of the first task's four rows and six of the second task's three."""
    mixture = mix({"first": 4, "second": 3}, strategy="explicit", weights={"first": 1.0, "second": 6.0})
    plain, cached = (model("llama", monkeypatch, layers=[2]) for _ in range(2))
    expected, found = (
        train_model(attached, as_rows(ROWS, mixture=mixture), settings(epochs=4.0, cache_frozen=cache))
        for attached, cache in ((plain, False), (cached, True))
    )
    assert found.counters.skipped_tokens > 0
    assert_same_training(found, expected, (cached, plain))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # torch's compiler trips over deprecations of its own
def test_it_goes_with_compiled_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    # What the cache sees of a compiled layer comes before the compiler's later stages, which take most of the time.
    traced = functools.partialmethod(nn.Module.compile, backend="eager")
    monkeypatch.setattr(nn.Module, "compile", traced)
    plain, cached = (model("llama", monkeypatch, layers=[2]) for _ in range(2))
    expected = trained(plain, cache=False)
    found = trained(cached, cache=True, compile=True)
    assert found.counters.skipped_tokens > 0
    assert_same_training(found, expected, (cached, plain))


@pytest.mark.parametrize("layout", BUILDERS)
def test_the_lower_layers_run_in_the_first_epoch_only(layout: str, monkeypatch: pytest.MonkeyPatch) -> None:
    found = []
    for epochs in (1.0, 3.0):
        attached = model("llama", monkeypatch, layers=[2])
        with counted(attached) as runs:
            asked = settings(epochs=epochs, cache_frozen=True, batching=layout)
            result = train_model(attached, as_rows(ROWS, VALIDATION), asked)
        computed = result.counters.tokens.tokens_computed - result.counters.tokens.pad_tokens
        found.append((*runs, computed - result.counters.skipped_tokens))
    # Three batches an epoch, and one batch of validation after each: only the top layer sees those of later epochs.
    more = [after - before for before, after in zip(*found, strict=True)]
    assert more == [0, 0, 2 * (3 + 1), 0]


def test_only_what_was_computed_counts_as_computed() -> None:
    counters = Counters.of(builder("padded")(ROWS, pad_id=0), skipped=True)
    real = sum(len(row.input_ids) - 1 for row in ROWS)
    assert counters.skipped_tokens == real
    assert counters.skipped_pairs == counters.pairs
    assert (counters + counters).skipped_pairs == 2 * counters.pairs
    size = ModelSize(100, 50, 9, 10, 0, lower_weights=60, lower_attention_width=6)
    upper = ModelSize(40, 50, 3, 10, 0)
    assert size.training_flops(counters) == upper.training_flops(counters)
    first = Counters.of(builder("padded")(ROWS, pad_id=0))
    assert size.training_flops(first) == upper.training_flops(first) + 2 * 60 * real + 4 * 6 * first.pairs


def test_the_lower_part_of_a_models_size_is_its_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    attached = model("llama", monkeypatch, layers=[2])
    lower = repeated_layers(attached)[:2]
    size = ModelSize.of(attached, lower)
    assert size is not None
    # q and o 16x16, k and v 16x8, and three of 16x24
    assert size.lower_weights == 2 * (2 * 16 * 16 + 2 * 16 * 8 + 3 * 16 * 24)
    assert size.lower_attention_width == 2 * 16


def test_a_resumed_run_agrees(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, resumed = (model("llama", monkeypatch, layers=[2]) for _ in range(2))
    asked = settings(epochs=3.0, cache_frozen=True, checkpoint_every=5)
    expected = train_model(
        whole, as_rows(ROWS, VALIDATION), asked, checkpoints=Checkpoints(directory=tmp_path)
    )
    shutil.rmtree(tmp_path / "step-00000009")  # of the end
    checkpoint = latest_checkpoint(tmp_path)
    assert checkpoint is not None and checkpoint.position.step == 5
    found = train_model(
        resumed,
        as_rows(ROWS, VALIDATION),
        asked,
        checkpoints=Checkpoints(directory=tmp_path, resume_from=checkpoint),
    )
    assert found.steps == expected.steps == 9
    assert 0 < checkpoint.position.counters.skipped_tokens <= found.counters.skipped_tokens
    for (name, ours), (_, theirs) in zip(resumed.named_parameters(), whole.named_parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-10, rtol=1e-10, msg=name)


def test_a_resumed_tally_keeps_what_was_skipped() -> None:
    counters = Counters(pairs=3, logit_rows=2, skipped_tokens=5, skipped_pairs=7)
    assert Counters.from_dict(asdict(counters)) == counters


# The cache by itself
# ----------------------------------------------------------------------------------------------------------


@contextmanager
def cache(attached: nn.Module, layout: str = "shared-prefix") -> Iterator[FrozenLayers]:
    with prepared(attached, choose_layout(attached, layout)):
        yield cache_frozen_layers(attached, builder(layout), ROWS, pad_id=0)


def state(attached: nn.Module) -> list[Any]:
    return [
        (
            module,
            module.training,
            "forward" in module.__dict__,
            module._compiled_call_impl,
            len(module._forward_hooks),
        )
        for module in attached.modules()
    ]


def test_the_model_is_left_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    attached = model("llama", monkeypatch, layers=[2])
    attached.eval()
    before, random = state(attached), torch.get_rng_state()
    with cache(attached) as lower:
        batch = builder("shared-prefix")(ROWS, pad_id=0)
        for _ in range(2):
            with lower(batch):
                loss_sum(attached, batch).backward()
    assert state(attached) == before
    assert torch.equal(torch.get_rng_state(), random)


def test_an_error_inside_leaves_the_model_as_it_was_and_nothing_known(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    attached = model("llama", monkeypatch, layers=[2])
    with cache(attached) as lower:
        before = state(attached)
        batch = builder("shared-prefix")(ROWS, pad_id=0)
        with pytest.raises(KeyError), lower(batch):
            raise KeyError
        assert state(attached) == before
        for expected in (False, True):
            with lower(batch) as skipped:
                assert skipped is expected
                loss_sum(attached, batch)
        with pytest.raises(KeyError), lower(batch):
            raise KeyError
        assert state(attached) == before


def test_a_batch_is_skipped_when_all_its_prefixes_are_known(monkeypatch: pytest.MonkeyPatch) -> None:
    attached = model("gpt2", monkeypatch, layers=[2])
    skipped = []
    with cache(attached, "padded") as lower:
        for rows in (ROWS[:1], ROWS[2:3], ROWS[1:3], ROWS[:3]):
            batch = builder("padded")(rows, pad_id=0)
            expected = loss_sum(attached, batch).item()
            with lower(batch) as known:
                assert loss_sum(attached, batch).item() == pytest.approx(expected, abs=1e-12)
            skipped.append(known)
    assert skipped == [False, True, False, True]  # the second row is a prefix of the first


@pytest.mark.parametrize("nones", [0, 1, 2])
def test_layers_may_give_tuples(nones: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Layers of older models do; the next one reads the first entry."""

    def in_a_tuple(forward: Callable[..., Any]) -> Callable[..., Any]:
        return lambda *args, **kwargs: (forward(*args, **kwargs), *[None] * nones)

    plain, cached = (model("llama", monkeypatch, layers=[2]) for _ in range(2))
    for attached in (plain, cached):
        for layer in repeated_layers(attached)[:2]:
            layer.forward = in_a_tuple(layer.forward)
        for layer in repeated_layers(attached)[1:]:
            layer.register_forward_pre_hook(lambda layer, args: (args[0][0], *args[1:]))
    own = [layer.forward for layer in repeated_layers(cached)]
    assert_same_training(trained(cached, cache=True), trained(plain, cache=False), (cached, plain))
    assert [layer.forward for layer in repeated_layers(cached)] == own


def test_all_layers_can_be_kept_when_the_head_alone_is_trained(monkeypatch: pytest.MonkeyPatch) -> None:
    attached = model("llama", monkeypatch, layers=[2])
    for parameter in attached.parameters():
        parameter.requires_grad_(False)
    attached.get_base_model().lm_head.weight.requires_grad_(True)
    with cache(attached) as lower:
        assert lower.size.layers == lower.size.all_layers == LAYERS


def test_a_frozen_adapter_below_is_part_of_the_function(monkeypatch: pytest.MonkeyPatch) -> None:
    plain, cached = (model("llama", monkeypatch, layers=[0, 1, 2]) for _ in range(2))
    for attached in (plain, cached):
        for name, parameter in attached.named_parameters():
            parameter.requires_grad_("lora_" in name and ".layers.2." in name)
    found = trained(cached, cache=True)
    assert found.cache is not None and found.cache.layers == 2
    assert_same_training(found, trained(plain, cache=False), (cached, plain))


# What people read
# ----------------------------------------------------------------------------------------------------------


def test_an_estimate_says_what_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    attached = model("llama", monkeypatch, layers=[2])
    asked = settings(cache_frozen=True, batching="shared-prefix")
    estimated = estimate_training(attached, as_rows(ROWS, VALIDATION), asked)
    lines: list[str] = []
    result = train_model(attached, as_rows(ROWS, VALIDATION), asked, notify=lines.append)
    assert estimated.cache is not None
    assert estimated.cache == result.cache
    assert lines == [estimated.cache.note]
    assert estimated.cache.bytes == estimated.cache.prefixes * (16 * 8 + 150)
    assert estimated.seconds > 0
