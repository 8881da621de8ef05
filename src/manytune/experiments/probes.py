"""What a fine-tune may have forgotten: questions and running text that the training isn't about."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from manytune.atomic import atomic_write
from manytune.data.encoding.encode import Encoder
from manytune.data.encoding.encoded import Encoded
from manytune.data.readers import read_role
from manytune.data.templates import Example, Segment, render_all
from manytune.errors import DataError
from manytune.evaluation.answers import Question, questions_from
from manytune.evaluation.evaluate import System, evaluate
from manytune.evaluation.metrics import metrics_named
from manytune.evaluation.results import Item, Probe
from manytune.experiments import general_text
from manytune.experiments.forgetting_recipe import ForgettingRecipe, ProbeRecipe
from manytune.store.base import Base

_GIVEN, _MOST = 32, 192  # tokens of a passage that are given, and that are read in all
_QUESTIONS = "general_questions.jsonl"


@dataclass(frozen=True)
class LoadedProbe:
    """A probe, ready to be asked: either questions or passages.

    Attributes:
        name: What tables call it.
        description: What it is made of, in a sentence.
        metric: How it is scored.
        items: What is recorded of it.
        questions: What is asked; empty for running text.
        passages: What is read; empty for questions.
    """

    name: str
    description: str
    metric: str
    items: tuple[Item, ...]
    questions: tuple[Question, ...] = ()
    passages: tuple[Encoded, ...] = ()


def load_probes(recipe: ForgettingRecipe, base: Base, encoder: Encoder) -> tuple[LoadedProbe, ...]:
    """Read every probe that a recipe asks for.

    Args:
        recipe: What is asked.
        base: Whose tokens and positions they fit.
        encoder: Makes the prompts.

    Raises:
        DataError: A file can't be used, a text is too short, or two probes share a name.
    """
    found = [*(_defaults(recipe, base, encoder) if recipe.defaults else ())]
    found += [_own(probe, recipe, base, encoder) for probe in recipe.probes]
    names = [probe.name for probe in found]
    if recipe.probe is not None and recipe.probe not in names:
        found.append(_own(_of_file(recipe.probe), recipe, base, encoder))
        names.append(found[-1].name)
    for name in names:
        if names.count(name) > 1:
            raise DataError(f"two probes are called {name!r}; give each its own name")
    return tuple(found)


def probe_results(
    probes: Sequence[LoadedProbe], answers: Mapping[str, Sequence[System]]
) -> tuple[Probe, ...]:
    """Score every probe and compare each system with the untouched base.

    Args:
        probes: What was asked.
        answers: By the probe's name, the systems with their answers, the base first.
    """
    return tuple(
        Probe(
            probe.name,
            probe.description,
            evaluate(probe.items, answers[probe.name], metrics_named([probe.metric])),
        )
        for probe in probes
    )


def questions_digest(questions: Sequence[Question]) -> str:
    """Changes with the questions' prompts and their right answers."""
    digest = hashlib.sha256()
    for question in questions:
        digest.update(f"{question.prompt_ids}{question.item.references}".encode())
    return digest.hexdigest()


def probes_digest(probes: Sequence[LoadedProbe]) -> str:
    """Changes with everything that probes ask."""
    digest = hashlib.sha256()
    for probe in probes:
        digest.update(f"{probe.name}{probe.metric}{questions_digest(probe.questions)}".encode())
        for passage in probe.passages:
            digest.update(f"{passage.input_ids}".encode())
    return digest.hexdigest()


def write_rehearsal(path: Path) -> None:
    """Write the default rows of rehearsal, with the fields `beginning` and `rest`."""
    rows = ({"beginning": beginning, "rest": rest} for beginning, rest in general_text.rehearsal_passages())
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def load_passages(
    name: str,
    description: str,
    texts: Sequence[str],
    tokenizer: Any,
    *,
    most: int,
    positions: int | None,
    source: str,
) -> LoadedProbe:
    """Make a probe of running text, of the first texts that are long enough.

    Of each text the first tokens are given and the perplexity of the others is measured.

    Args:
        name: What tables call it.
        description: What it is made of.
        texts: Where to take passages from.
        tokenizer: The base's.
        most: How many passages.
        positions: How many tokens the base can read at once; None for any number.
        source: What messages and provenance call the texts.

    Raises:
        DataError: No text is long enough.
    """
    length = min(_MOST, positions or _MOST)
    tokenized = (
        (row, text, tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])
        for row, text in enumerate(texts, start=1)
    )
    long_enough = [(row, text, ids[:length]) for row, text, ids in tokenized if len(ids) >= 2 * _GIVEN][:most]
    if not long_enough:
        raise DataError(
            f"the probe {name!r} needs texts of at least {2 * _GIVEN} tokens, and there is none", where=source
        )
    return LoadedProbe(
        name,
        description,
        "perplexity",
        tuple(Item(text[:200], (text,), source, row) for row, text, _ in long_enough),
        passages=tuple(
            Encoded(tuple(ids[:_GIVEN]), tuple(ids[_GIVEN:]), source, row) for row, _, ids in long_enough
        ),
    )


def positions_of(model: Any) -> int | None:
    """How many tokens a model reads at once; None if its configuration sets no limit, or if an encoder has another."""
    found = getattr(model.config, "max_position_embeddings", None)
    return found if isinstance(found, int) and not model.config.is_encoder_decoder else None


def manual_probe(tokenizer: Any, *, most: int, positions: int | None) -> LoadedProbe:
    """The perplexity of passages of Python's manual."""
    texts = general_text.probe_passages()
    description = f"Perplexity of {min(most, len(texts))} passages of {general_text.SOURCE}."
    return load_passages(
        "running text",
        description,
        texts,
        tokenizer,
        most=most,
        positions=positions,
        source="pydoc_data.topics",
    )


def question_probe(encoder: Encoder) -> LoadedProbe:
    """Sixty questions of general knowledge, answered in a few words."""
    content = (resources.files("manytune.experiments") / _QUESTIONS).read_text(encoding="utf-8")
    rows = [json.loads(line) for line in content.splitlines()]
    examples = [
        Example((Segment("user", f"Answer in a few words. {row['question']}"),), answer, _QUESTIONS, number)
        for number, row in enumerate(rows, start=1)
        for answer in row["answers"]
    ]
    questions = questions_from(examples, encoder)
    return LoadedProbe(
        "general questions",
        f"Share of {len(questions)} short questions of general knowledge whose answer has the right words in it.",
        "contains",
        tuple(question.item for question in questions),
        questions=questions,
    )


def _defaults(recipe: ForgettingRecipe, base: Base, encoder: Encoder) -> tuple[LoadedProbe, ...]:
    return question_probe(encoder), manual_probe(
        base.tokenizer, most=recipe.passages, positions=positions_of(base.model)
    )


def _of_file(file: str) -> ProbeRecipe:
    """A budget's probe that is a file: its columns say what is asked.

    Raises:
        DataError: They don't.
    """
    first = read_role(file, "test").kept[0]
    if {"prompt", "completion"} <= first.fields.keys():
        return ProbeRecipe(name=file, file=file, prompt="{{ prompt }}", completion="{{ completion }}")
    if "text" in first.fields:
        return ProbeRecipe(name=file, file=file, text="text")
    raise DataError(
        f"expected `text`, or `prompt` and `completion`, in the rows of forgetting.probe; found "
        f"{', '.join(first.fields)}. Describe other rows in forgetting.probes, and name them here",
        where=first.where,
    )


def _own(probe: ProbeRecipe, recipe: ForgettingRecipe, base: Base, encoder: Encoder) -> LoadedProbe:
    records = read_role(probe.file, "test").kept
    template = probe.template()
    if template is None:
        field = probe.text or ""
        missing = next((record for record in records if not isinstance(record.fields.get(field), str)), None)
        if missing is not None:
            raise DataError(
                f"the probe {probe.name!r} needs text in the field {field!r}", where=missing.where
            )
        texts = [str(record.fields[field]) for record in records]
        description = f"Perplexity of passages of {probe.file}."
        return load_passages(
            probe.name,
            description,
            texts,
            base.tokenizer,
            most=recipe.passages,
            positions=positions_of(base.model),
            source=probe.file,
        )
    questions = questions_from(render_all(template, records).kept, encoder)
    if probe.metric == "perplexity":
        passages = tuple(encoded for question in questions for encoded in question.encoded)
        items = tuple(
            dataclasses.replace(question.item, references=(reference,))
            for question in questions
            for reference in question.item.references
        )
        description = f"Perplexity of the right answers in {probe.file}."
        return LoadedProbe(probe.name, description, probe.metric, items, passages=passages)
    return LoadedProbe(
        probe.name,
        f"Answers to the prompts of {probe.file}.",
        probe.metric,
        tuple(question.item for question in questions),
        questions=questions,
    )
