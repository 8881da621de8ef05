import numpy as np
import pytest
from rouge_score.rouge_scorer import RougeScorer
from tests.evaluation.metrics.corpora import corpus, total

from manytune.evaluation.metrics.rouge import split_sentences


@pytest.mark.parametrize("references", [1, 3, "var"])
@pytest.mark.parametrize("name", ["rouge1", "rouge2", "rougeL"])
def test_rouge_is_the_mean_of_rouge_scores_f1_of_the_best_reference(name, references):
    answers, targets = corpus(1, 25, references)
    scorer = RougeScorer([name], use_stemmer=True)
    expected = np.mean(
        [
            max(scorer.score(text, answer)[name].fmeasure for text in texts)
            for answer, texts in zip(answers, targets, strict=True)
        ]
    )
    assert total(name, answers, targets) == pytest.approx(expected, abs=1e-12)


def test_rouge_lsum_is_rouge_scores_with_one_sentence_a_line():
    answers = ["Dogs ran. The fox jumps over dogs.", "Is it quick? Yes! (Well, brown.) And lazy"]
    targets = [["The fox jumped over dogs. Dogs ran."], ["(Well, brown.) And lazy. It is quick."]]
    by_hand = [
        ("Dogs ran.\nThe fox jumps over dogs.", "The fox jumped over dogs.\nDogs ran."),
        ("Is it quick?\nYes!\n(Well, brown.)\nAnd lazy", "(Well, brown.)\nAnd lazy.\nIt is quick."),
    ]
    scorer = RougeScorer(["rougeLsum"], use_stemmer=True)
    expected = np.mean([scorer.score(right, ours)["rougeLsum"].fmeasure for ours, right in by_hand])
    assert total("rougeLsum", answers, targets) == pytest.approx(expected, abs=1e-12)
    assert expected > 0.85 > total("rougeL", answers, targets)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("One. Two! Three? Four", "One.\nTwo!\nThree?\nFour"),
        ('He said "so." Then left.', 'He said "so."\nThen left.'),
        ("It rose 3.5 points.\nThen fell.", "It rose 3.5 points.\nThen fell."),
        ("Wait... what?!  Yes.", "Wait...\nwhat?!\nYes."),
        ("", ""),
    ],
)
def test_sentences_end_at_a_stop_before_white_space(text, expected):
    assert split_sentences(text) == expected
