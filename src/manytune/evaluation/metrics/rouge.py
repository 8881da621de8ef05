"""ROUGE (Lin 2004), as the `rouge-score` package computes it: F1, Porter stemmer on, between 0 and 1.

With several references the best one counts, per item and per metric (`RougeScorer.score_multi`).

ROUGE-Lsum compares sentence by sentence, and `rouge-score` takes lines for sentences. Answers come as
running text, so both sides are split first: a new line is put after `.`, `!` or `?`, with any closing
quotes or brackets, where white space follows. Line breaks already in a text separate sentences too.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from importlib.metadata import version
from typing import Any

from manytune.evaluation.metrics.base import MeanOfItems, number_of_references
from manytune.evaluation.results import Answer

_SENTENCE_END = re.compile(r"""(?<=[.!?])(["'\u201d\u2019)\]]*)\s+""")


@dataclass(frozen=True, slots=True)
class Rouge(MeanOfItems):
    """One of the ROUGE scores; the mean over items of each item's F1.

    Attributes:
        name: `rouge1` or `rouge2` (unigrams, bigrams), `rougeL` (longest common subsequence of the whole
            texts) or `rougeLsum` (of their sentences).
        label: What tables call it.
    """

    def scores(self, answers: Sequence[Answer], references: Sequence[Sequence[str]]) -> Sequence[float]:
        """F1 of each item."""
        scorer = _scorer(self.name)
        scores = []
        for answer, texts in zip(answers, references, strict=True):
            prediction, targets = answer.text, list(texts)
            if self.name == "rougeLsum":
                prediction, targets = split_sentences(prediction), [split_sentences(text) for text in targets]
            scores.append(float(scorer.score_multi(targets, prediction)[self.name].fmeasure))
        return scores

    def signature(self, references: Sequence[Sequence[str]]) -> str:
        """For example `nrefs:1|type:rouge1|score:f1|stemmer:porter|mrefs:max|rouge_score:0.1.2`."""
        nrefs = number_of_references(references)
        parts = [f"nrefs:{nrefs}", f"type:{self.name}", "score:f1", "stemmer:porter"]
        if self.name == "rougeLsum":
            parts.append("sentences:newline+[.!?]")
        return "|".join([*parts, "mrefs:max", f"rouge_score:{version('rouge-score')}"])


def split_sentences(text: str) -> str:
    """One sentence a line, by the rule at the top of this module."""
    return _SENTENCE_END.sub(r"\1\n", text)


class _RememberingTokenizer:
    """The tokenizer of `rouge-score`; four metrics stem the same texts, so the latest are remembered."""

    def __init__(self) -> None:
        from rouge_score.tokenizers import DefaultTokenizer

        self.tokenize = lru_cache(maxsize=4096)(DefaultTokenizer(use_stemmer=True).tokenize)


@cache
def _tokenizer() -> _RememberingTokenizer:
    return _RememberingTokenizer()


@cache
def _scorer(name: str) -> Any:
    from rouge_score.rouge_scorer import RougeScorer  # with nltk and scikit-learn, which take a second

    return RougeScorer([name], tokenizer=_tokenizer())
