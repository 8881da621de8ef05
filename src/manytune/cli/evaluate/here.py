"""What `manytune evaluate` asks here: the base and every adapter, over one copy of the base."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from manytune.errors import DataError

if TYPE_CHECKING:
    from manytune.cli.chosen import Chosen
    from manytune.data.encoding.encode import Encoder
    from manytune.data.labels.label_kinds import AnyLabels
    from manytune.data.templates import Example
    from manytune.engine.constraint import Constraint
    from manytune.evaluation.answers import Question
    from manytune.evaluation.evaluate import System
    from manytune.evaluation.metrics import Metric
    from manytune.evaluation.results import Answer, Item
    from manytune.experiments.answering import Decoding
    from manytune.store.base import Base


@dataclass(frozen=True)
class Local:
    """What was asked here: the base and every adapter.

    Attributes:
        chosen: The adapters, checked against the base.
        items: What was asked.
        systems: Who answered, the base first.
        provenance: Which base that was.
        how: How answers were generated.
    """

    chosen: tuple[Chosen, ...]
    items: tuple[Item, ...]
    systems: list[System]
    provenance: dict[str, str]
    how: str


def ask_here(
    chosen: tuple[Chosen, ...],
    examples: Sequence[Example],
    base: str | None,
    metrics: Sequence[Metric],
    *,
    limit: int | None,
    max_new_tokens: int,
    beams: int,
    batch_size: int,
    held_to: Path | None = None,
) -> Local:
    """Ask the base and every adapter; of classifiers, the most frequent label is the base's answer.

    Args:
        chosen: The adapters.
        examples: The rows.
        base: Where their base is now; None for where it was.
        metrics: What will be scored.
        limit: How many prompts are asked; None for all.
        max_new_tokens: The longest answer.
        beams: How many beams search for it.
        batch_size: Prompts to a batch.
        held_to: A file with a JSON schema that every answer is held to; None for none.

    Raises:
        GrammarError, DataError: Answers can't be held to it.
    """
    from manytune.cli.chosen import load_common_base
    from manytune.cli.evaluate.classifiers import common_labels
    from manytune.evaluation.answers import questions_from
    from manytune.experiments.answering import Decoding

    labels = common_labels(chosen)
    loaded, chosen = load_common_base(chosen, base)
    if labels is not None:
        return _ask_classifiers(chosen, loaded, labels, examples, limit=limit, batch_size=batch_size)
    encoders = encoders_of(chosen, loaded, new_tokens=max_new_tokens)
    longest = _longest(chosen[0], loaded)
    asked = [questions_from(examples, encoder, longest=longest)[:limit] for encoder in encoders]
    decoding = Decoding(
        max_new_tokens=max_new_tokens,
        batch_size=batch_size,
        end_ids=(encoders[0].end_id,),
        constraint=None if held_to is None else _constraint(held_to, loaded, encoders[0], asked[0]),
        beams=beams,
        likelihood_batch_size=batch_size,
    )
    likelihoods = any(metric.name == "perplexity" for metric in metrics)
    return Local(
        chosen,
        tuple(question.item for question in asked[0]),
        _systems(loaded, chosen, asked, decoding, likelihoods=likelihoods),
        {"Base": f"{loaded.name} ({loaded.fingerprint})"},
        f"{_search(beams)}, at most {max_new_tokens} tokens, {encoders[0].mode} prompts"
        + ("" if held_to is None else f", held to {held_to.name}"),
    )


def _constraint(schema: Path, base: Base, encoder: Encoder, questions: Sequence[Question]) -> Constraint:
    """What holds answers to a schema."""
    from manytune.evaluation.metrics.structured import schema_metric
    from manytune.experiments.constrained import schema_constraint

    return schema_constraint(schema_metric(schema), base, encoder, questions)


def _ask_classifiers(
    chosen: tuple[Chosen, ...],
    base: Base,
    labels: AnyLabels,
    examples: Sequence[Example],
    *,
    limit: int | None,
    batch_size: int,
) -> Local:
    from manytune.cli.evaluate.classifiers import ask_classifiers, baseline_system, labelled_questions_of
    from manytune.experiments.classifying import baseline_facts

    with_head, questions = labelled_questions_of(chosen, base, labels, examples)
    questions = questions[:limit]
    facts = baseline_facts(labels)
    answers = ask_classifiers(chosen, with_head, questions, batch_size=batch_size)
    return Local(
        chosen,
        tuple(question.item for question in questions),
        [baseline_system(questions, labels), *map(system_of, chosen, answers)],
        {"Base": f"{with_head.name} ({with_head.fingerprint})", **facts},
        facts["Answers"],
    )


def common_examples(chosen: Sequence[Chosen], data: str | None, task: str | None) -> tuple[Example, ...]:
    """The rows as every adapter's template renders them.

    Raises:
        DataError: Two adapters would be asked different things, so that a comparison would mean nothing.
    """
    first = _examples(chosen[0], data, task)
    for other in chosen[1:]:
        if _examples(other, data, task) != first:
            raise DataError(
                f"{chosen[0].name} and {other.name} would be asked different things: their templates differ"
                + ("" if data else ", or their test rows (one file for both: --data)")
                + ". Evaluate them one at a time."
            )
    return first


def _examples(chosen: Chosen, data: str | None, task: str | None) -> tuple[Example, ...]:
    from manytune.data.dataset import read_splits
    from manytune.data.readers import read_role
    from manytune.data.templates import render_all

    if data is not None:
        examples = render_all(chosen.form(task), read_role(data, "test").kept).kept
        return tuple(replace(example, task=task) for example in examples)
    wanted = None if task is None else chosen.templates(task)
    if not chosen.recipe:
        raise DataError(f"{chosen.name} has no recipe that names test rows; give them with --data")
    rows = chosen.data
    if not any(one.test is not None for one in rows.tasks or (rows,)):
        raise DataError(f"{chosen.name}'s recipe sets no test rows aside (data.test); give some with --data")
    found = read_splits(rows).test
    return tuple(example for example in found if wanted is None or example.task in wanted)


def encoders_of(chosen: Sequence[Chosen], base: Base, *, new_tokens: int) -> list[Encoder]:
    """Each adapter's encoder. They may differ in the date that a chat template writes, and in nothing else.

    Raises:
        DataError: Two adapters would be asked different things, so that a comparison would mean nothing.
    """
    encoders = [one.encoder(base, new_tokens=new_tokens) for one in chosen]
    compared = [
        (encoder.mode, replace(one.encoding_options, date=None))
        for one, encoder in zip(chosen, encoders, strict=True)
    ]
    for one, other in zip(chosen, compared, strict=True):
        if other != compared[0]:
            raise DataError(
                f"{chosen[0].name} and {one.name} would be asked different things: their prompts were encoded with "
                "different limits, chat templates or chat_template_kwargs, or only one with a chat template. Evaluate "
                "them one at a time."
            )
    return encoders


def _systems(
    base: Base,
    chosen: Sequence[Chosen],
    asked: Sequence[Sequence[Question]],
    decoding: Decoding,
    *,
    likelihoods: bool,
) -> list[System]:
    """Ask the base and then every adapter, over one copy of the base: each its own questions, the base the first's."""
    from rich.console import Console

    from manytune.cli.chosen import BASE_NAME
    from manytune.cli.outputs.progress import CommandProgress
    from manytune.evaluation.evaluate import System
    from manytune.experiments.answering import ask_model
    from manytune.store.attaching import attached

    systems = []
    with CommandProgress(Console(stderr=True)) as progress:
        for one, questions in zip((None, *chosen), (asked[0], *asked), strict=True):
            name = one.name if one else BASE_NAME

            def notice(what: str, done: int, total: int, name: str = name) -> None:
                progress.answering(f"{name}: {what}", done, total)

            progress.line(f"asking {name}" if one else "asking the untouched base")
            path, activations = one.stored.path if one else None, (one or chosen[0]).activations
            with attached(base, path, activations=activations) as model:
                answers = ask_model(
                    model, base.tokenizer, questions, decoding, likelihoods=likelihoods, notice=notice
                )
            systems.append(system_of(one, answers) if one else System(name, "base", answers))
    return systems


def _search(beams: int) -> str:
    return "greedy" if beams == 1 else f"best of {beams} beams"


def system_of(one: Chosen, answers: tuple[Answer, ...]) -> System:
    """An adapter that has answered."""
    from manytune.evaluation.evaluate import System
    from manytune.evaluation.hyperparameters import hyperparameters
    from manytune.evaluation.results import Curves
    from manytune.evaluation.run_files import read_cost, read_curves

    manifest = one.stored.manifest
    provenance = {"Adapter": str(one.stored.path), "Method": one.method}
    if manifest is not None:
        provenance |= {"Trained": f"{manifest.created}, manytune {manifest.manytune}"}
        provenance |= {f"SHA-256 of {name}": digest for name, digest in manifest.files.items()}
    provenance |= hyperparameters(one.recipe or {})
    if one.recipe:
        provenance["Recipe"] = json.dumps(
            {key: one.recipe[key] for key in ("method", "training") if key in one.recipe}, ensure_ascii=False
        )
    return System(
        one.name,
        one.method,
        answers,
        read_cost(one.run, one.stored.path),
        read_curves(one.run) if one.run else Curves(),
        provenance,
    )


def _longest(one: Chosen, base: Base) -> int | None:
    """The most tokens of a document that are read at once: as in training, and no more than the base has positions."""
    limits = [one.recipe.get("data", {}).get("max_length"), base.positions]
    return min((limit for limit in limits if limit is not None), default=None)
