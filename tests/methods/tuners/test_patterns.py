"""Expressions in options: what `re` says, in a time that nobody can make long."""

from __future__ import annotations

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.random_cases import cases
from tests.store.tiny import tiny_model

from manytune.errors import ConfigError, NoMatchingPeftModuleError
from manytune.methods.registry import peft_config_from
from manytune.methods.tuners import patterns
from manytune.methods.tuners.targets import Selection, matches, select
from manytune.methods.tuners.unmatched import pattern_matches

#: `re` takes practically forever to say that each of these doesn't match a module of the tiny model.
ENDLESS = [
    ".?" * 40 + "Q",
    "(|.)" * 40 + "Q",
    "(.|.)" * 40 + "Q",
    ".*" * 20 + "Q",
    "(a|b|[a-z.0-9_])+(a|[a-z.0-9_])+(a|[a-z.0-9_])+(a|[a-z.0-9_])+(a|[a-z.0-9_])+(a|[a-z.0-9_])+Q",
    "([a-z.0-9_]+)+Q",
    "(((.*)*)*)*Q",
    "(?:(?:.{1,9}){1,9}){1,9}Q",
]


@pytest.mark.timeout(60)
@pytest.mark.parametrize("pattern", ENDLESS)
def test_no_expression_takes_long_to_match_nothing(pattern: str) -> None:
    assert patterns.is_linear(pattern)
    model = tiny_model()
    with pytest.raises(NoMatchingPeftModuleError, match="not found in the base model"):
        select(model, Selection.of(peft_config_from("lora", target_modules=pattern), pattern))
    path = "model.layers.1.self_attn.q_proj" + ".q_proj" * 20
    assert not pattern_matches(pattern, path)


ATOMS = st.sampled_from(["a", "b", ".", r"\.", "[ab]", "[^a]", r"\d", r"\w", "1", "^", "$", r"\b"])
PATTERNS = st.recursive(
    ATOMS,
    lambda inner: st.one_of(
        st.lists(inner, min_size=1, max_size=4).map("".join),
        st.lists(inner, min_size=1, max_size=3).map(lambda parts: f"({'|'.join(parts)})"),
        st.tuples(inner, st.sampled_from(["*", "+", "?", "{2}", "{1,2}", "*?"])).map(
            lambda p: f"(?:{p[0]}){p[1]}"
        ),
    ),
    max_leaves=8,
)


@settings(max_examples=cases(100), deadline=None)
@given(pattern=PATTERNS, text=st.text("ab.1_", max_size=8))
def test_they_match_what_re_matches(pattern: str, text: str) -> None:
    assert patterns.fullmatch(pattern, text) == (re.fullmatch(pattern, text) is not None)
    found, expected = patterns.match(f"({pattern})", text), re.match(f"({pattern})", text)
    assert (found is None) == (expected is None)
    assert found is None or expected is None or found(1) == expected.group(1)
    assert pattern_matches(pattern, text) == (re.match(rf"(.*\.)?({pattern})$", text) is not None)


@pytest.mark.parametrize(
    ("pattern", "matching", "other"),
    [
        (r"(?!.*vision).*(q|v)_proj", "text.q_proj", "vision.q_proj"),
        (r".*(q|v)_proj(?<!2\.v_proj)", "layers.1.v_proj", "layers.2.v_proj"),
        (r"(.+)\.\1|x", "a.a", "a.b"),
        (r"[ab]{,2}c?", "ab", "aba"),
        (r".*(é|q)_proj", "model.é_proj", "model.v_proj"),
    ],
)
def test_what_only_re_takes_is_matched_by_it(pattern: str, matching: str, other: str) -> None:
    assert not patterns.is_linear(pattern)
    assert matches(matching, pattern) and not matches(other, pattern)


def test_an_expression_that_is_none_is_an_error_that_says_how_names_are_written() -> None:
    with pytest.raises(ConfigError, match=r"isn't a regular expression: .* written as a list"):
        patterns.fullmatch("(a|b*", "a")


def test_a_list_of_names_is_looked_up_and_shown_in_part() -> None:
    model = tiny_model()
    names = [f"layers.{number}.q_proj" for number in range(200_000)]
    with pytest.raises(NoMatchingPeftModuleError) as error:
        select(model, Selection.of(peft_config_from("lora", target_modules=names), names))
    assert len(str(error.value)) < 2_000 and "(199,960 more)" in str(error.value)
    found = select(model, Selection("(.*self_attn.(q|v)_proj)"))
    by_list = select(model, Selection(["self_attn.q_proj", "v_proj"]))
    assert [path for path, _ in found] == [path for path, _ in by_list]
