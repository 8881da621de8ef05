"""Rows of words with tags: what a row becomes, which token of a word bears its tag, what is refused."""

from typing import Any

import pytest
from tests.training.tiny_classifiers import encoder_tokenizer

from manytune.data.labels.label_kinds import labels_from
from manytune.data.labels.spans import spans_of
from manytune.data.labels.word_encoder import Tagged, WordEncoder
from manytune.data.labels.word_labels import TaggedExample, TaggedForm, WordLabels, word_labels_of
from manytune.data.records import Record
from manytune.errors import DataError, TemplateError


def example(words: object = ("ab", "c"), tags: object = ("B-X", "O"), **options: Any) -> TaggedExample:
    return TaggedForm("w", "t", **options).render(Record({"w": words, "t": tags}, "rows.jsonl", 7))


def test_words_and_tags_are_lists_or_texts_with_spaces_and_numbers_have_names() -> None:
    found = example(["ab", "c"], ["B-X", "O"])
    assert (found.words, found.tags, found.completion) == (("ab", "c"), ("B-X", "O"), "B-X O")
    assert example("ab  c", "B-X O") == found
    assert example(["ab", "c"], [1, 0], tag_names=("O", "B-X")) == found
    assert example(["ab", "c"], [1, 0]).tags == ("1", "0")


@pytest.mark.parametrize(
    ("words", "tags", "options", "message"),
    [
        (["ab"], ["O", "O"], {}, "'w' has 1 words, and 't' has 2 tags"),
        (["ab", " "], ["O", "O"], {}, "word 2 of the field 'w' is ' '"),
        (["ab", None], ["O", "O"], {}, "word 2 of the field 'w' is 'None'"),
        ([], [], {}, "the field 'w' is empty"),
        (None, ["O"], {}, "tokens needs the field 'w', which is null"),
        (3, ["O"], {}, "the field 'w' is int; expected a list"),
        (["ab"], ["B X"], {}, "tag 1 of the field 't' is 'B X'; expected a name without white space"),
        (["ab"], [2], {"tag_names": ("O", "B")}, "tag 1 of the field 't' is 2; expected a number below 2"),
        (["ab"], ["O"], {"tag_names": ("O", "B")}, "tag 1 of the field 't' is 'O'; expected a number"),
    ],
)
def test_a_row_that_cannot_be_read_is_an_error_with_its_line(
    words: object, tags: object, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(TemplateError, match=rf"rows\.jsonl:7: .*{message}"):
        example(words, tags, **options)


def test_counts_are_of_words_and_an_unknown_tag_is_an_error_with_its_line() -> None:
    labels = word_labels_of([example(), example(("c", "c", "ab"), ("O", "O", "B-X"))])
    assert labels == WordLabels(("B-X", "O"), (2, 3)) and labels.majority == ("O", 0.6)
    assert labels_from(labels.to_dict()) == labels
    with pytest.raises(DataError, match=r"rows\.jsonl:7: the tag 'B-Y' is no training row's: B-X, O"):
        labels.places(example(("ab",), ("B-Y",)))
    with pytest.raises(DataError, match=r"Is data\.tags the right field"):
        word_labels_of([example(("c",), ("O",))])


def test_a_tag_is_that_of_its_word_s_first_token_and_words_that_are_cut_off_have_none() -> None:
    tokenizer = encoder_tokenizer()
    labels = WordLabels(("B-X", "O"), (1, 1))
    given = example(("ab", "c", "de"), ("O", "B-X", "O"))
    row, cut = WordEncoder(tokenizer, labels, weights={"B-X": 3.0}).encode(given)
    assert isinstance(row, Tagged) and not cut
    # [CLS] a b _ c _ d e [SEP]
    assert (row.first_tokens, row.completion_ids, row.weights) == ((1, 4, 6), (1, 0, 1), (1.0, 3.0, 1.0))
    row, cut = WordEncoder(tokenizer, labels, max_length=6, overflow="truncate_prompt").encode(given)
    assert isinstance(row, Tagged) and cut
    assert (row.first_tokens, row.words, row.length, row.targets) == ((1, 4), (0, 1), 3, 2)
    with pytest.raises(DataError, match=r"rows\.jsonl:7: 9 tokens; data\.max_length and the base allow 6"):
        WordEncoder(tokenizer, labels, max_length=6).encode(given)


@pytest.mark.parametrize(
    ("tags", "expected"),
    [
        ("B-X I-X O B-Y", [(0, 2, "X"), (3, 4, "Y")]),
        ("I-X I-X I-Y", [(0, 2, "X"), (2, 3, "Y")]),  # conlleval begins a span at an I- without a B-
        ("B-X B-X", [(0, 1, "X"), (1, 2, "X")]),
        ("O I-X", [(1, 2, "X")]),
        ("S-X B-Y E-Y E-Y", [(0, 1, "X"), (1, 3, "Y"), (3, 4, "Y")]),
        ("NOUN O VERB", [(0, 1, "NOUN"), (2, 3, "VERB")]),
        ("B-in-law I-in-law <cut>", [(0, 2, "in-law"), (2, 3, "<cut>")]),
        ("", []),
    ],
)
def test_spans_are_those_of_conll_s_script(tags: str, expected: list[tuple[int, int, str]]) -> None:
    assert spans_of(tags.split()) == expected
