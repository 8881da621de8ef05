"""With drafts every request gets the tokens, texts, log probabilities and end that it gets without them."""

import random
from collections import Counter
from dataclasses import replace
from itertools import product

import pytest
import torch
from tests.engine.adapters import END, VOCABULARY, llama
from tests.engine.arrivals import Arrival
from tests.engine.arrivals import run as run_arrivals
from tests.engine.drafting import drafts_always
from tests.engine.mixtures import LIMIT, PROMPTS, check, params, run, world_of
from tests.random_cases import cases
from transformers import LlamaConfig, LlamaForCausalLM

from manytune.engine import next_tokens
from manytune.engine.engine import Engine
from manytune.engine.options import EngineOptions
from manytune.engine.request import Request, SamplingParams
from manytune.errors import ConfigError


class OddOnly:
    """An answer of up to 15 tokens, of which every second has an odd number; END may follow the tenth."""

    class Matcher:
        def __init__(self):
            self.count = 0

        def allowed(self) -> torch.Tensor:
            mask = torch.arange(VOCABULARY) > END
            if self.count % 2:
                mask[::2] = False
            return mask

        def accept(self, token) -> None:
            assert not self.count % 2 or token % 2
            self.count += 1

        @property
        def may_end(self) -> bool:
            return self.count >= 10

        @property
        def must_end(self) -> bool:
            return self.count == 15

    def start(self):
        return self.Matcher()


def request_of(draw: random.Random, name: str, adapters) -> Request:
    """A request with a prompt that repeats itself, and any options."""
    pattern = draw.choices(range(2, VOCABULARY), k=draw.randint(1, 6))
    prompt = tuple((pattern * 20)[: draw.randint(2, 18)])
    options = {"max_new_tokens": draw.choice([1, 2, 5, 30, 40, 40]), "ignore_eos": draw.random() < 0.9}
    if draw.random() < 0.4:
        options |= {"temperature": draw.choice([0.2, 1.0]), "seed": draw.randrange(100)}
    for chance, more in (
        (0.2, {"repetition_penalty": 1.2}),
        (0.2, {"presence_penalty": 0.5, "frequency_penalty": 0.3}),
        (0.2, {"logit_bias": {draw.randrange(2, VOCABULARY): 4.0}}),
        (0.3, {"logprobs": draw.choice([0, 3])}),
        (0.2, {"prompt_logprobs": 1}),
        (0.15, {"stop": (f"w{draw.randrange(2, VOCABULARY)} w",)}),
        (0.15, {"stop_token_ids": tuple(draw.choices(range(2, VOCABULARY), k=2))}),
        (0.2, {"top_k": 10, "top_p": 0.9}),
    ):
        if draw.random() < chance:
            options |= more
    constraint = OddOnly() if draw.random() < 0.2 else None
    return Request(name, prompt, SamplingParams(**options), draw.choice(adapters), constraint=constraint)


def comparable(output):
    """An event, and apart from it the log probabilities, which are equal up to rounding."""
    given = [one for one in (output.logprobs, *(output.prompt_logprobs or ())) if one is not None]
    return replace(output, logprobs=None, prompt_logprobs=None), [one.logprob for one in given]


@pytest.mark.parametrize("seed", range(cases(2)))
def test_answers_in_any_mixture_are_those_without_drafts(seed, tokenizer, monkeypatch):
    draw = random.Random(seed)
    world = world_of("llama")
    names = [None, *draw.sample(list(world.adapters), 6), "prefix tuning", "prompt tuning"]
    arrivals = [Arrival(request_of(draw, str(place), names), draw.randrange(20)) for place in range(16)]
    cancelled = {str(place): draw.randrange(5, 60) for place in draw.sample(range(16), 2)}
    options = {"max_batch": 3, "prefill_chunk": draw.choice([5, 512]), "prefix_cache_tokens": 64}
    plain = world.engine(tokenizer, speculation="off", **options)
    drafting = drafts_always(world.engine(tokenizer, **options), monkeypatch)
    expected, found = (run_arrivals(engine, arrivals, {}) for engine in (plain, drafting))
    for name, outputs in found.items():
        assert len(outputs) == len(expected[name]), name
        for one, other in zip(outputs, expected[name], strict=True):
            (event, logprobs), (expected_event, expected_logprobs) = comparable(one), comparable(other)
            assert replace(event, usage=other.usage) == expected_event
            assert logprobs == pytest.approx(expected_logprobs, abs=1e-5)
            assert one.usage.completion_tokens == other.usage.completion_tokens
    counters = drafting.counters()
    assert counters.drafted_tokens > counters.accepted_tokens > 20
    assert counters.steps < plain.counters().steps
    assert plain.counters().drafted_tokens == 0
    cut = run_arrivals(drafting, arrivals, cancelled)
    for name in cut:
        tokens = [output.token_id for output in cut[name] if output.token_id is not None]
        assert tokens == [one.token_id for one in expected[name] if one.token_id is not None][: len(tokens)]


def test_every_adapter_answers_as_transformers_does(tokenizer, monkeypatch):
    world = world_of("llama")
    engine = drafts_always(world.engine(tokenizer, max_batch=4), monkeypatch)
    asked = [(name, number) for name in (None, *world.adapters) for number in (2, 4)]
    outputs = run(
        engine, [Request(f"{name}/{number}", PROMPTS[number], params(), name) for name, number in asked]
    )
    for name, number in asked:
        # Several tokens at once are summed in another order than one.
        check(world, name, number, outputs[f"{name}/{number}"], atol=2e-5)
    assert engine.counters().accepted_tokens > LIMIT


def test_accepted_tokens_come_in_one_step_each_with_its_text(tokenizer, monkeypatch):
    engine = drafts_always(Engine(llama(), tokenizer), monkeypatch)
    engine.submit(Request("one", (5, 6), SamplingParams(40, ignore_eos=True, logit_bias={9: 1e4})))
    most: list = []
    while engine.busy:
        most = max(most, engine.step(), key=len)
        engine.check_integrity()
    assert [output.token_id for output in most] == [9] * 11
    assert [output.text for output in most] == [" w9"] * 11
    counts = [output.usage.completion_tokens for output in most]
    assert counts == list(range(counts[0], counts[0] + 11))


def test_a_stop_within_an_accepted_run_ends_the_answer_there(tokenizer, monkeypatch):
    engine = drafts_always(Engine(llama(), tokenizer), monkeypatch)
    loop = SamplingParams(40, ignore_eos=True, logit_bias={9: 1e4})
    warm = engine.generate([Request("warm", (5, 6), loop)])[0]
    assert warm.token_ids == (9,) * 40
    # Token 9 is followed by 10 in the prompt, so that drafts go on where the answer ends.
    prompt = (9, 9, 9, 9, 9, 9, 9, 9, 9, 10, 11, 12)
    (cut,) = engine.generate([Request("cut", prompt, replace(loop, max_new_tokens=7))])
    assert (cut.token_ids, cut.finish_reason) == ((9,) * 7, "length")
    (cut,) = engine.generate([Request("cut", prompt, replace(loop, stop=("w9 w9 w9 w9 w9",)))])
    assert (cut.token_ids, cut.text, cut.finish_reason) == ((9,) * 5, "", "stop")


class Countdown:
    """An answer of 9, 10, 11 and nothing more."""

    class Matcher:
        def __init__(self):
            self.left = [9, 10, 11]

        def allowed(self) -> torch.Tensor:
            mask = torch.zeros(VOCABULARY, dtype=torch.bool)
            mask[self.left[:1]] = True
            return mask

        def accept(self, token) -> None:
            assert token == self.left.pop(0)

        @property
        def may_end(self) -> bool:
            return not self.left

        must_end = False

    def start(self):
        return self.Matcher()


@pytest.mark.parametrize(("temperature", "logprobs"), [(0.0, None), (1.0, 2)])
def test_an_end_within_a_draft_ends_the_answer_there(tokenizer, monkeypatch, temperature, logprobs):
    engine = drafts_always(Engine(llama(), tokenizer), monkeypatch)
    asked = SamplingParams(20, temperature=temperature, seed=3, logprobs=logprobs)
    prompt = (8, 9, 10, 11, END, 12, 13, 14, 15, 16, 8)
    (found,) = engine.generate([Request("ended", prompt, asked, constraint=Countdown())])
    assert (found.token_ids, found.finish_reason) == ((9, 10, 11), "stop")
    assert found.usage.completion_tokens == 4
    assert [one.token_id for one in found.logprobs] == ([] if logprobs is None else [9, 10, 11, END])
    # The guesses 10, 11, END and more were read in one forward, which gave three tokens.
    counters = engine.counters()
    assert counters.drafted_tokens > counters.accepted_tokens == 2
    engine.check_integrity()


@pytest.fixture(scope="module")
def small():
    """A model of 8 tokens."""
    torch.manual_seed(7)
    sizes = {"vocab_size": 8, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 32}
    config = LlamaConfig(**sizes, **heads, bos_token_id=None, eos_token_id=None, initializer_range=0.4)
    return LlamaForCausalLM(config).eval()


def test_sampled_answers_have_the_models_distribution(small, tokenizer, monkeypatch):
    # Whatever comes after the last token, 3, there is a guess of what follows: the likeliest one.
    with torch.no_grad():
        likeliest = small(torch.tensor([[3, token] for token in range(8)])).logits[:, -1].argmax(1).tolist()
    prompt = (*(token for first in range(8) for token in (3, first, likeliest[first])), 3)
    draws, heat = 1200, 0.8
    answers = list(product(range(8), repeat=3))
    with torch.no_grad():
        logits = small(torch.tensor([[*prompt, *answer] for answer in answers])).logits[:, -4:-1]
    log = (logits / heat).log_softmax(2).gather(2, torch.tensor(answers)[:, :, None])
    expected = dict(zip(answers, (draws * log.sum((1, 2)).exp()).tolist(), strict=True))
    engine = drafts_always(
        Engine(small, tokenizer, EngineOptions(max_batch=32, prefill_chunk=1024)), monkeypatch
    )
    found: Counter = Counter()
    for first in range(0, draws, 400):
        asked = [
            Request(str(seed), prompt, SamplingParams(3, temperature=heat, seed=seed, ignore_eos=True))
            for seed in range(first, first + 400)
        ]
        found.update(one.token_ids for one in engine.generate(asked))
    counters = engine.counters()
    assert counters.drafted_tokens > counters.accepted_tokens > 40
    # Answers that are expected seldom count as one.
    kept = [answer for answer in answers if expected[answer] >= 5]
    seldom = draws - sum(expected[answer] for answer in kept)
    pairs = [(found[answer], expected[answer]) for answer in kept]
    pairs.append((draws - sum(found[answer] for answer in kept), seldom))
    statistic = sum((count - mean) ** 2 / mean for count, mean in pairs)
    freedom = len(pairs) - 1
    assert freedom > 30
    # Wilson and Hilferty's approximation: the cube root is normal; 3.1 deviations are one case in a thousand.
    root = (statistic / freedom) ** (1 / 3)
    assert (root - (1 - 2 / (9 * freedom))) / (2 / (9 * freedom)) ** 0.5 < 3.1


def test_memory_that_is_missing_within_a_draft_ends_that_request(tokenizer, monkeypatch):
    def short(logits, samplers, allowed=None):
        if len(given) and engine.counters().accepted_tokens > 10:
            raise MemoryError
        return sample(logits, samplers, allowed)

    sample, given = next_tokens.sample_tokens, []
    engine = drafts_always(Engine(llama(), tokenizer), monkeypatch)
    follow = next_tokens._follow

    def following(*args):
        given.append(1)
        follow(*args)
        given.clear()

    monkeypatch.setattr(next_tokens, "sample_tokens", short)
    monkeypatch.setattr(next_tokens, "_follow", following)
    engine.submit(Request("one", (5, 6), SamplingParams(40, ignore_eos=True, logit_bias={9: 1e4})))
    outputs = []
    while engine.busy:
        outputs += engine.step()
        engine.check_integrity()
    assert outputs[-1].finish_reason == "memory" and outputs[-1].token_id is None
    assert [one.token_id for one in outputs[:-1]] == [9] * (len(outputs) - 1)


@pytest.mark.parametrize(
    ("mode", "weights", "drafts"),
    [("auto", "plain", True), ("auto", "int8", False), ("on", "int8", True), ("off", "plain", False)],
)
def test_activations_that_are_rounded_are_drafted_only_if_asked_for(tokenizer, mode, weights, drafts):
    engine = Engine(llama(), tokenizer, EngineOptions(speculation=mode, weights=weights))
    assert (engine._speculation.lookup((5,), 9) is not None) == drafts
    half = Engine(llama().bfloat16(), tokenizer, EngineOptions(speculation=mode))
    assert (half._speculation.lookup((5,), 9) is not None) == (mode == "on")


def test_an_unknown_mode_is_refused(tokenizer):
    with pytest.raises(ConfigError, match="speculation='always': expected one of auto, on, off"):
        Engine(llama(), tokenizer, EngineOptions(speculation="always"))
