"""The questions of systems that are the untouched base with examples in its prompt."""

from __future__ import annotations

from collections.abc import Callable

from manytune.data.dataset import Splits
from manytune.errors import DataError
from manytune.experiments.few_shot import FewShot, few_shot_questions
from manytune.experiments.recipe import Experiment
from manytune.store.base import Base


def questions_of(name: str, experiment: Experiment, base: Base, splits: Splits) -> FewShot:
    """The test questions with examples before each.

    Raises:
        DataError: There are fewer training prompts than examples are asked for.
    """
    system, compare = experiment.prompted()[name], experiment.compare
    assert system.shots is not None
    data = experiment.recipe.data
    return few_shot_questions(
        splits.test,
        splits.train,
        data.encoding_options(max_prompt=None).encoder(
            base.tokenizer,
            chat=None if data.chat == "auto" else data.chat,
            encoder_decoder=base.is_encoder_decoder,
        ),
        shots=system.shots,
        choose=system.choose_shots,
        seed=compare.seeds[0],
        room=None if base.positions is None else base.positions - compare.max_new_tokens,
    )


def questions_that_fit(
    name: str, experiment: Experiment, base: Base, splits: Splits, *, say: Callable[[str], None]
) -> FewShot | None:
    """The same for a system that nobody named: None, with a line why, if there are no such examples or they don't fit.

    They don't fit if any prompt is too long for the base's context with all of them.
    """
    try:
        few = questions_of(name, experiment, base, splits)
    except DataError as error:
        say(f"{name} is left out: {error}")
        return None
    if few.shortened:
        say(f"{name} is left out: in {few.shortened:,} prompts its examples exceed the context")
        return None
    return few
