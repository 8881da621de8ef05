"""Prompts with common prefixes: the answers are those of one prompt at a time, and less is computed."""

import pytest
import torch
from tests.engine.adapters import LLAMA
from tests.engine.systems import END, gpt2, llama, with_lora
from tests.reference.one_at_a_time import greedy
from transformers import MistralConfig, MistralForCausalLM

from manytune.engine.shared_prompts import prefill_shared
from manytune.engine.static_batch import generate_batch
from manytune.methods.combined import CombinedConfig
from manytune.methods.lora.config import LoraConfig
from manytune.methods.prefix_tuning.model import PrefixTuningConfig
from manytune.methods.prompt_tuning.model import PromptTuningConfig
from manytune.model.attach import get_peft_model

DOCUMENTS = (tuple(range(5, 17)), tuple(range(20, 29)), tuple(range(30, 46)))
QUESTIONS = ((2, 3), (4,), (2, 5, 6, 7))
ASKED = [(*document, *question) for document in DOCUMENTS for question in QUESTIONS]
CASES = {
    "questions on documents": ASKED,
    "interleaved": [ASKED[place] for place in (0, 3, 6, 1, 4, 7, 2, 5, 8)],
    "a prompt that is another's prefix": [*ASKED, DOCUMENTS[0]],
    "the same prompt several times": [ASKED[0]] * 3 + [ASKED[4]] * 2,
    "one without a common prefix": [*ASKED, (46, 47, 46, 47, 46)],
}
MODELS = {
    "llama": llama,
    "gpt2": gpt2,
    "llama with LoRA": lambda: with_lora(llama()),
}


@pytest.fixture(params=list(MODELS))
def model(request):
    return MODELS[request.param]()


@pytest.mark.parametrize("prompts", CASES.values(), ids=CASES)
def test_answers_are_those_of_one_prompt_at_a_time(model, tokenizer, prompts):
    assert prefill_shared(model, prompts, pad_id=0) is not None
    answers = generate_batch(model, tokenizer, prompts, max_new_tokens=9, batch_size=len(prompts))
    expected = [greedy(model, prompt, max_new_tokens=9, stop_ids={END}) for prompt in prompts]
    assert [(answer.token_ids, answer.finished) for answer in answers] == expected


def test_each_document_is_read_once():
    begun = prefill_shared(llama(), ASKED, pad_id=0)
    assert begun is not None
    # (2, 3) and (2, 5, 6, 7) aside, the questions begin differently, so what is shared is the document.
    assert begun.cache.get_seq_length() == max(map(len, DOCUMENTS))
    assert begun.input_ids.shape == (9, max(map(len, DOCUMENTS)) + max(map(len, QUESTIONS)))
    assert begun.attention_mask.sum(dim=1).tolist() == [len(prompt) for prompt in ASKED]


def test_every_row_gets_its_own_documents_keys_and_values():
    model = llama()
    begun = prefill_shared(model, ASKED, pad_id=0)
    for row, prompt in enumerate(ASKED):
        document = DOCUMENTS[row // 3]
        alone = model(torch.tensor([prompt[: len(document)]]), use_cache=True).past_key_values
        for ours, theirs in zip(begun.cache.layers, alone.layers, strict=True):
            torch.testing.assert_close(ours.keys[row, :, -len(document) :], theirs.keys[0])
            torch.testing.assert_close(ours.values[row, :, -len(document) :], theirs.values[0])


def test_prompts_that_share_little_are_read_as_they_are():
    assert prefill_shared(llama(), [(5, 6, 7), (8, 9, 10), (5, 9, 10)], pad_id=0) is None
    assert prefill_shared(llama(), [(5, 6, 7)], pad_id=0) is None


def test_a_sliding_window_is_read_as_it_is(tokenizer):
    torch.manual_seed(6)
    config = MistralConfig(**LLAMA, sliding_window=6, initializer_range=0.5)
    model = MistralForCausalLM(config).eval()
    assert prefill_shared(model, ASKED, pad_id=0) is None


def soft(kind):
    prefix = PrefixTuningConfig(num_virtual_tokens=3)
    config = {
        "prompt tuning": PromptTuningConfig(num_virtual_tokens=3),
        "prefix tuning": prefix,
        "LoRA and prefix tuning": CombinedConfig(weights=LoraConfig(r=2), prompt=prefix),
    }[kind]
    config.task_type = "CAUSAL_LM"
    torch.manual_seed(3)
    model = get_peft_model(llama(), config)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += 0.5 * torch.randn_like(parameter)
    return model.eval()


@pytest.mark.parametrize("kind", ["prompt tuning", "prefix tuning", "LoRA and prefix tuning"])
def test_virtual_tokens_are_read_as_they_are(kind, tokenizer):
    model = soft(kind)
    assert prefill_shared(model, ASKED, pad_id=0) is None
    answers = generate_batch(model, tokenizer, ASKED, max_new_tokens=9, batch_size=len(ASKED))
    expected = [greedy(model, prompt, max_new_tokens=9, stop_ids={END}) for prompt in ASKED]
    assert [(answer.token_ids, answer.finished) for answer in answers] == expected
