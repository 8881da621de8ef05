"""Soft prompts: the same as HF PEFT's on every task, and next to the base in the same way."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from tests.methods import prompts
from tests.methods.tiny_models import BERT, FAMILIES, GPT2, LLAMA, OPT, T5, VOCABULARY, Family
from torch import nn
from transformers import (
    BertConfig,
    BertForQuestionAnswering,
    BertForTokenClassification,
    DynamicCache,
)

import manytune
from manytune.methods.checkpoint.format import get_state, set_state

IDS = LLAMA.inputs()["input_ids"]
each_method = pytest.mark.parametrize("method", list(prompts.METHODS))


def tiny_bert(kind: Any) -> nn.Module:
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        num_labels=3 if kind is not BertForQuestionAnswering else 2,
    )
    model: nn.Module = kind(config)
    return model


def attached(family: Family = LLAMA, **options: Any) -> Any:
    torch.manual_seed(1)
    config = manytune.PromptTuningConfig(
        **{"task_type": family.task_type, "num_virtual_tokens": 4, **options}
    )
    return manytune.get_peft_model(prompts.livelier(family.build()), config)


# -- the same as HF PEFT


@each_method
@pytest.mark.parametrize("family", [*FAMILIES, OPT], ids=str)
def test_outputs_and_gradients_are_pefts(method: str, family: Family) -> None:
    mine, oracle = prompts.both(method, prompts.livelier(family.build()), family.task_type)
    if prompts.IS_AFTER_PEFT and method.startswith("prefix") and family is BERT:
        with pytest.raises(ValueError, match="does not support past key values"):
            oracle(**family.inputs())
        return
    prompts.assert_same(mine, oracle, family.inputs())
    prompts.assert_same(mine, oracle, prompts.padded(family))


@each_method
@pytest.mark.parametrize("family", [LLAMA, GPT2, T5], ids=str)
def test_what_is_generated_is_pefts(method: str, family: Family) -> None:
    mine, oracle = prompts.both(method, prompts.livelier(family.build()), family.task_type)
    if prompts.IS_AFTER_PEFT:
        expected = prompts.by_forwards(oracle, IDS, 8, is_seq2seq=family is T5)
        found = mine.generate(input_ids=IDS, max_new_tokens=8, do_sample=False)
        assert torch.equal(found, expected[:, : found.shape[1]])
        return
    for options in ({}, {"num_beams": 3, "num_return_sequences": 2}):
        options = {"max_new_tokens": 8, "do_sample": False, "input_ids": IDS, **options}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            expected = oracle.generate(**options)
        assert torch.equal(mine.generate(**options), expected)


# -- by hand


def test_the_loss_of_labelled_tokens_leaves_the_prompt_out() -> None:
    model = manytune.get_peft_model(
        tiny_bert(BertForTokenClassification).eval(),
        manytune.PromptTuningConfig(task_type="TOKEN_CLS", num_virtual_tokens=4),
    )
    found = model(input_ids=IDS, labels=IDS % 3)
    expected = nn.functional.cross_entropy(found.logits[:, 4:].flatten(0, 1), (IDS % 3).flatten())
    torch.testing.assert_close(found.loss, expected)


def test_the_loss_is_the_bases_on_concatenated_embeddings_without_loss_on_the_prompt() -> None:
    model, inputs = attached(), prompts.padded(LLAMA)
    base = model.get_base_model()
    prompt = model.prompt_encoder["default"].embedding.weight
    embeddings = base.get_input_embeddings()(inputs["input_ids"])
    expected = base(
        inputs_embeds=torch.cat((prompt.expand(3, -1, -1), embeddings), 1),
        attention_mask=torch.cat((torch.ones(3, 4), inputs["attention_mask"]), 1),
        labels=torch.cat((torch.full((3, 4), -100), inputs["labels"]), 1),
    )
    found = model(**inputs)
    assert torch.equal(found.loss, expected.loss)
    assert torch.equal(found.logits, expected.logits)


@each_method
@pytest.mark.parametrize("family", FAMILIES, ids=str)
def test_embeddings_in_place_of_ids_give_the_same(method: str, family: Family) -> None:
    mine, _ = prompts.both(method, prompts.livelier(family.build()), family.task_type)
    inputs = prompts.padded(family)
    expected = prompts.logits(mine, **inputs)
    embeddings = mine.get_base_model().get_input_embeddings()(inputs.pop("input_ids"))
    torch.testing.assert_close(
        prompts.logits(mine, inputs_embeds=embeddings, **inputs), expected, rtol=1e-12, atol=1e-12
    )


@each_method
@pytest.mark.parametrize("kind", [torch.bool, torch.float64])
def test_a_4d_mask_means_what_the_2d_mask_means(method: str, kind: torch.dtype) -> None:
    mine, _ = prompts.both(method, prompts.livelier(LLAMA.build()), "CAUSAL_LM")
    inputs = prompts.padded(LLAMA)
    flat = inputs["attention_mask"]
    seen = flat[:, None, None, :].bool() & torch.ones(9, 9, dtype=torch.bool).tril()
    square = seen if kind is torch.bool else torch.zeros(3, 1, 9, 9, dtype=kind).masked_fill(~seen, -1e300)
    expected = prompts.logits(mine, input_ids=IDS, attention_mask=flat)[:, -9:]
    found = prompts.logits(mine, input_ids=IDS, attention_mask=square)[:, -9:]
    rows = flat.bool()
    torch.testing.assert_close(found[rows], expected[rows], rtol=1e-9, atol=1e-9)


def test_a_4d_mask_of_an_encoder_means_what_the_2d_mask_means() -> None:
    model = attached(BERT)
    inputs = prompts.padded(BERT)
    flat = inputs["attention_mask"]
    square = flat[:, None, None, :].bool().expand(3, 1, 9, 9)
    expected = prompts.logits(model, input_ids=IDS, attention_mask=flat)
    torch.testing.assert_close(prompts.logits(model, input_ids=IDS, attention_mask=square), expected)


@each_method
def test_positions_are_counted_behind_the_prompt(method: str) -> None:
    mine, _ = prompts.both(method, prompts.livelier(GPT2.build()), "CAUSAL_LM")
    default = prompts.logits(mine, input_ids=IDS)
    given = prompts.logits(mine, input_ids=IDS, position_ids=torch.arange(9).expand(3, -1))
    torch.testing.assert_close(given, default, rtol=1e-12, atol=1e-12)
    later = prompts.logits(mine, input_ids=IDS, position_ids=torch.arange(9).expand(3, -1) + 2)
    assert not torch.allclose(later, default)


@each_method
def test_logits_to_keep_names_positions_of_the_input(method: str) -> None:
    mine, _ = prompts.both(method, prompts.livelier(LLAMA.build()), "CAUSAL_LM")
    whole = prompts.logits(mine, input_ids=IDS)[:, -9:]
    kept = prompts.logits(mine, input_ids=IDS, logits_to_keep=torch.tensor([2, 8]))
    torch.testing.assert_close(kept, whole[:, [2, 8]], rtol=1e-12, atol=1e-12)


@each_method
def test_a_padded_row_generates_what_it_generates_alone(method: str) -> None:
    mine, _ = prompts.both(method, prompts.livelier(LLAMA.build()), "CAUSAL_LM")
    options = {"max_new_tokens": 6, "do_sample": False}
    mask = prompts.padded(LLAMA)["attention_mask"]
    together = mine.generate(input_ids=IDS, attention_mask=mask, **options)[1, 9:]
    alone = mine.generate(input_ids=IDS[1:2, 3:], attention_mask=mask[1:2, 3:], **options)[0, 6:]
    assert torch.equal(together, alone)


@each_method
@pytest.mark.parametrize("family", [LLAMA, T5], ids=str)
def test_generating_without_a_cache_gives_the_same(method: str, family: Family) -> None:
    mine, _ = prompts.both(method, prompts.livelier(family.build()), family.task_type)
    options = {"input_ids": IDS, "max_new_tokens": 6, "do_sample": False}
    assert torch.equal(mine.generate(**options, use_cache=False), mine.generate(**options))


@each_method
def test_generating_from_embeddings_gives_the_same(method: str) -> None:
    mine, _ = prompts.both(method, prompts.livelier(LLAMA.build()), "CAUSAL_LM")
    options = {"attention_mask": torch.ones_like(IDS), "max_new_tokens": 6, "do_sample": False}
    embeddings = mine.get_base_model().get_input_embeddings()(IDS)
    found = mine.generate(inputs_embeds=embeddings, **options)
    assert torch.equal(found, mine.generate(IDS, **options)[:, 9:])


@each_method
def test_a_conversation_goes_on_from_its_cache(method: str) -> None:
    mine, _ = prompts.both(method, prompts.livelier(LLAMA.build()), "CAUSAL_LM")
    whole = prompts.logits(mine, input_ids=IDS, attention_mask=torch.ones_like(IDS))[:, -4:]
    cache = DynamicCache()
    prompts.logits(mine, input_ids=IDS[:, :5], past_key_values=cache)
    rest = prompts.logits(
        mine, input_ids=IDS[:, 5:], past_key_values=cache, attention_mask=torch.ones_like(IDS)
    )
    torch.testing.assert_close(rest, whole, rtol=1e-10, atol=1e-10)


# -- next to the base


def test_the_prompt_hangs_beside_the_users_model() -> None:
    base = LLAMA.build()
    config = manytune.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4)
    model: Any = manytune.get_peft_model(base, config)
    assert model.base_model is base and model.get_base_model() is base and model.model is base.model
    assert list(prompts.training(model)) == ["prompt_encoder.default.embedding.weight"]
    assert model.get_nb_trainable_parameters()[0] == 4 * 32
    assert model.active_adapter == "default" and model.peft_config["default"] is config


def test_a_call_of_the_base_itself_does_not_see_the_prompt() -> None:
    expected = prompts.logits(prompts.livelier(LLAMA.build()), input_ids=IDS)
    model = attached()
    assert torch.equal(prompts.logits(model.base_model, input_ids=IDS), expected)
    prompts.logits(model, input_ids=IDS)
    assert torch.equal(prompts.logits(model.base_model, input_ids=IDS), expected)


def test_a_call_that_fails_leaves_no_hook_behind() -> None:
    model = attached()
    with pytest.raises(IndexError):
        model(input_ids=IDS + VOCABULARY)
    assert not any(m._forward_pre_hooks or m._forward_hooks for m in model.modules())


@pytest.mark.parametrize("family", [LLAMA, T5], ids=str)
def test_a_disabled_prompt_generates_what_the_base_generates(family: Family) -> None:
    options = {"input_ids": IDS, "max_new_tokens": 6, "do_sample": False}
    base: Any = prompts.livelier(family.build())
    expected = base.generate(**options)
    model = attached(family)
    model.prompt_encoder["default"].embedding.weight.data.mul_(5)
    assert not torch.equal(model.generate(**options), expected)
    with model.disable_adapter():
        assert torch.equal(model.generate(**options), expected)


def test_two_prompts_at_once_are_refused() -> None:
    model = attached()
    model.add_adapter("b", manytune.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2))
    with pytest.raises(manytune.AdapterError, match=r"Only one soft prompt .* \['default', 'b'\]"):
        model.set_adapter(["default", "b"])
    assert model.active_adapters == ["default"]
    model.set_adapter("b")
    assert list(prompts.training(model)) == ["prompt_encoder.b.embedding.weight"]
    model.set_adapter("default", inference_mode=True)
    assert not prompts.training(model)
    with pytest.raises(manytune.AdapterError, match="already exists"):
        model.add_adapter("b", manytune.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2))
    with pytest.raises(manytune.AdapterError, match="Adapter c does not exist"):
        model.delete_adapter("c")


@pytest.mark.parametrize("name", ["merge_adapter", "unmerge_adapter", "merge_and_unload", "unload"])
def test_what_only_weights_can_do_is_an_attribute_error(name: str) -> None:
    with pytest.raises(AttributeError, match=name) as raised:
        getattr(attached(), name)()
    assert isinstance(raised.value, manytune.AdapterError)


def test_requires_grad_is_for_set_adapter_to_say() -> None:
    with pytest.raises(TypeError, match="not supported for prompt learning methods like PROMPT_TUNING"):
        attached().set_requires_grad("default")


@each_method
def test_an_encoder_decoder_generates_from_names_only(method: str) -> None:
    mine, _ = prompts.both(method, T5.build(), "SEQ_2_SEQ_LM")
    with pytest.raises(TypeError):
        mine.generate(IDS)


def test_encoder_outputs_without_the_prompt_are_refused() -> None:
    model = attached(T5)
    encoded = model.get_base_model().get_encoder()(IDS)
    with pytest.raises(manytune.ConfigError, match=r"encoder_outputs has 9 positions; .* gives 13"):
        model(encoder_outputs=encoded, attention_mask=torch.ones_like(IDS), labels=IDS)


@each_method
def test_a_cache_of_fixed_size_is_refused(method: str) -> None:
    mine, _ = prompts.both(method, LLAMA.build(), "CAUSAL_LM")
    with pytest.raises(manytune.ConfigError, match=r"need a cache that grows .* found StaticCache"):
        mine.generate(IDS, max_new_tokens=4, cache_implementation="static", disable_compile=True)


def test_a_mask_of_another_kind_is_refused() -> None:
    with pytest.raises(manytune.ConfigError, match="found 3 dimensions"):
        attached()(input_ids=IDS, attention_mask=torch.ones(3, 9, 9))


def test_a_half_precision_base_has_a_prompt_in_float32() -> None:
    for cast, dtype in ((True, torch.float32), (False, torch.bfloat16)):
        config = manytune.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4)
        model: Any = manytune.get_peft_model(
            LLAMA.build().to(torch.bfloat16), config, autocast_adapter_dtype=cast
        )
        assert model.prompt_encoder["default"].embedding.weight.dtype is dtype
        assert prompts.logits(model, input_ids=IDS).dtype is torch.bfloat16


def test_a_prompt_of_another_length_is_refused_with_both_shapes() -> None:
    model = attached()
    with pytest.raises(
        RuntimeError, match=r"prompt_embeddings: the checkpoint has \(5, 32\), the model \(4, 32\)"
    ):
        set_state(model.tuner, "default", {"prompt_embeddings": torch.zeros(5, 32)})
    assert get_state(model.tuner, "default")["prompt_embeddings"].shape == (4, 32)


def test_missing_and_foreign_tensors_are_told_apart() -> None:
    result = set_state(attached(BERT).tuner, "default", {"nonsense": torch.zeros(1)})
    assert result.unexpected_keys == ["nonsense"]
    assert result.missing_keys == [
        "prompt_encoder.default.embedding.weight",
        "base_model.classifier.modules_to_save.default.weight",
        "base_model.classifier.modules_to_save.default.bias",
    ]
