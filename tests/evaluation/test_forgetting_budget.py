import numpy as np
import pytest

from manytune.evaluation.budgets import Budget, Limit, Spent
from manytune.evaluation.evaluate import System
from manytune.evaluation.forgetting_budget import budget_sentence, keep_to, spent_on
from manytune.evaluation.metrics import METRICS
from manytune.evaluation.results import Answer, Item

ITEMS = [Item("p", ("right",), "probe", row) for row in range(1, 201)]


def answers(right, seed=0, nll=2.0):
    drawn = np.random.default_rng(seed).random(len(ITEMS))
    return tuple(
        Answer("right" if one < right else "wrong", 1, "stop", nll * (0.9 + 0.2 * one), 1) for one in drawn
    )


def test_a_loss_beyond_the_budget_is_shown_one_within_it_too_and_one_near_it_is_neither():
    systems = [
        System(name, "lora", answers(right))
        for name, right in (("base", 0.8), ("ruined", 0.6), ("same", 0.8), ("near", 0.76))
    ]
    ruined, same, near = spent_on(ITEMS, systems, METRICS["exact_match"], 0.05)
    assert (ruined.verdict, same.verdict, near.verdict) == ("beyond", "within", "cannot tell")
    assert ruined.lost == pytest.approx(0.25, abs=0.05) and ruined.low < ruined.lost < ruined.high
    assert same.lost == 0.0


def test_of_a_perplexity_an_increase_is_the_loss():
    systems = [
        System(name, "lora", answers(1.0, nll=nll)) for name, nll in (("base", 2.0), ("a", 2.2), ("b", 1.9))
    ]
    worse, better = spent_on(ITEMS, systems, METRICS["perplexity"], 0.05)
    assert (worse.verdict, better.verdict) == ("beyond", "within")
    assert worse.lost > 0.2 and better.lost < 0


def test_seeds_that_differ_much_show_nothing():
    apart = System("apart", "lora", answers(0.8), other_seeds=(answers(0.5), answers(0.7)))
    (spent,) = spent_on(ITEMS, [System("base", "base", answers(0.8)), apart], METRICS["exact_match"], 0.01)
    assert spent.lost > 0.1 and spent.verdict == "cannot tell"


def spent(name, lost, verdict):
    return Spent(name, lost, lost - 0.01, lost + 0.01, verdict)


def test_the_lowest_validation_loss_within_the_budget_is_chosen_and_said():
    found = [spent("best", 0.2, "beyond"), spent("good", 0.005, "within"), spent("fair", 0.0, "cannot tell")]
    budget = keep_to(Limit("mine", 0.01), found, {"best": 1.0, "good": 1.2, "fair": 1.3})
    assert budget.chosen == "good"
    assert budget_sentence(budget) == (
        "Of the systems that aren't shown to have lost more than 1% on mine, good has the lowest validation loss "
        "(1.200): good lost 0.5% (−0.5% to 1.5%), shown to be within the budget. Beyond it: best lost 20.0% (19.0% to "
        "21.0%)."
    )
    none = keep_to(Limit("mine", 0.01), found[:1], {"best": 1.0})
    assert none.chosen is None
    assert budget_sentence(none).startswith(
        "No system keeps to the budget: each is shown to have lost more than 1%"
    )
    assert budget_sentence(None) is None
    assert isinstance(none, Budget)
