"""An evaluation with invented but lifelike answers: a base that rambles, two systems that mostly hit."""

from __future__ import annotations

import math
import random

from manytune.evaluation.evaluate import System, evaluate
from manytune.evaluation.metrics import METRICS, TEXT_METRICS
from manytune.evaluation.resampling import Resampling
from manytune.evaluation.results import Answer, Cost, Curves, Item, LossPoint

WORDS = [
    "we",
    "propose",
    "a",
    "neural",
    "model",
    "of",
    "parsing",
    "that",
    "learns",
    "word",
    "order",
    "from",
    "large",
]
WORDS += [
    "corpora",
    "and",
    "improves",
    "translation",
    "over",
    "strong",
    "baselines",
    "with",
    "fewer",
    "parameters",
]
TASKS = ("challenge", "approach", "outcome")


def items(papers=8):
    rng = random.Random(1)
    return [
        Item(
            prompt=f"Name the {task} of this paper.\n\n" + " ".join(rng.choices(WORDS, k=60)),
            references=(" ".join(rng.choices(WORDS, k=14)).capitalize() + ".",),
            source="papers.jsonl",
            row=3 * paper + place + 1,
            group=f"paper-{paper}",
            task=task,
        )
        for paper in range(papers)
        for place, task in enumerate(TASKS)
    ]


def answers(asked, share_right, seed, nll):
    """Each word of the reference with probability `share_right`, another word else."""
    rng = random.Random(seed)
    found = []
    for item in asked:
        words = [
            word if rng.random() < share_right else rng.choice(WORDS) for word in item.references[0].split()
        ]
        finished = "stop" if rng.random() < 0.8 else "length"
        found.append(Answer(" ".join(words), len(words), finished, nll * 14 * rng.uniform(0.8, 1.2), 14))
    return tuple(found)


def curves(last, steps):
    rng = random.Random(2)
    return Curves(
        training=tuple(
            LossPoint(step, last + math.exp(-step / 20) + rng.gauss(0, 0.1)) for step in range(1, steps + 1)
        ),
        validation=tuple(LossPoint(step, last + math.exp(-step / 20)) for step in range(0, steps + 1, 20)),
    )


def systems(asked):
    return [
        System("base", "base", answers(asked, 0.0, 1, 3.0), Cost(total_params=134_515_008)),
        System(
            "full",
            "full",
            answers(asked, 0.6, 2, 2.0),
            Cost(134_515_008, 134_515_008, 181.2, 3_900_000_000, 538_000_000, 1210.0),
            curves(2.1, 100),
            {"Recipe": "runs/full/recipe.yaml"},
        ),
        System(
            "lora",
            "lora",
            answers(asked, 0.6, 3, 2.1),
            Cost(2_442_240, 136_957_248, 122.7, 2_100_000_000, 9_800_000, 1840.0),
            curves(2.0, 400),
            {"Recipe": "runs/lora/recipe.yaml"},
        ),
    ]


def evaluation(papers=8, *, metrics=TEXT_METRICS, among=None, resamples=500, **options):
    asked = items(papers)
    return evaluate(
        asked,
        among or systems(asked),
        [METRICS[name] for name in metrics],
        resampling=Resampling(resamples=resamples),
        provenance={"Base": "a base", "Data": "papers.jsonl"},
        **options,
    )
