"""What `manytune evaluate --label-words` does: labels from models that generate, by the likelihood of their words."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from manytune.cli.evaluate.here import Local, encoders_of, system_of
from manytune.errors import DataError

if TYPE_CHECKING:
    from manytune.cli.chosen import Chosen
    from manytune.data.labels.label_words import LabelWords
    from manytune.data.templates import Example
    from manytune.evaluation.evaluate import System


def choose_here(
    chosen: tuple[Chosen, ...],
    examples: Sequence[Example],
    base: str | None,
    words: LabelWords,
    *,
    limit: int | None,
    batch_size: int,
    task: str | None,
    calibrate: bool,
) -> Local:
    """Have the base and every adapter choose among labels.

    Args:
        chosen: The adapters.
        examples: The rows.
        base: Where their base is now; None for where it was.
        words: The labels and their words.
        limit: How many prompts are asked; None for all.
        batch_size: Sequences to a batch.
        task: Which one of several tasks the rows are of.
        calibrate: Whether probabilities are divided by those of a prompt whose fields say nothing.

    Raises:
        DataError: A row can't be used, or there is no single template to calibrate by.
    """
    from rich.console import Console

    from manytune.cli.chosen import BASE_NAME, load_common_base
    from manytune.cli.outputs.progress import CommandProgress
    from manytune.data.labels.label_words import CONTENT_FREE
    from manytune.evaluation.evaluate import System
    from manytune.experiments.label_choice import choose_labels, content_free_example, labels_asked
    from manytune.store.attaching import attached

    free = None
    if calibrate:
        templates = list(chosen[0].templates(task).values())
        if len(templates) != 1:
            raise DataError("--calibrate: the adapter has several templates; choose one with --task")
        free = content_free_example(templates[0])
    loaded, chosen = load_common_base(chosen, base)
    encoders = encoders_of(chosen, loaded, new_tokens=1)
    asked, items = labels_asked(examples, words)
    asked, items = asked[:limit], items[:limit]
    systems: list[System] = []
    with CommandProgress(Console(stderr=True)) as progress:
        for one, encoder in zip((None, *chosen), (encoders[0], *encoders), strict=True):
            name = one.name if one else BASE_NAME

            def notice(what: str, done: int, total: int, name: str = name) -> None:
                progress.answering(f"{name}: {what}", done, total)

            path, activations = one.stored.path if one else None, (one or chosen[0]).activations
            with attached(loaded, path, activations=activations) as model:
                answers = choose_labels(
                    model,
                    asked,
                    items,
                    encoder,
                    words,
                    batch_size=batch_size,
                    content_free=free,
                    notice=notice,
                )
            systems.append(system_of(one, answers) if one else System(name, "base", answers))
    listed = ", ".join(name if name == word else f"{name} by {word!r}" for name, word in words.words.items())
    how = f"the label whose word is likeliest ({listed}), {encoders[0].mode} prompts"
    if calibrate:
        how += f", its probability divided by that where every field is {CONTENT_FREE}"
    return Local(chosen, items, systems, {"Base": f"{loaded.name} ({loaded.fingerprint})"}, how)
