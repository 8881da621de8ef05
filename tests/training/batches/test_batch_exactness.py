"""All layouts give the loss and the gradients of one sequence at a time."""

import contextlib

import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from tests.reference.one_sequence_a_forward import ATTENTION, loss_and_gradients
from tests.training.batches.tiny import MAX_INPUTS, MODELS, VOCABULARY, Sequence, batches, model

from manytune.training.batches import builder, packed_attention
from manytune.training.speed.chunked_cross_entropy import loss_sum

LOSS = 1e-10
GRADIENT = 1e-9
PACKED = ("padding-free", "shared-prefix")

WHOLE_SEQUENCES_AS_PREFIXES = [
    Sequence((1, 2), (3,)),
    Sequence((1, 2, 3), (3, 1)),
    Sequence((1, 2, 3, 3, 1), (2, 2, 1)),
]
IDENTICAL_REFERENCES = [Sequence((1, 2, 3), (3, 2, 1)), Sequence((1, 2, 3), (3, 2, 1)), Sequence((1,), (2,))]
LONGEST = [
    Sequence(tuple(i % 4 for i in range(MAX_INPUTS)), (2,)),
    Sequence(tuple(i % 4 for i in range(MAX_INPUTS)), (3,)),
    Sequence((0,), tuple(i % 4 for i in range(1, MAX_INPUTS + 1))),
]

few_examples = settings(max_examples=10, deadline=None, suppress_health_check=list(HealthCheck))


def run(model, layout, sequences):
    """Mean loss over the targets, and its gradients."""
    batch = builder(layout)(sequences, pad_id=0)
    model.zero_grad()
    with packed_attention(model) if batch.layout else contextlib.nullcontext():
        # In chunks of two rows, as the many rows of large batches are cut.
        loss = loss_sum(model, batch, chunk_logits=2 * VOCABULARY) / batch.targets
        loss.backward()
    return loss.item(), {name: parameter.grad for name, parameter in model.named_parameters()}


def assert_same(found, expected, *, loss, gradient):
    assert found[0] == pytest.approx(expected[0], abs=loss, rel=0)
    for name in expected[1]:
        torch.testing.assert_close(found[1][name], expected[1][name], atol=gradient, rtol=gradient, msg=name)


@pytest.fixture(params=MODELS)
def kind(request):
    return request.param


@given(sequences=batches())
@example(sequences=WHOLE_SEQUENCES_AS_PREFIXES)
@example(sequences=IDENTICAL_REFERENCES)
@example(sequences=LONGEST)
@example(sequences=[Sequence((1,), (2,))])
@few_examples
def test_packed_layouts_equal_one_sequence_at_a_time(kind, sequences):
    alone, packed = model(kind), model(kind)
    if kind == "gemma2":  # its own attention takes the softmax in float32
        alone.set_attn_implementation(ATTENTION)
    expected = loss_and_gradients(alone, sequences)
    for layout in PACKED:
        assert_same(run(packed, layout, sequences), expected, loss=LOSS, gradient=GRADIENT)


@given(sequences=batches())
@example(sequences=WHOLE_SEQUENCES_AS_PREFIXES)
@example(sequences=IDENTICAL_REFERENCES)
@example(sequences=LONGEST)
@few_examples
def test_padded_layout_equals_one_sequence_at_a_time(kind, sequences):
    # In float64 Gemma's eager attention gives NaN for pad tokens: its mask overflows its float32 softmax.
    dtype, loss, gradient = (
        (torch.float32, 1e-5, 1e-4) if kind == "gemma2" else (torch.float64, LOSS, GRADIENT)
    )
    expected = loss_and_gradients(model(kind, dtype), sequences)
    assert_same(run(model(kind, dtype), "padded", sequences), expected, loss=loss, gradient=gradient)


@pytest.mark.parametrize("sequences", [WHOLE_SEQUENCES_AS_PREFIXES, IDENTICAL_REFERENCES, LONGEST])
def test_norms_that_cast_to_float32_leave_gradients_equal_to_float32_precision(kind, sequences):
    # Their backward pass rounds the gradient of each row: of a shared row a sum, of rows apart its terms.
    alone, packed = model(kind, exact_norms=False), model(kind, exact_norms=False)
    if kind == "gemma2":
        alone.set_attn_implementation(ATTENTION)
    expected = loss_and_gradients(alone, sequences)
    for layout in PACKED:
        loss, gradients = run(packed, layout, sequences)
        assert loss == pytest.approx(expected[0], abs=LOSS, rel=0)
        error = torch.cat([(gradients[name] - g).flatten() for name, g in expected[1].items()]).norm()
        size = torch.cat([g.flatten() for g in expected[1].values()]).norm()
        assert error < 1e-7 * size


def test_the_twin_attention_is_gemmas_own_up_to_its_float32_softmax():
    own, twin = model("gemma2"), model("gemma2")
    twin.set_attn_implementation(ATTENTION)
    expected = loss_and_gradients(own, WHOLE_SEQUENCES_AS_PREFIXES)
    assert_same(loss_and_gradients(twin, WHOLE_SEQUENCES_AS_PREFIXES), expected, loss=1e-6, gradient=1e-5)


@pytest.mark.parametrize("layout", PACKED)
def test_gradient_checkpointing_changes_nothing(kind, layout):
    plain, checkpointed = model(kind), model(kind)
    checkpointed.activation_checkpointing_enable()
    assert_same(
        run(checkpointed, layout, WHOLE_SEQUENCES_AS_PREFIXES),
        run(plain, layout, WHOLE_SEQUENCES_AS_PREFIXES),
        loss=0,
        gradient=0,
    )


@pytest.mark.parametrize("layout", PACKED)
def test_bfloat16_stays_near_float64(kind, layout):
    found = run(model(kind, torch.bfloat16), layout, WHOLE_SEQUENCES_AS_PREFIXES)
    expected = run(model(kind), layout, WHOLE_SEQUENCES_AS_PREFIXES)
    assert found[0] == pytest.approx(expected[0], rel=0.03)


@pytest.mark.parametrize("layout", PACKED)
def test_a_model_that_returns_all_logits_gives_the_same_loss(layout):
    batch = builder(layout)(WHOLE_SEQUENCES_AS_PREFIXES, pad_id=0)
    llama = model("llama")
    inputs = batch.model_inputs(llama)
    kept = inputs.pop("logits_to_keep")
    with packed_attention(llama):
        everything = llama(**inputs).logits
        chosen = llama(**inputs, logits_to_keep=kept).logits
    assert chosen.shape[1] < everything.shape[1]
    assert batch.loss_sum(everything).item() == pytest.approx(batch.loss_sum(chosen).item(), abs=1e-12)
