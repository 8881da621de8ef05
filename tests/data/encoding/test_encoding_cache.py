"""Encoded rows from the cache are the encoded rows, or they aren't used."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.random_cases import cases

from manytune.data.dataset import Splits, TokenSplits, encode_splits, read_splits
from manytune.data.encoding.encoded import Encoded, EncodedSet
from manytune.data.encoding.encoded_file import from_bytes, to_bytes
from manytune.data.encoding.encoding_cache import EncodingCache
from manytune.data.recipe import DataRecipe
from manytune.data.records import Rejected
from manytune.errors import DamagedError

IDS = st.lists(st.integers(0, 2**31 - 1), min_size=1, max_size=5).map(tuple)
SEQUENCES = st.builds(
    Encoded,
    IDS,
    IDS,
    st.sampled_from(["a.jsonl", "ü\n.csv"]),
    st.integers(1, 2**40),
    st.none() | st.text(max_size=3),
    st.sampled_from([(), ((0, 1),), ((0, 1), (2, 4))]),
    st.booleans(),
)
REJECTED = st.builds(Rejected, st.just("a.jsonl"), st.integers(1, 9), st.text(max_size=5))


@given(st.lists(SEQUENCES, max_size=5), st.lists(REJECTED, max_size=2), st.integers(0, 9), st.integers(0, 9))
@settings(max_examples=cases(15), deadline=None)
def test_a_file_holds_all_of_a_set(kept: Any, dropped: Any, truncated: int, turns: int) -> None:
    encoded = EncodedSet(tuple(kept), tuple(dropped), truncated, turns)
    assert from_bytes(to_bytes(encoded), where="x") == encoded


def test_any_changed_byte_is_noticed() -> None:
    whole = to_bytes(EncodedSet((Encoded((1, 2), (3,), "a.jsonl", 1),), (), 0))
    for place in range(0, len(whole), 7):
        broken = whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :]
        with pytest.raises(DamagedError):
            from_bytes(broken, where="x")


class Encoding:
    """Rows, a tokenizer and a cache; `lines` is what was reported."""

    def __init__(self, directory: Path, tokenizer: Any, **options: Any) -> None:
        directory.mkdir(exist_ok=True)
        rows = directory / "rows.jsonl"
        lines = [f'{{"q": "question {i % 7}", "a": "{"b" * i}"}}\n' for i in range(1, 21)]
        rows.write_text("".join(lines))
        self.data = DataRecipe(
            train=str(rows),
            validation=0.25,
            prompt="{{ q }}",
            completion="{{ a }}",
            max_length=24,
            overflow="drop",
        )
        self.tokenizer, self.lines = tokenizer, list[str]()
        self.cache = EncodingCache(directory / "cache", notify=self.lines.append, fewest=1, **options)

    @property
    def splits(self) -> Splits:
        return read_splits(self.data)

    def encode(self, data: DataRecipe | None = None, **changes: Any) -> TokenSplits:
        splits = dataclasses.replace(self.splits, **changes)
        return encode_splits(splits, data or self.data, self.tokenizer, cache=self.cache)

    @property
    def from_cache(self) -> bool:
        return any("come from the cache" in line for line in self.lines)


def test_the_second_time_gives_the_same_from_the_cache(tmp_path: Path, make_tokenizer: Any) -> None:
    encoding = Encoding(tmp_path, make_tokenizer())
    plain = encode_splits(encoding.splits, encoding.data, encoding.tokenizer)
    assert plain.left_out, "no row is too long, so this shows less"
    assert encoding.encode() == plain
    assert not encoding.from_cache
    assert encoding.encode() == plain
    assert encoding.from_cache
    assert len(encoding.cache.entries()) == 2  # training and validation rows


def test_whatever_decides_the_ids_makes_another_entry(tmp_path: Path, make_tokenizer: Any) -> None:
    encoding = Encoding(tmp_path, make_tokenizer())
    encoding.encode()
    encoding.encode(encoding.data.model_copy(update={"max_length": 22}))
    row = encoding.splits.train[0]
    changed = dataclasses.replace(row, completion=row.completion + "!")
    encoding.encode(train=(changed, *encoding.splits.train[1:]), validation=())
    other = Encoding(tmp_path, make_tokenizer())
    other.tokenizer.add_tokens(["question"])
    other.encode()
    assert not encoding.from_cache
    assert not other.from_cache


def test_a_damaged_entry_is_reported_and_made_again(tmp_path: Path, make_tokenizer: Any) -> None:
    encoding = Encoding(tmp_path, make_tokenizer())
    plain = encoding.encode()
    for entry in encoding.cache.entries():
        content = bytearray(entry.path.read_bytes())
        content[-40] ^= 1
        entry.path.write_bytes(content)
    assert encoding.encode() == plain
    assert sum("differs. The rows are encoded again" in line for line in encoding.lines) == 2
    assert not encoding.from_cache
    encoding.encode()
    assert encoding.from_cache


def test_few_rows_aren_t_kept(tmp_path: Path, make_tokenizer: Any) -> None:
    encoding = Encoding(tmp_path, make_tokenizer())
    encoding.cache = EncodingCache(tmp_path / "cache", fewest=1000)
    encoding.encode()
    assert encoding.cache.entries() == []


def test_what_was_not_used_for_longest_goes_first(tmp_path: Path, make_tokenizer: Any) -> None:
    encoding = Encoding(tmp_path, make_tokenizer())
    encoding.encode()
    old, new = encoding.cache.entries()
    os.utime(old.path, (1, 1))
    os.utime(new.path, (2, 2))
    encoding.cache = EncodingCache(tmp_path / "cache", fewest=1, most_bytes=old.nbytes + new.nbytes)
    encoding.encode(encoding.data.model_copy(update={"max_length": 22}), validation=())
    left = {entry.path for entry in encoding.cache.entries()}
    assert old.path not in left
    assert sum(entry.nbytes for entry in encoding.cache.entries()) <= old.nbytes + new.nbytes


def test_clearing_gives_what_was_there(tmp_path: Path, make_tokenizer: Any) -> None:
    encoding = Encoding(tmp_path, make_tokenizer())
    encoding.encode()
    assert len(encoding.cache.clear()) == 2
    assert encoding.cache.entries() == []


def test_a_cache_that_cannot_be_written_is_reported_and_the_rows_are_encoded(
    tmp_path: Path, make_tokenizer: Any
) -> None:
    encoding = Encoding(tmp_path, make_tokenizer())
    (tmp_path / "cache").write_text("a file is in the way")
    assert encoding.encode() == encode_splits(encoding.splits, encoding.data, encoding.tokenizer)
    assert any("aren't kept for the next run" in line for line in encoding.lines)
