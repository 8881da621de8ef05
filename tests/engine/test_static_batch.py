from dataclasses import dataclass

import pytest
import torch
from tests.engine import adapters
from tests.reference.one_at_a_time import beam_search, greedy, negative_log_likelihood
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import GPT2LMHeadModel, LlamaForCausalLM, PreTrainedTokenizerFast

from manytune.engine.static_batch import Generation, completion_nll, generate_batch
from manytune.errors import DataError
from manytune.methods.lora.config import LoraConfig
from manytune.model.attach import get_peft_model

VOCABULARY, END = adapters.VOCABULARY, adapters.END
PROMPTS = [(5, 6, 7), (8,), (9, 10, 11, 12, 13, 14, 15), (16, 17), (5, 6, 7, 8), (20, 21, 22, 23, 24)]


@dataclass(frozen=True)
class Sequence:
    prompt_ids: tuple[int, ...]
    completion_ids: tuple[int, ...]


SEQUENCES = [
    Sequence((5, 6, 7), (8, 9, END)),
    Sequence((8,), (30, END)),
    Sequence((9, 10, 11, 12, 13, 14, 15), (END,)),
    Sequence((16, 17), (18, 19, 20, 21, 22, END)),
    Sequence((40, 41, 42, 43), (2, 2, 2)),
]


@pytest.fixture(scope="module")
def tokenizer():
    words = {"<pad>": 0, "</s>": END, **{f"w{i}": i for i in range(2, VOCABULARY)}}
    core = Tokenizer(WordLevel(words, unk_token="<pad>"))
    core.pre_tokenizer = WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=core, pad_token="<pad>", eos_token="</s>")


def llama():
    return adapters.llama(spread=0.5)


def gpt2():
    return adapters.gpt2(spread=0.5)


def with_lora(model):
    targets = ["c_attn"] if isinstance(model, GPT2LMHeadModel) else ["q_proj", "v_proj"]
    fan_in_fan_out = isinstance(model, GPT2LMHeadModel)
    adapted = get_peft_model(
        model, LoraConfig(r=4, target_modules=targets, fan_in_fan_out=fan_in_fan_out, task_type="CAUSAL_LM")
    )
    torch.manual_seed(5)
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.5)
    return adapted.eval()


MODELS = {
    "llama": llama,
    "gpt2": gpt2,
    "llama with LoRA": lambda: with_lora(llama()),
    "gpt2 with LoRA": lambda: with_lora(gpt2()),
}


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


@pytest.mark.parametrize("batch_size", [1, 3, 16])
def test_batched_likelihoods_are_those_of_one_token_at_a_time(model, batch_size):
    results = completion_nll(model, SEQUENCES, batch_size=batch_size)
    assert [tokens for _, tokens in results] == [3, 2, 1, 6, 3]
    for (nll, _), sequence in zip(results, SEQUENCES, strict=True):
        expected = negative_log_likelihood(model, sequence.prompt_ids, sequence.completion_ids)
        assert nll == pytest.approx(expected, rel=1e-5)


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
    completion_nll(model, SEQUENCES)
    with pytest.raises(IndexError):
        completion_nll(model, [Sequence((VOCABULARY + 3,), (END,))])
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


def test_only_the_completions_columns_reach_the_head():
    model, shapes = llama(), []
    model.lm_head.register_forward_hook(lambda _module, _args, output: shapes.append(tuple(output.shape)))
    completion_nll(model, SEQUENCES)
    assert shapes == [(5, 7, VOCABULARY)]


def test_no_prompts_give_no_answers(tokenizer):
    assert generate_batch(llama(), tokenizer, [], max_new_tokens=3) == []
    assert completion_nll(llama(), []) == []


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda model, tok: generate_batch(model, tok, [(3,), ()], max_new_tokens=2),
            "prompt 1 has no tokens",
        ),
        (
            lambda model, tok: generate_batch(model, tok, [(3,) * 60], max_new_tokens=5),
            "sequence 0 has 60 tokens and 5 to generate, but the model has 64 positions; shorten .* or lower",
        ),
        (
            lambda model, tok: completion_nll(model, [Sequence((3,), ())]),
            "sequence 0 has no completion tokens",
        ),
        (lambda model, tok: completion_nll(model, [Sequence((), (3,))]), "prompt 0 has no tokens"),
        (
            lambda model, tok: completion_nll(model, [Sequence((3,) * 60, (4,) * 5)]),
            "sequence 0 has 65 tokens, but the model has 64 positions",
        ),
    ],
)
def test_what_cannot_be_computed_is_an_error_that_says_why(tokenizer, call, message):
    with pytest.raises(DataError, match=message):
        call(llama(), tokenizer)


@pytest.mark.parametrize(
    "options",
    [{"max_new_tokens": 0}, {"max_new_tokens": 3, "batch_size": 0}, {"max_new_tokens": 3, "beams": 0}],
)
def test_sizes_below_one_are_refused(tokenizer, options):
    with pytest.raises(ValueError, match="must be at least 1, not 0"):
        generate_batch(llama(), tokenizer, PROMPTS, **options)
