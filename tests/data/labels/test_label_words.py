"""Label words: how they are written, what they become after a prompt, and the probabilities of labels."""

import math

import pytest
from tests.store.tiny import tiny_tokenizer

from manytune.data.encoding.encode import Encoder
from manytune.data.labels.label_words import LabelWords, label_probabilities, label_words
from manytune.data.templates import Example, Segment
from manytune.errors import DataError

EXAMPLE = Example((Segment("user", "abc"),), "good", "rows.jsonl", 3)


def test_labels_are_written_with_their_words_or_as_their_own() -> None:
    assert label_words("positive=great, negative=terrible").words == {
        "positive": "great",
        "negative": "terrible",
    }
    assert label_words("yes,no").words == {"yes": "yes", "no": "no"}
    for text, message in (
        ("yes", "2 to 200 labels; found 1"),
        ("a=x,b=x", "two labels have the same word"),
        ("a=,b=x", "a label or its word is empty"),
        ("a=x,a=y", "the label 'a' is given twice"),
    ):
        with pytest.raises(DataError, match=message):
            label_words(text)


def test_a_row_s_label_is_its_completion_or_that_of_its_word() -> None:
    assert LabelWords({"good": "yes", "bad": "no"}).label_of(EXAMPLE) == "good"
    assert LabelWords({"positive": "good", "negative": "bad"}).label_of(EXAMPLE) == "positive"
    with pytest.raises(DataError, match=r"rows\.jsonl:3: the completion 'good' is neither a label nor"):
        label_words("x,y").label_of(EXAMPLE)


def test_a_word_follows_the_prompt_without_what_ends_an_answer() -> None:
    encoder = Encoder(tiny_tokenizer(), max_length=None, chat=False)
    whole = encoder.encode(EXAMPLE)
    good, bad = LabelWords({"good": "good", "bad": "bad"}).sequences(EXAMPLE, encoder)
    assert (*good.completion_ids, encoder.end_id) == whole.completion_ids
    assert good.prompt_ids == bad.prompt_ids == whole.prompt_ids
    with pytest.raises(DataError, match="the tokens of the label word 'go' begin those of 'good'"):
        label_words("good,bad,go").sequences(EXAMPLE, encoder)


def test_probabilities_are_the_words_made_to_add_up_and_divided_by_those_without_content() -> None:
    nlls = [-math.log(0.02), -math.log(0.06)]
    assert label_probabilities(nlls) == pytest.approx([0.25, 0.75])
    # By hand: 0.02 / 0.1 = 0.2 and 0.06 / 0.6 = 0.1.
    free = [-math.log(0.1), -math.log(0.6)]
    assert label_probabilities(nlls, free) == pytest.approx([2 / 3, 1 / 3])
    assert label_probabilities([2000.0, 2000.0]) == [0.5, 0.5]  # no underflow
