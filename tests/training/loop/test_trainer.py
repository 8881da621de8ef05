from __future__ import annotations

import inspect
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.reference import plain_training_loop
from tests.training.tiny_run import lora, sequences, weights_hash
from torch import nn
from transformers import Trainer

from manytune.data.encode import Encoded
from manytune.errors import RunError
from manytune.training.batches.grouping import plan_batches
from manytune.training.loop import train as train_module
from manytune.training.loop.samplers import GroupedOrder, SeededOrder
from manytune.training.loop.train import train_model
from manytune.training.progress import StepReport, ValidationReport
from manytune.training.recipe import TrainingRecipe


def settings(**changes: Any) -> TrainingRecipe:
    usual: dict[str, Any] = {"epochs": 2.0, "batch_size": 3, "learning_rate": 0.01, "checkpoint_every": None}
    return TrainingRecipe(**{**usual, **changes})


def test_training_takes_the_steps_of_a_textbook_loop() -> None:
    """10 rows, 3 a batch, 2 batches a step: windows of 6 and 4 rows, the last batch of one row."""
    rows = sequences(10)
    model, twin = lora(), lora()
    result = train_model(
        model, rows, [], settings(accumulation=2, warmup=0.0, schedule="linear", max_grad_norm=0.5), pad_id=0
    )

    windows = []
    for epoch in (0, 1):
        order = np.random.default_rng([0, epoch]).permutation(10)
        windows += [[rows[i] for i in order[:6]], [rows[i] for i in order[6:]]]
    rates = [0.01 * share for share in (1.0, 0.75, 0.5, 0.25)]  # linear decay over four steps
    losses = plain_training_loop.train(twin, windows, learning_rates=rates, max_grad_norm=0.5)

    assert [report.learning_rate for report in result.step_reports] == pytest.approx(rates, rel=1e-12)
    assert [report.loss for report in result.step_reports] == pytest.approx(losses, rel=1e-5)
    for (name, ours), (_, theirs) in zip(model.named_parameters(), twin.named_parameters(), strict=True):
        # AdamW divides by the gradient's own size, which turns rounding of tiny gradients into 1e-4 of a step.
        assert torch.allclose(ours, theirs, atol=5e-5), name


def test_the_result_counts_what_was_done() -> None:
    rows = sequences(10)
    result = train_model(lora(), rows, rows[:4], settings(), pad_id=0)
    assert result.steps == 8  # ceil(10 / 3) batches, twice
    assert result.tokens == 2 * sum(len(row.input_ids) - 1 for row in rows)  # the end token is a label only
    # r=2 on each of 2 layers: 4 attention projections of 16x16, 3 MLP projections of 16x32
    assert result.trainable_parameters == 2 * (4 * 2 * (16 + 16) + 3 * 2 * (16 + 32))
    assert [report.step for report in result.step_reports] == list(range(1, 9))
    assert [report.step for report in result.validation_reports] == [0, 4, 8]  # before, and after each epoch
    assert result.validation_loss == result.validation_reports[-1].validation_loss
    assert result.peak_memory > 0
    assert 0 < result.step_seconds <= result.seconds


def test_the_first_validation_loss_is_that_of_the_untrained_model_per_target_token() -> None:
    rows = sequences(7)
    model = lora()
    result = train_model(model, rows, rows, settings(max_steps=1, learning_rate=1e-9, warmup=0.0), pad_id=0)
    losses = plain_training_loop.train(lora(), [rows], learning_rates=[0.0], max_grad_norm=1.0)
    assert result.validation_reports[0].validation_loss == pytest.approx(losses[0], rel=1e-6)


def test_validation_happens_when_asked_and_at_the_last_step() -> None:
    rows = sequences(10)
    result = train_model(lora(), rows, rows[:2], settings(max_steps=5, eval_every=2), pad_id=0)
    assert [report.step for report in result.validation_reports] == [0, 2, 4, 5]


def test_reports_arrive_in_order_while_training_goes_on() -> None:
    seen: list[StepReport | ValidationReport] = []
    train_model(
        lora(), sequences(6), sequences(2), settings(max_steps=2, eval_every=1), pad_id=0, report=seen.append
    )
    kinds = [(type(event).__name__, event.step) for event in seen]
    assert kinds == [
        ("ValidationReport", 0),
        ("StepReport", 1),
        ("ValidationReport", 1),
        ("StepReport", 2),
        ("ValidationReport", 2),
    ]


@pytest.mark.parametrize("batching", ["padding-free", "shared-prefix"])
def test_every_layout_trains_to_the_same_loss(batching: str) -> None:
    rows = sequences(9)
    padded = train_model(lora(), rows, rows[:3], settings(), pad_id=0)
    packed = train_model(lora(), rows, rows[:3], settings(batching=batching), pad_id=0)
    assert packed.validation_loss == pytest.approx(padded.validation_loss, rel=1e-4)
    assert packed.tokens == padded.tokens


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # torch's compiler trips over deprecations of its own
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
def test_compiled_layers_train_to_the_same_weights() -> None:
    rows = sequences(9)
    plain, compiled = lora(dropout=0.1), lora(dropout=0.1)
    expected = train_model(plain, rows, rows[:3], settings(), pad_id=0)
    result = train_model(compiled, rows, rows[:3], settings(compile=True), pad_id=0)
    assert expected.compile_seconds is None and result.compile_seconds is not None
    assert result.compile_seconds < result.seconds
    assert result.step_seconds < result.compile_seconds  # compiling is over before the steps begin
    for (name, ours), (_, theirs) in zip(compiled.named_parameters(), plain.named_parameters(), strict=True):
        assert torch.allclose(ours, theirs, atol=5e-5), name  # as in the textbook's loop
    assert all(module._compiled_call_impl is None for module in compiled.modules())


def test_a_compiler_that_fails_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise torch._dynamo.exc.TorchDynamoException("there is no C++ compiler here")

    def compile_by_failing(layer: nn.Module, **_: Any) -> None:
        layer._compiled_call_impl = fail

    monkeypatch.setattr(nn.Module, "compile", compile_by_failing)
    with pytest.raises(RunError, match=r"there is no C\+\+ compiler here.*Or set training.compile to false"):
        train_model(lora(), sequences(3), [], settings(compile=True), pad_id=0)


def test_compiled_layers_that_compute_something_else_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def compile_wrongly(layer: nn.Module, **_: Any) -> None:
        right = layer._call_impl
        layer._compiled_call_impl = lambda *args, **kwargs: right(*args, **kwargs) + 0.1  # type: ignore[operator]

    monkeypatch.setattr(nn.Module, "compile", compile_wrongly)
    model = lora()
    with pytest.raises(RunError, match="so they compute something else"):
        train_model(model, sequences(3), [], settings(compile=True), pad_id=0)
    assert all(module._compiled_call_impl is None for module in model.modules())


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
def test_a_model_whose_layers_are_unknown_is_not_compiled_in_silence() -> None:
    model = lora()
    model.get_base_model()._no_split_modules = []
    with pytest.raises(RunError, match="doesn't say which of its modules are its layers"):
        train_model(model, sequences(3), [], settings(compile=True), pad_id=0)


def test_gradient_checkpointing_changes_no_gradient() -> None:
    rows = sequences(6)
    plain, recomputed = lora(), lora()
    train_model(plain, rows, [], settings(), pad_id=0)
    train_model(recomputed, rows, [], settings(gradient_checkpointing=True), pad_id=0)
    for (name, ours), (_, theirs) in zip(
        plain.named_parameters(), recomputed.named_parameters(), strict=True
    ):
        assert torch.allclose(ours, theirs, atol=1e-6), name


def test_full_fine_tuning_goes_the_same_way() -> None:
    model = lora(name="full")
    before = weights_hash(model)
    result = train_model(model, sequences(6), [], settings(learning_rate=1e-3), pad_id=0)
    assert weights_hash(model) != before
    assert result.trainable_parameters == result.all_parameters


def test_the_model_is_left_ready_to_generate() -> None:
    model: Any = lora()
    model.config.use_cache = True
    train_model(model, sequences(6), [], settings(max_steps=2), pad_id=0)
    assert not model.training
    assert model.config.use_cache


def test_the_order_of_rows_depends_on_seed_and_epoch_alone() -> None:
    order = SeededOrder(100, seed=3)
    first = list(order)
    assert sorted(first) == list(range(100))
    assert list(order) == first
    order.set_epoch(1)
    assert list(order) != first
    order.set_epoch(0)
    torch.rand(5)
    assert list(order) == first
    assert list(SeededOrder(100, seed=4)) != first


def test_a_loss_that_is_not_finite_stops_the_run_and_names_step_and_rows() -> None:
    model = lora()
    rows = sequences(6)

    def break_it(report: StepReport | ValidationReport) -> None:
        if report.step == 2:
            [p for p in model.parameters() if p.requires_grad][-1].data.fill_(math.nan)

    order = np.random.default_rng([0, 1]).permutation(6)[:3]
    expected = ", ".join(f"rows.jsonl:{rows[i].row}" for i in order)
    with pytest.raises(RunError, match=rf"step 3: the loss is nan\. Rows of this step: {expected}\."):
        train_model(model, rows, [], settings(), pad_id=0, report=break_it)


def test_a_gradient_that_is_not_finite_stops_the_run_at_its_own_step() -> None:
    model = lora()
    parameter = next(p for p in model.parameters() if p.requires_grad)
    parameter.register_hook(lambda gradient: gradient * math.inf)
    with pytest.raises(
        RunError, match=r"step 1: the gradient's norm is (nan|inf)\. Rows of this step: rows\.jsonl:"
    ):
        train_model(model, sequences(4), [], settings(), pad_id=0)


def test_training_that_changed_nothing_is_an_error_that_says_why() -> None:
    # A rate that float32 can't tell from zero.
    with pytest.raises(RunError, match=r"training changed nothing: all 28 trainable tensors.*learning_rate"):
        train_model(lora(), sequences(3), [], settings(learning_rate=1e-60), pad_id=0)


@pytest.mark.parametrize("steps", (1, 2))
def test_a_warm_up_leaves_the_last_step_its_rate(steps: int) -> None:
    # It begins at zero: over all of the steps, it would be a training that changes nothing.
    model = lora()
    before = {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}
    train_model(model, sequences(3), [], settings(max_steps=steps, warmup=0.99), pad_id=0)
    after = dict(model.named_parameters())
    assert any(not torch.equal(value, after[name]) for name, value in before.items())


def test_a_model_without_trainable_parameters_is_an_error() -> None:
    with pytest.raises(RunError, match="no parameter requires a gradient"):
        train_model(lora().requires_grad_(False), sequences(3), [], settings(), pad_id=0)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_asking_for_a_gpu_where_there_is_none_is_an_error() -> None:
    with pytest.raises(RunError, match=r'training\.device is "cuda".*"auto" or "cpu"'):
        train_model(lora(), sequences(3), [], settings(device="cuda"), pad_id=0)


def test_tensorboard_gets_the_curves(tmp_path: Path) -> None:
    event_accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    rows = sequences(6)
    result = train_model(
        lora(), rows, rows[:2], settings(tensorboard=True), pad_id=0, tensorboard_directory=tmp_path
    )
    events = event_accumulator.EventAccumulator(str(tmp_path))
    events.Reload()
    losses = [event.value for event in events.Scalars("train/loss")]
    assert losses == pytest.approx([report.loss for report in result.step_reports])
    assert len(events.Scalars("eval/loss")) == len(result.validation_reports)


def test_tensorboard_without_its_package_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train_module.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(RunError, match=r"pip install 'manytune\[track\]'"):
        train_model(
            lora(), sequences(3), [], settings(tensorboard=True), pad_id=0, tensorboard_directory=tmp_path
        )


@pytest.mark.parametrize("asked", ["padding-free", "shared-prefix"])
def test_a_model_that_a_layout_does_not_suit_trains_padded_and_the_run_says_why(asked: str) -> None:
    models = [lora(), lora()]
    for module in models[0].modules():
        if hasattr(module, "attention_dropout"):
            module.attention_dropout = 1e-12  # dropout that drops nothing, so that the losses can be compared
    lines: list[str] = []
    rows = sequences(6)
    fallen_back = train_model(models[0], rows, [], settings(batching=asked), pad_id=0, notify=lines.append)
    padded = train_model(models[1], rows, [], settings(batching="padded"), pad_id=0, notify=lines.append)
    assert (fallen_back.layout.asked, fallen_back.layout.used) == (asked, "padded")
    assert lines == [
        f"batches are padded, since {asked} wouldn't be exact on this model: {fallen_back.layout.reason}"
    ]
    assert "attention_dropout = 1e-12" in (fallen_back.layout.reason or "")
    assert padded.layout.reason is None
    assert fallen_back.step_reports[0].loss == pytest.approx(padded.step_reports[0].loss, rel=1e-5)


def test_prompts_are_shared_unless_the_recipe_says_otherwise() -> None:
    result = train_model(lora(), sequences(3), [], settings(max_steps=2), pad_id=0)
    assert (result.layout.used, result.layout.reason) == ("shared-prefix", None)


@pytest.mark.parametrize(
    ("method", "parameters"),
    [
        ("_save_checkpoint", ["self", "model", "trial"]),
        ("_load_from_checkpoint", ["self", "resume_from_checkpoint", "model"]),
        ("_load_optimizer_and_scheduler", ["self", "checkpoint"]),
        ("_load_rng_state", ["self", "checkpoint"]),
    ],
)
def test_the_private_methods_that_are_replaced_are_still_there(method: str, parameters: list[str]) -> None:
    assert list(inspect.signature(getattr(Trainer, method)).parameters) == parameters


def test_rows_that_begin_alike_fall_into_the_same_batch_and_each_comes_once_an_epoch() -> None:
    documents = [tuple(range(10 * n, 10 * n + 8)) for n in range(20)]
    rows = [Encoded((*document, 500 + q), (1,), "x", 1) for q in range(3) for document in documents]
    order = GroupedOrder(rows, batch_size=3, seed=3)
    orders = []
    for epoch in (0, 1):
        order.set_epoch(epoch)
        orders.append(list(order))
        assert sorted(orders[-1]) == list(range(60))
        for start in range(0, 60, 3):
            assert len({rows[index].prompt_ids[:8] for index in orders[-1][start : start + 3]}) == 1
    assert orders[0] != orders[1]
    assert list(GroupedOrder(rows, batch_size=3, seed=3)) == orders[0]


def test_a_grouped_epochs_smaller_batch_comes_last() -> None:
    """The loader cuts the order into threes; only a batch of two at the end leaves the planned batches whole."""
    rows = [Encoded((n // 3, 9, n), (1,), "x", 1) for n in range(8)]
    planned = plan_batches(rows, seed=0, epoch=0, batch_size=3, group_prefixes=True)
    order = list(GroupedOrder(rows, batch_size=3, seed=0))
    assert {tuple(order[:3]), tuple(order[3:6]), tuple(order[6:])} == set(planned)
