import pytest

from manytune.evaluation.report.documents import marked


def shared(text, *references):
    return [span.text for span in marked(text, references) if span.shared]


def test_words_of_the_reference_in_its_order_are_marked_with_the_space_between_them():
    assert shared("We propose a new parser.", "They propose a neural parser") == ["propose a", "parser"]


def test_case_does_not_matter_and_of_several_references_the_most_similar_counts():
    assert shared("The Cat sat", "a dog", "the cat ran") == ["The Cat"]


@pytest.mark.parametrize("text", ["", "...", " a  b\nc ", "no word in common!"])
def test_the_spans_are_the_whole_answer(text):
    assert "".join(span.text for span in marked(text, ["x y z"])) == text
