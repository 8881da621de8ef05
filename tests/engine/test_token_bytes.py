"""Every token has its bytes, and together they are the text's, whatever the tokenizer makes of characters."""

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.random_cases import cases
from tests.store.tiny import tiny_tokenizer
from tokenizers import Tokenizer, decoders, normalizers, pre_tokenizers, trainers
from tokenizers.models import BPE, WordPiece
from transformers import PreTrainedTokenizerFast

from manytune.engine.token_bytes import CharacterCount, TokenBytes

SAMPLE = "naïve café — 😀👩‍👩‍👧 日本語 \u0939\u093f\u0928 ok,\n\t"


def byte_level():
    """Byte-level BPE with merges, some of them across the bytes of a character."""
    core = Tokenizer(BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    core.train_from_iterator([SAMPLE * 3, "😀 café naïve"], trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=core, eos_token="</s>", additional_special_tokens=["<|tool|>"]
    )


def byte_fallback():
    """As SentencePiece has it: words begin with ▁, and what isn't in the vocabulary is spelled in bytes."""
    names = ["<unk>", "<s>", "</s>", *[f"<0x{byte:02X}>" for byte in range(256)]]
    names += ["▁", *"abcdefghijklmnopqrstuvwxyz,é", "ca", "▁ca", "fé"]
    merges = [("c", "a"), ("▁", "ca"), ("f", "é")]
    model = BPE(
        {name: at for at, name in enumerate(names)},
        merges,
        unk_token="<unk>",
        fuse_unk=True,
        byte_fallback=True,
    )
    core = Tokenizer(model)
    core.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    core.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=core, bos_token="<s>", eos_token="</s>")


def word_pieces():
    core = Tokenizer(WordPiece({"[UNK]": 0, "a": 1, "##b": 2, "c": 3}, unk_token="[UNK]"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    core.decoder = decoders.WordPiece(cleanup=False)
    return PreTrainedTokenizerFast(tokenizer_object=core, unk_token="[UNK]")


TOKENIZERS = {"byte-level BPE": byte_level(), "byte fallback": byte_fallback()}


def parts(tokenizer, tokens):
    bytes_of = TokenBytes(tokenizer)
    return [bytes_of.of(token, first=not at) for at, token in enumerate(tokens)]


@pytest.mark.parametrize("name", TOKENIZERS)
@settings(max_examples=cases(70), deadline=None)
@given(text=st.text(alphabet=SAMPLE, max_size=20) | st.text(max_size=6))
def test_the_bytes_of_all_tokens_are_those_of_the_text(name, text):
    tokenizer = TOKENIZERS[name]
    tokens = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert b"".join(parts(tokenizer, tokens)) == text.encode() == tokenizer.decode(tokens).encode()


@pytest.mark.parametrize("name", TOKENIZERS)
@settings(max_examples=cases(70), deadline=None)
@given(data=st.data())
def test_any_tokens_have_the_bytes_of_what_they_decode_to(name, data):
    tokenizer = TOKENIZERS[name]
    tokens = data.draw(st.lists(st.integers(0, len(tokenizer) - 1), max_size=12))
    found = b"".join(parts(tokenizer, tokens))
    text = tokenizer.decode(tokens)
    if "\ufffd" not in text:
        assert found == text.encode()
    else:  # decoders differ in how many they give for broken bytes
        squeezed = [re.sub("\ufffd+", "\ufffd", one) for one in (found.decode(errors="replace"), text)]
        assert squeezed[0] == squeezed[1] or name == "byte fallback"


def test_the_halves_of_an_emoji_have_two_bytes_each():
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(BPE({"ðŁ": 0, "ĺĢ": 1}, [])), eos_token="</s>"
    )
    tokenizer.backend_tokenizer.decoder = decoders.ByteLevel()
    assert tokenizer.decode([0, 1]) == "😀"
    bytes_of = TokenBytes(tokenizer)
    assert [list(bytes_of.of(token)) for token in (0, 1)] == [[240, 159], [152, 128]]
    assert [bytes_of.label(token) for token in (0, 1)] == [r"bytes:\xf0\x9f", r"bytes:\x98\x80"]


def test_special_tokens_have_their_name_and_silent_ones_no_bytes():
    tokenizer = TOKENIZERS["byte-level BPE"]
    bytes_of = TokenBytes(tokenizer, [tokenizer.eos_token_id])
    tool = tokenizer.convert_tokens_to_ids("<|tool|>")
    assert (bytes_of.of(tool), bytes_of.label(tool)) == (b"<|tool|>", "<|tool|>")
    end = tokenizer.eos_token_id
    assert (bytes_of.of(end), bytes_of.label(end)) == (b"", "</s>")


def test_a_row_of_the_model_without_a_token_has_no_bytes():
    for tokenizer in TOKENIZERS.values():
        assert TokenBytes(tokenizer).of(len(tokenizer) + 7) == b""


@pytest.mark.parametrize(("tokenizer", "text"), [(tiny_tokenizer(), "abc"), (word_pieces(), "c ab a")])
def test_tokens_of_words_have_what_joins_them(tokenizer, text):
    tokens = tokenizer(text)["input_ids"]
    assert b"".join(parts(tokenizer, tokens)) == tokenizer.decode(tokens).encode()


@pytest.mark.parametrize(
    ("given_bytes", "places"),
    [
        ([b"a", b"bc", b"d"], [0, 1, 3]),
        ([b"a", b"\xf0\x9f", b"\x98\x80", b"b"], [0, 1, 1, 2]),
        ([b"\xf0\x9f", b"b", b"", b"c"], [0, 1, 2, 2]),
        ([b"\x98", b"b\xc3", b"\xa9c", b"d"], [0, 1, 2, 4]),
    ],
)
def test_a_token_is_at_the_character_to_which_its_first_byte_belongs(given_bytes, places):
    count = CharacterCount()
    assert [count.add(one) for one in given_bytes] == places
