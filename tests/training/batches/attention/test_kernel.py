"""Packed attention through the C++ kernel: when it is taken, and that training with the kernels gives the same."""

import contextlib
import functools

import pytest
import torch
from tests.kernels.machine import assert_near, needs_compiler, without_kernels
from tests.random_cases import some
from tests.training.batches.test_batch_exactness import WHOLE_SEQUENCES_AS_PREFIXES
from tests.training.batches.tiny import SHAPE, Sequence
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM, MistralConfig, MistralForCausalLM

from manytune import LoraConfig, get_peft_model
from manytune.kernels import attention, low_rank
from manytune.kernels.build import load_kernels
from manytune.kernels.products import fast_products
from manytune.training.batches import builder, packed_attention
from manytune.training.batches.attention import kernel as kernel_attention
from manytune.training.batches.attention.packed import packed_attention_forward
from manytune.training.speed.chunked_cross_entropy import loss_sum
from manytune.training.speed.compilation import compiled_layers

pytestmark = needs_compiler

SEQUENCES = [
    *WHOLE_SEQUENCES_AS_PREFIXES,
    Sequence((3,), (1,)),
    Sequence((1, 2, 3), (0, 4, 0, 4, 0, 4, 0, 4)),
]


@pytest.fixture(autouse=True)
def taken(monkeypatch):
    """What the kernels were called for."""
    load_kernels().loaded()
    calls = []

    def noting(module, name):
        function = getattr(module, name)
        said = f"{module.__name__.rpartition('.')[2]} {name}"
        return lambda *given: calls.append(said) or function(*given)

    for module in (attention, low_rank):
        for name in ("forward", "backward"):
            monkeypatch.setattr(module, name, noting(module, name))
    return calls


def attended(*, dtype=torch.float32, dim=16, value_dim=None, softcap=None):
    batch = builder("shared-prefix")(SEQUENCES, pad_id=0)
    generator = torch.Generator().manual_seed(0)
    query, key, value = (
        torch.randn(1, heads, batch.tokens_computed, size, generator=generator).to(dtype).requires_grad_()
        for heads, size in ((4, dim), (2, dim), (2, value_dim or dim))
    )
    out, _ = packed_attention_forward(
        nn.Module(), query, key, value, None, sliding_window=3, softcap=softcap, manytune_layout=batch.layout
    )
    out.float().square().sum().backward()
    return [out.detach(), query.grad, key.grad, value.grad]


def test_float32_on_a_cpu_goes_through_the_kernel(taken, monkeypatch):
    found = attended()
    assert taken == ["attention forward", "attention backward"]
    without_kernels(monkeypatch)
    for mine, theirs in zip(found, attended(), strict=True):
        assert_near(mine, theirs)
    assert taken == ["attention forward", "attention backward"]


@pytest.mark.parametrize(
    "given",
    [{"dtype": torch.float64}, {"dtype": torch.bfloat16}, {"dim": 24}, {"value_dim": 32}, {"softcap": 5.0}],
    ids=str,
)
def test_what_the_kernel_does_not_know_is_left_to_torch(given, taken):
    attended(**given)
    assert not taken


@pytest.mark.parametrize("window", [None, 3])
def test_the_compiler_is_told_what_the_operations_give(window):
    layout = builder("shared-prefix")(SEQUENCES, pad_id=0).layout
    rows, checks = len(layout.slots), ("test_schema", "test_faketensor")
    query, key, value = (torch.randn(heads, rows, 16).transpose(0, 1) for heads in (4, 2, 2))
    plan = (layout.key_rows, layout.blocks, 0.25, window)
    torch.library.opcheck(kernel_attention._opaque_forward, (query, key, value, *plan), test_utils=checks)
    results = kernel_attention._forward(query, key, value, *plan)
    given = (torch.randn(rows, 4, 16), query, key, value, *results, *plan)
    torch.library.opcheck(kernel_attention._opaque_backward, given, test_utils=checks)


@pytest.mark.filterwarnings(
    "ignore:.*should not be instantiated:DeprecationWarning"
)  # torch's own, in its compiler
def test_compiled_code_holds_it_whole(taken):
    def run(query, layout):
        return kernel_attention.attend(2 * query, 3 * query, query, layout, 0.5, 3).square().sum()

    torch._dynamo.reset()
    compiled = torch.compile(run, dynamic=True, fullgraph=True, backend="aot_eager")
    for sequences in (SEQUENCES, SEQUENCES[:2]):
        batch = builder("shared-prefix")(sequences, pad_id=0)
        query = torch.randn(batch.tokens_computed, 2, 16).requires_grad_()
        (found,) = torch.autograd.grad(compiled(query, batch.layout), query)
        assert taken == ["attention forward", "attention backward"]
        (expected,) = torch.autograd.grad(run(query, batch.layout), query)
        assert_near(found, expected)
        taken.clear()


def with_lora(kind):
    """A model of two layers with grouped heads of 16, and LoRA on all its linear layers; the same one every time."""
    torch.manual_seed(0)
    shape = {**SHAPE, "hidden_size": 64, "intermediate_size": 96, "initializer_range": 0.1}
    if kind == "llama":
        base = LlamaForCausalLM(LlamaConfig(**shape))
    else:
        base = MistralForCausalLM(MistralConfig(**shape, sliding_window=3))
    config = LoraConfig(
        task_type="CAUSAL_LM", r=4, target_modules="all-linear", init_lora_weights=False, lora_dropout=0.0
    )
    return get_peft_model(base, config).train()


def loss_and_gradients(model, *, compile=False):
    """The mean loss of a batch, and the gradient of each LoRA weight, as training computes them."""
    batch = builder("shared-prefix")(SEQUENCES, pad_id=0)

    def mean_loss():
        return loss_sum(model, batch) / batch.targets

    with contextlib.ExitStack() as stack:
        stack.enter_context(fast_products(model))
        stack.enter_context(packed_attention(model))
        stack.enter_context(compiled_layers(model, mean_loss, enabled=compile))
        loss = mean_loss()
        loss.backward()
    return loss.detach(), {name: p.grad for name, p in model.named_parameters() if p.requires_grad}


def assert_taken(calls, steps):
    """By both layers, and by LoRA on seven products of each, in so many backwards and at least as many forwards."""
    assert calls.count("attention forward") >= calls.count("attention backward") == steps * 2
    assert calls.count("low_rank forward") >= calls.count("low_rank backward") == steps * 14


def assert_same_training(found, expected):
    assert_near(found[0], expected[0], "loss")
    assert found[1].keys() == expected[1].keys() and expected[1]
    # Relative to all gradients: rounding of one layer's reaches those below it.
    size = max(float(gradient.abs().max()) for gradient in expected[1].values())
    for name, gradient in expected[1].items():
        assert_near(found[1][name] / size, gradient / size, name)


@pytest.mark.parametrize("kind", ["llama", "mistral"])
def test_a_model_gets_the_loss_and_gradients_it_gets_without_kernels(kind, taken, monkeypatch):
    found = loss_and_gradients(with_lora(kind))
    assert_taken(taken, 1)
    without_kernels(monkeypatch)
    taken.clear()
    assert_same_training(found, loss_and_gradients(with_lora(kind)))
    assert not taken


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # torch's compiler trips over deprecations of its own
@pytest.mark.parametrize(
    ("kind", "backend"),
    some(
        [("llama", "inductor"), ("llama", "eager"), ("mistral", "eager")],
        ("llama", "eager"),
        ("mistral", "eager"),
    ),
)
def test_compiled_layers_get_the_same_as_well(kind, backend, taken, monkeypatch):
    # A window is another graph. What the compiler's later stages make of a graph takes most of the time; a training in
    # tests/training/speed/test_compilation.py has them in `make test`, too.
    monkeypatch.setattr(nn.Module, "compile", functools.partialmethod(nn.Module.compile, backend=backend))
    torch._dynamo.reset()
    found = loss_and_gradients(with_lora(kind), compile=True)
    assert_taken(taken, 2)  # when the layers are compiled, and for the batch
    torch._dynamo.reset()
    without_kernels(monkeypatch)
    taken.clear()
    assert_same_training(found, loss_and_gradients(with_lora(kind)))
    assert not taken
