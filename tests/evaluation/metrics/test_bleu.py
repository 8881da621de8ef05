import numpy as np
import pytest
import sacrebleu
from tests.evaluation.metrics.corpora import corpus, said, total

from manytune.evaluation.metrics import METRICS


def sacrebleu_streams(references):
    """sacrebleu wants the first references of all items, then the second ones, and so on."""
    most = max(len(texts) for texts in references)
    return [[texts[i] if i < len(texts) else None for texts in references] for i in range(most)]


@pytest.mark.parametrize("references", [1, 3, "var"])
@pytest.mark.parametrize(("name", "theirs"), [("bleu", sacrebleu.BLEU), ("chrf", sacrebleu.CHRF)])
def test_corpus_scores_and_signatures_are_sacrebleus(name, theirs, references):
    answers, targets = corpus(2, 30, references)
    metric = theirs()
    expected = metric.corpus_score(answers, sacrebleu_streams(targets)).score
    assert total(name, answers, targets) == pytest.approx(expected, rel=1e-12)
    assert METRICS[name].signature(targets) == str(metric.get_signature())


@pytest.mark.parametrize(
    "answers",
    [
        ["the quick fox", "lazy dogs"],  # no four-grams match: smoothed
        ["", ""],  # nothing said
        ["zzz qqq xxx yyy www", "vvv uuu"],  # nothing matches
        ["fox", "dog"],  # no bigrams at all
        ["the quick brown fox jumps over the lazy dog " * 3, "lazy"],  # longer than the references
    ],
)
@pytest.mark.parametrize(("name", "theirs"), [("bleu", sacrebleu.BLEU), ("chrf", sacrebleu.CHRF)])
def test_degenerate_corpora_score_as_in_sacrebleu(name, theirs, answers):
    targets = [["the quick brown fox jumps"], ["lazy dogs ran on"]]
    expected = theirs().corpus_score(answers, sacrebleu_streams(targets)).score
    assert total(name, answers, targets) == pytest.approx(expected, rel=1e-12, abs=1e-12)


@pytest.mark.parametrize(("name", "theirs"), [("bleu", sacrebleu.BLEU), ("chrf", sacrebleu.CHRF)])
def test_scores_of_many_resamples_at_once_are_those_of_each_alone(name, theirs):
    answers, targets = corpus(3, 12, 1)
    metric = METRICS[name]
    statistics = metric.statistics([said(text) for text in answers], targets)
    samples = np.random.default_rng(0).integers(0, 12, size=(20, 12))
    together = metric.aggregate(statistics[samples].sum(axis=1))
    for sample, score in zip(samples, together, strict=True):
        again = [answers[i] for i in sample], sacrebleu_streams([targets[i] for i in sample])
        assert score == pytest.approx(theirs().corpus_score(*again).score, rel=1e-12)
