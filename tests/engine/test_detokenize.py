"""Text comes in whole characters, adds up to the whole text, and nothing of a stop string gets out."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.random_cases import cases
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE, WordLevel
from transformers import PreTrainedTokenizerFast

from manytune.engine.detokenize import TextStream, decode

SAMPLE = "naïve café — 😀👩‍👩‍👧 日本語 \u0939\u093f\u0928 ok"


@pytest.fixture(scope="module")
def tokenizer():
    """A tokenizer whose every token is one byte, so that most characters take several."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    core = Tokenizer(BPE({letter: place for place, letter in enumerate(alphabet)}, []))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=core, eos_token="</s>", additional_special_tokens=["<|tool|>"]
    )


def ids(tokenizer, text):
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def streamed(tokenizer, tokens, stop=(), **more):
    stream = TextStream(tokenizer, stop, end_ids=[tokenizer.eos_token_id], **more)
    parts = []
    for token in tokens:
        text, stopped = stream.push(token)
        parts.append(text)
        if stopped:
            return parts, True
    text, stopped = stream.finish()
    return [*parts, text], stopped


@settings(max_examples=cases(30), deadline=None)
@given(text=st.text(alphabet=SAMPLE, max_size=30))
def test_parts_are_whole_characters_and_add_up(tokenizer, text):
    parts, _ = streamed(tokenizer, ids(tokenizer, text))
    assert "".join(parts) == text
    assert not any("\ufffd" in part for part in parts)


@settings(max_examples=cases(30), deadline=None)
@given(tokens=st.lists(st.integers(0, 255), max_size=20))
def test_broken_bytes_add_up_to_what_the_tokenizer_makes_of_them(tokenizer, tokens):
    parts, _ = streamed(tokenizer, tokens)
    assert "".join(parts) == tokenizer.decode(tokens)


def test_end_tokens_have_no_text(tokenizer):
    tokens = [*ids(tokenizer, "ab"), tokenizer.eos_token_id, *ids(tokenizer, "é")]
    assert "".join(streamed(tokenizer, tokens)[0]) == "abé"
    assert decode(tokenizer, tokens, [tokenizer.eos_token_id]) == "abé"


@pytest.mark.parametrize("text", ["<|tool|>add(1, 2)", "a <|tool|> b<|tool|>", "😀<|tool|>é"])
def test_special_tokens_that_an_adapter_learned_have_theirs(tokenizer, text):
    tokens = ids(tokenizer, text)
    assert tokenizer.convert_tokens_to_ids("<|tool|>") in tokens
    assert "".join(streamed(tokenizer, tokens)[0]) == decode(tokenizer, tokens, ()) == text


def test_text_is_decoded_to_the_letter():
    words = {word: place for place, word in enumerate(["a", ",", "b", "do", "n't", "<unk>"])}
    core = Tokenizer(WordLevel(words, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tidying = PreTrainedTokenizerFast(
        tokenizer_object=core, unk_token="<unk>", clean_up_tokenization_spaces=True
    )
    tokens = ids(tidying, "a , b do n't")
    assert tidying.decode(tokens) == "a, b don't"
    assert decode(tidying, tokens, ()) == "a , b do n't"


OPENING = "<think>\n\n</think>\n\n"


@pytest.mark.parametrize(
    ("text", "stop", "expected", "stopped"),
    [
        (f"{OPENING}one\n\ntwo", "\n\n", f"{OPENING}one", True),
        (f"{OPENING}one", "\n\n", f"{OPENING}one", False),
        (OPENING, "\n\n", OPENING, False),
        (f"{OPENING}</think>", "</think>", OPENING, True),
        ("one\n\ntwo", "\n\n", "one", True),
        ("<think>\n\nmore", "\n\n", "<think>", True),
        ("<think>\n\n", "\n\n", "<think>", True),
        ("<thi", "\n\n", "<thi", False),
    ],
)
def test_no_stop_string_is_found_in_what_the_template_writes_before_an_answer(
    tokenizer, text, stop, expected, stopped
):
    parts, found = streamed(tokenizer, ids(tokenizer, text), (stop,), opening=OPENING)
    assert ("".join(parts), found) == (expected, stopped)


@settings(max_examples=cases(70), deadline=None)
@given(
    text=st.text(alphabet="abé", max_size=20),
    stop=st.lists(st.text(alphabet="abé", min_size=1, max_size=4), min_size=1, max_size=2),
)
def test_the_text_ends_before_the_first_stop_string(tokenizer, text, stop):
    parts, stopped = streamed(tokenizer, ids(tokenizer, text), stop)
    # The first string that is complete ends the answer.
    ends = [place for place in range(len(text) + 1) if any(text[:place].endswith(one) for one in stop)]
    assert stopped == bool(ends)
    if ends:
        seen = text[: ends[0]]
        assert "".join(parts) == seen[: min(seen.find(one) for one in stop if one in seen)]
    else:
        assert "".join(parts) == text
