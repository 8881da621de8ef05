import math
import random

import numpy as np
import pytest
import sacrebleu
from rouge_score.rouge_scorer import RougeScorer

from manytune.errors import DataError
from manytune.evaluation.metrics import METRICS, metrics_named
from manytune.evaluation.metrics.accuracy import normalise
from manytune.evaluation.metrics.rouge import split_sentences
from manytune.evaluation.results import Answer

WORDS = [
    "the",
    "The",
    "a",
    "quick",
    "fox",
    "jumps",
    "jumped",
    "lazy",
    "dogs",
    "dog",
    "café,",
    "(well)",
    "3.5",
]


def said(text, **likelihood):
    return Answer(text, tokens=len(text.split()), finished="stop", **likelihood)


def sentence(rng, words):
    return " ".join(rng.choices(WORDS, k=words)) + rng.choice([".", "!", "?", ".)", '."', ""])


def corpus(seed, items, references):
    """Random answers and references that share words, empty and one-word answers among them."""
    rng = random.Random(seed)
    answers = ["", "fox", "the the the the the"]
    answers += [" ".join(sentence(rng, rng.randint(1, 9)) for _ in range(3)) for _ in range(items - 3)]
    count = (lambda: rng.randint(1, 3)) if references == "var" else (lambda: references)
    targets = [
        [" ".join(sentence(rng, rng.randint(2, 9)) for _ in range(rng.randint(1, 3))) for _ in range(count())]
        for _ in range(items)
    ]
    return answers, targets


def total(name, answers, references):
    metric = METRICS[name]
    statistics = metric.statistics([said(text) for text in answers], references)
    assert statistics.shape[0] == len(answers)
    return float(metric.aggregate(statistics.sum(axis=0)))


def sacrebleu_streams(references):
    """sacrebleu wants the first references of all items, then the second ones, and so on."""
    most = max(len(texts) for texts in references)
    return [[texts[i] if i < len(texts) else None for texts in references] for i in range(most)]


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


def test_exact_match_is_the_share_of_answers_equal_to_any_reference_after_normalisation():
    answers = [" Paris ", "pa\u00a0ris", "Paris.", "LONDON"]
    targets = [["paris"], ["PA\nRIS"], ["Paris"], ["Rome", "london"]]
    assert total("exact_match", answers, targets) == 3 / 4


@pytest.mark.parametrize(
    ("text", "expected"),
    [("  A\t b\n\nC ", "a b c"), ("Straße", "strasse"), ("ﬁne", "fine"), ("U.S.", "u.s.")],
)
def test_normalisation_folds_case_compatibility_forms_and_white_space_only(text, expected):
    assert normalise(text) == expected


def test_perplexity_weighs_tokens_and_not_items():
    answers = [said("x", nll=2.0, nll_tokens=1), said("y", nll=3.0, nll_tokens=9)]
    metric = METRICS["perplexity"]
    statistics = metric.statistics(answers, [["x"], ["y"]])
    assert float(metric.aggregate(statistics.sum(axis=0))) == pytest.approx(math.exp(5 / 10))


def test_perplexity_without_likelihoods_is_an_error_that_names_the_item():
    with pytest.raises(DataError, match=r"item 1 has no likelihood.*leave perplexity out"):
        METRICS["perplexity"].statistics([said("x", nll=1.0, nll_tokens=1), said("y")], [["x"], ["y"]])


def test_scores_lie_in_their_stated_bounds_and_a_perfect_answer_reaches_the_best():
    texts = ["The quick brown fox jumps over the lazy dog.", "Dogs ran home at night. Foxes slept."]
    for name, metric in METRICS.items():
        if name != "perplexity":
            assert total(name, texts, [[text] for text in texts]) == pytest.approx(metric.bounds[1])
            assert total(name, ["", ""], [[text] for text in texts]) == metric.bounds[0]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("rouge1", "nrefs:1|type:rouge1|score:f1|stemmer:porter|mrefs:max|rouge_score:0.1.2"),
        ("exact_match", "nrefs:1|norm:nfkc+casefold+whitespace|mrefs:any"),
        ("perplexity", "nrefs:1|tokens:completion+end|mean:tokens|mrefs:all"),
    ],
)
def test_signatures_of_our_own_state_what_was_done(name, expected):
    assert METRICS[name].signature([["a"], ["b"]]) == expected


def test_a_signature_says_when_items_have_different_numbers_of_references():
    assert METRICS["rougeLsum"].signature([["a"], ["b", "c"]]).startswith("nrefs:var|type:rougeLsum|")


def test_metrics_are_found_by_name_once_each_and_in_the_order_asked_for():
    assert [metric.name for metric in metrics_named(["bleu", "rouge1", "bleu"])] == ["bleu", "rouge1"]
    with pytest.raises(
        DataError, match=r"unknown metric 'rogue1'\. Did you mean rouge1.*rougeLsum, bleu, chrf"
    ):
        metrics_named(["rogue1"])
    with pytest.raises(DataError, match="no metric given; choose from rouge1"):
        metrics_named([])
