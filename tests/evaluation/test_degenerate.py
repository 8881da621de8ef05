"""Which answers are no answers."""

import pytest

from manytune.evaluation.degenerate import degenerate, is_loop
from manytune.evaluation.results import Answer


@pytest.mark.parametrize(
    "text",
    [
        "Dialogue: " * 12,
        "The sky is blue. The sky is blue. The sky is blue. The sky is bl",
        "A start that is read once, and then it is so, and then it is so, and then it is so, and then it is so, and th",
        "ha" * 30,
        "天気がいいです。" * 6,
        "\n".join(["1. Red: 1"] * 6),
    ],
)
def test_a_text_that_repeats_its_end_is_a_loop(text):
    assert is_loop(text)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "no no no",  # short
        "The name is The Mill. The food is French. The price is low. The area is the city centre.",
        "Twice is no loop, as people do say so. " * 2,
        "A long text about many things, none of which comes up again in it, and at its end: " * 1 + "ha" * 12,
        "x" * 39,
    ],
)
def test_other_texts_are_none(text):
    assert not is_loop(text)


def test_loops_and_empty_answers_are_counted():
    texts = ["fine", "", " \n", "so it goes and " * 5]
    found = degenerate([Answer(text, 1, "stop") for text in texts])
    assert (found.asked, found.loops, found.empty, found.share) == (4, 1, 2, 0.75)
    assert degenerate([]).share == 0
