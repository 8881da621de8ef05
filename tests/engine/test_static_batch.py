"""Static batches give the answers of one prompt at a time."""

import pytest
import torch
from tests.engine.systems import END, MODELS, PROMPTS, VOCABULARY, llama, with_lora
from tests.reference.one_at_a_time import beam_search, greedy
from transformers import LlamaForCausalLM

from manytune.engine.static_batch import Generation, generate_batch
from manytune.errors import DataError


@pytest.fixture(params=list(MODELS))
def model(request):
    return MODELS[request.param]()


@pytest.mark.parametrize("batch_size", [1, 4, 16])
def test_batched_answers_are_those_of_one_prompt_at_a_time(model, tokenizer, batch_size):
    answers = generate_batch(model, tokenizer, PROMPTS, max_new_tokens=9, batch_size=batch_size)
    expected = [greedy(model, prompt, max_new_tokens=9, stop_ids={END}) for prompt in PROMPTS]
    assert [(answer.token_ids, answer.finished) for answer in answers] == expected


@pytest.mark.parametrize("batch_size", [1, 4, 16])
def test_batched_beams_are_those_of_one_prompt_at_a_time(model, tokenizer, batch_size):
    answers = generate_batch(model, tokenizer, PROMPTS, max_new_tokens=9, batch_size=batch_size, beams=3)
    assert [answer.token_ids for answer in answers] == [
        beam_search(model, prompt, max_new_tokens=9, beams=3, end_id=END) for prompt in PROMPTS
    ]


def forced(model, following):
    """Make the token after `token` be `following[token]`, by one-hot embeddings and a head that maps them."""
    with torch.no_grad():
        for parameter in model.model.layers.parameters():
            parameter.zero_()
        model.model.embed_tokens.weight.copy_(torch.eye(VOCABULARY))
        model.lm_head.weight.zero_()
        for token, after in following.items():
            model.lm_head.weight[after, token] = 10.0
    return model


def one_hot_llama():
    config = llama().config
    config.hidden_size = VOCABULARY
    config.num_attention_heads = 4
    config.head_dim = 12
    return LlamaForCausalLM(config).eval()


def test_an_answer_ends_before_the_first_end_token_and_says_so(tokenizer):
    model = forced(one_hot_llama(), {5: 6, 6: END, 7: 7, END: 9})
    stopped, cut, empty = generate_batch(model, tokenizer, [(5,), (7,), (6,)], max_new_tokens=4, batch_size=3)
    assert stopped == Generation(token_ids=(6,), text="w6", finished="stop")
    assert cut == Generation(token_ids=(7, 7, 7, 7), text="w7 w7 w7 w7", finished="length")
    assert empty == Generation(token_ids=(), text="", finished="stop")


def test_every_end_token_of_the_model_ends_an_answer(tokenizer):
    model = forced(one_hot_llama(), {5: 6, 6: 9, 9: 7})
    model.generation_config.eos_token_id = [END, 9]
    (answer,) = generate_batch(model, tokenizer, [(5,)], max_new_tokens=4)
    assert (answer.token_ids, answer.finished) == ((6,), "stop")


def test_further_end_tokens_can_be_named(tokenizer):
    model = forced(one_hot_llama(), {5: 6, 6: 9, 9: 7})
    (answer,) = generate_batch(model, tokenizer, [(5,)], max_new_tokens=4, end_ids=[9])
    assert (answer.token_ids, answer.finished) == ((6,), "stop")


def test_the_models_own_sampling_and_penalties_do_not_apply(tokenizer):
    model = llama()
    expected = generate_batch(model, tokenizer, PROMPTS, max_new_tokens=9)
    own = model.generation_config
    own.do_sample, own.temperature, own.repetition_penalty, own.no_repeat_ngram_size = True, 5.0, 9.0, 1
    assert generate_batch(model, tokenizer, PROMPTS, max_new_tokens=9) == expected
    assert model.generation_config is own


def test_modes_of_all_modules_are_restored_even_after_an_error(tokenizer):
    model = with_lora(llama()).train()
    frozen = model.get_base_model().model.norm
    frozen.eval()
    generate_batch(model, tokenizer, PROMPTS, max_new_tokens=1)
    with pytest.raises(IndexError):
        generate_batch(model, tokenizer, [(VOCABULARY + 3,)], max_new_tokens=1)
    assert model.training and not frozen.training
    assert all(module.training for module in model.modules() if module is not frozen)


def test_batches_go_longest_first_and_progress_counts_sequences(tokenizer):
    model, widths, reports = llama(), [], []
    model.register_forward_pre_hook(
        lambda _module, _args, kwargs: widths.append(kwargs["attention_mask"].shape[1]), with_kwargs=True
    )
    generate_batch(
        model,
        tokenizer,
        PROMPTS,
        max_new_tokens=1,
        batch_size=4,
        progress=lambda done, total: reports.append((done, total)),
    )
    assert widths == [7, 2]
    assert reports == [(4, 6), (6, 6)]


def test_no_prompts_give_no_answers(tokenizer):
    assert generate_batch(llama(), tokenizer, [], max_new_tokens=3) == []


@pytest.mark.parametrize(
    ("prompts", "message"),
    [
        ([(3,), ()], "prompt 1 has no tokens"),
        (
            [(3,) * 60],
            "sequence 0 has 60 tokens and 5 to generate, but the model has 64 positions; shorten .* or lower",
        ),
    ],
)
def test_what_cannot_be_computed_is_an_error_that_says_why(tokenizer, prompts, message):
    with pytest.raises(DataError, match=message):
        generate_batch(llama(), tokenizer, prompts, max_new_tokens=5)


@pytest.mark.parametrize(
    "options",
    [{"max_new_tokens": 0}, {"max_new_tokens": 3, "batch_size": 0}, {"max_new_tokens": 3, "beams": 0}],
)
def test_sizes_below_one_are_refused(tokenizer, options):
    with pytest.raises(ValueError, match="must be at least 1, not 0"):
        generate_batch(llama(), tokenizer, PROMPTS, **options)
