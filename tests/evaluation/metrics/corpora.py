"""Answers and references for the metrics' tests."""

import random

from manytune.evaluation.metrics import METRICS
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
