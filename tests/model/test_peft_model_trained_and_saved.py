"""What trains is what is saved, and a base is one adapter set's at a time."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.methods.tiny_models import LLAMA
from torch import nn
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    BartForSequenceClassification,
    DebertaV2Config,
    DebertaV2ForSequenceClassification,
    DistilBertConfig,
    DistilBertForSequenceClassification,
    LlamaConfig,
    LlamaForCausalLM,
    T5Config,
    T5ForSequenceClassification,
    XLMConfig,
    XLMForSequenceClassification,
    XLNetConfig,
    XLNetForQuestionAnsweringSimple,
    XLNetForSequenceClassification,
)

from manytune import AdapterError, LoraConfig, PeftModel, PeftWarning, get_peft_model

SMALL: dict[str, Any] = {"vocab_size": 40, "pad_token_id": 0}
ENCODER: dict[str, Any] = {
    "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16,
}  # fmt: skip
CLASSIFIERS: dict[str, tuple[Any, list[str], set[str]]] = {
    "distilbert": (
        lambda: DistilBertForSequenceClassification(
            DistilBertConfig(**SMALL, dim=16, n_layers=1, n_heads=2, hidden_dim=16)
        ),
        ["q_lin"],
        {"pre_classifier", "classifier"},
    ),
    "bart": (
        lambda: BartForSequenceClassification(
            BartConfig(
                **SMALL, d_model=16, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2,
                decoder_attention_heads=2, encoder_ffn_dim=16, decoder_ffn_dim=16, eos_token_id=2,
            )
        ),
        ["q_proj"],
        {"classification_head"},
    ),
    "t5": (
        lambda: T5ForSequenceClassification(
            T5Config(
                **SMALL, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2, eos_token_id=2,
                decoder_start_token_id=0,
            )
        ),
        ["q"],
        {"classification_head"},
    ),
    "xlnet": (
        lambda: XLNetForSequenceClassification(
            XLNetConfig(**SMALL, d_model=16, n_layer=1, n_head=2, d_inner=16)
        ),
        ["layer_1"],
        {"sequence_summary", "logits_proj"},
    ),
    "xlm": (
        lambda: XLMForSequenceClassification(XLMConfig(vocab_size=40, emb_dim=16, n_layers=1, n_heads=2)),
        ["q_lin"],
        {"sequence_summary"},
    ),
    "deberta": (
        lambda: DebertaV2ForSequenceClassification(DebertaV2Config(**SMALL, **ENCODER)),
        ["query_proj"],
        {"pooler", "classifier"},
    ),
}  # fmt: skip


def ids_of(model: nn.Module) -> torch.Tensor:
    ids = torch.randint(3, 40, (2, 6), generator=torch.Generator().manual_seed(3))
    ids[:, -1] = 2
    return ids


@pytest.mark.parametrize("family", CLASSIFIERS)
def test_every_part_of_a_classifiers_head_trains_and_is_loaded_onto_another_start(
    family: str, tmp_path: Path
) -> None:
    build, targets, parts = CLASSIFIERS[family]
    torch.manual_seed(0)
    model = get_peft_model(build(), LoraConfig(task_type="SEQ_CLS", target_modules=targets)).eval()
    trained = {n.split(".")[2] for n, p in model.named_parameters() if p.requires_grad and "lora" not in n}
    assert trained == parts
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.copy_(torch.randn(parameter.shape) * 0.3)
    base = {n: p.clone() for n, p in model.get_base_model().state_dict().items() if "base_layer" not in n}
    model.save_pretrained(tmp_path)
    torch.manual_seed(1)  # the head of the next base is another random one, its body the same
    other = build()
    body = {n: p for n, p in base.items() if n.split(".")[0] not in parts and "lora" not in n}
    for name, parameter in other.named_parameters():
        source = f"{name.rpartition('.')[0]}.base_layer.{name.rpartition('.')[2]}"
        found = dict(model.get_base_model().named_parameters())
        if name.split(".")[0] not in parts:
            parameter.data.copy_(body[name] if name in body else found[source])
    again = PeftModel.from_pretrained(other, tmp_path)
    ids = ids_of(model)
    torch.testing.assert_close(again(input_ids=ids).logits, model(input_ids=ids).logits)


def test_a_question_answering_head_by_another_name_trains_too() -> None:
    config = XLNetConfig(**SMALL, d_model=16, n_layer=1, n_head=2, d_inner=16)
    lora = LoraConfig(task_type="QUESTION_ANS", target_modules=["layer_1"])
    model = get_peft_model(XLNetForQuestionAnsweringSimple(config), lora)
    assert any("qa_outputs.modules_to_save" in n for n, p in model.named_parameters() if p.requires_grad)


def test_a_saved_adapter_that_lacks_a_part_which_the_base_lacks_too_is_reported(tmp_path: Path) -> None:
    build, targets, _ = CLASSIFIERS["deberta"]
    body = build().deberta
    body.save_pretrained(tmp_path / "body")  # a pretrained body: its classes' heads are new
    base = DebertaV2ForSequenceClassification.from_pretrained(tmp_path / "body")
    config = LoraConfig(target_modules=targets, modules_to_save=["classifier"])
    get_peft_model(base, config).save_pretrained(tmp_path / "adapter")  # as HF PEFT saves a classifier's
    again = DebertaV2ForSequenceClassification.from_pretrained(tmp_path / "body")
    saved = LoraConfig.from_pretrained(tmp_path / "adapter")
    saved.task_type = "SEQ_CLS"
    with pytest.warns(PeftWarning, match=r"no values for \['pooler'\], nor has the base's checkpoint"):
        PeftModel.from_pretrained(again, tmp_path / "adapter", config=saved)


@pytest.mark.parametrize("kind", ["tied", "untied"])
def test_a_merged_encoder_and_decoder_with_a_head_of_its_own_is_read_again_as_it_was(
    kind: str, tmp_path: Path
) -> None:
    """transformers ties nothing when the configuration says so, not even BART's encoder to its decoder."""
    torch.manual_seed(0)
    sizes = {"encoder_layers": 1, "decoder_layers": 1, "encoder_ffn_dim": 16, "decoder_ffn_dim": 16}
    config = BartConfig(
        vocab_size=40,
        d_model=16,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        eos_token_id=2,
        **sizes,
    )
    model = get_peft_model(
        BartForConditionalGeneration(config).eval(),
        LoraConfig(target_modules=["q_proj"], modules_to_save=["lm_head"] if kind == "untied" else None),
    )
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data.add_(0.3 * torch.randn(parameter.shape))
    ids = ids_of(model)
    expected = model.eval()(input_ids=ids).logits
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        merged = model.merge_and_unload()
    assert any("tie_word_embeddings=False" in str(w.message) for w in said) == (kind == "untied")
    merged.save_pretrained(tmp_path)
    again = BartForConditionalGeneration.from_pretrained(tmp_path)
    torch.testing.assert_close(again(input_ids=ids).logits, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("first", ["from_pretrained", "get_peft_model"])
def test_a_second_model_around_one_base_is_refused_until_the_first_lets_go(
    first: str, tmp_path: Path
) -> None:
    config = LoraConfig(target_modules=["q_proj"], init_lora_weights=False)
    get_peft_model(LLAMA.build(), config).save_pretrained(tmp_path)
    base = LLAMA.build().eval()
    ids = torch.arange(3, 9)[None]
    expected = base(input_ids=ids).logits
    one = (
        PeftModel.from_pretrained(base, tmp_path)
        if first == "from_pretrained"
        else get_peft_model(base, LoraConfig(target_modules=["q_proj"]))
    )
    for again in (base, one):
        with pytest.raises(AdapterError, match=r"The base has adapters already .*load_adapter\(\)"):
            PeftModel.from_pretrained(again, tmp_path)
        with pytest.raises(AdapterError, match=r"The base has adapters already .*add_adapter\(\)"):
            get_peft_model(again, config)
    one.unload()
    assert torch.equal(base(input_ids=ids).logits, expected)
    PeftModel.from_pretrained(base, tmp_path).unload()
    assert torch.equal(base(input_ids=ids).logits, expected)


def test_a_merged_model_with_a_trained_head_of_its_own_says_that_it_is_untied(tmp_path: Path) -> None:
    torch.manual_seed(0)
    tied = LlamaForCausalLM(LlamaConfig(vocab_size=40, **ENCODER, tie_word_embeddings=True)).eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PeftWarning)
        model = get_peft_model(tied, LoraConfig(target_modules=["q_proj"], modules_to_save=["lm_head"]))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.copy_(torch.randn(parameter.shape))
    ids = torch.arange(3, 9)[None]
    expected = model.eval()(input_ids=ids).logits
    with pytest.warns(PeftWarning, match="says tie_word_embeddings=False"):
        merged = model.merge_and_unload()
    assert merged.config.tie_word_embeddings is False
    merged.save_pretrained(tmp_path)
    torch.testing.assert_close(LlamaForCausalLM.from_pretrained(tmp_path)(input_ids=ids).logits, expected)


def test_a_merged_model_whose_tables_are_still_one_stays_tied() -> None:
    tied = LlamaForCausalLM(LlamaConfig(vocab_size=40, **ENCODER, tie_word_embeddings=True))
    model = get_peft_model(tied, LoraConfig(target_modules=["q_proj"]))
    assert model.merge_and_unload().config.tie_word_embeddings is True


def test_a_module_trained_in_full_on_a_bfloat16_base_learns_steps_that_bfloat16_rounds_away() -> None:
    torch.manual_seed(0)
    base = LLAMA.build().bfloat16()
    lora = LoraConfig(target_modules=["q_proj"], modules_to_save=["lm_head"])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PeftWarning)
        model = get_peft_model(base, lora)
    (head,) = [p for n, p in model.named_parameters() if "lm_head.modules_to_save" in n]
    assert head.dtype == torch.float32
    before = head.detach().clone()
    optimizer = torch.optim.SGD([head], lr=1e-6)
    ids = torch.arange(3, 9)[None]
    output = model(input_ids=ids, labels=ids)
    assert output.logits.dtype == torch.bfloat16
    output.loss.backward()
    optimizer.step()
    moved = (head - before).abs().max()
    assert 0 < moved < before.abs().median() * torch.finfo(torch.bfloat16).eps
    assert model.merge_and_unload().lm_head.weight.dtype == torch.bfloat16
