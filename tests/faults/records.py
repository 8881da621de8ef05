"""An experiment and what it keeps: its records, answers of another server as they come, and encoded rows."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

from tests.experiments.tiny_experiment import Reported, content
from tests.faults.children import Acknowledge, Ended
from tests.faults.damage import damaged
from tests.faults.scenario import Scenario, check_sentence
from tests.faults.stores import making
from tests.store.tiny import tiny_tokenizer
from tests.training.tiny_run import sequences

from manytune.data.encoding.encoded import EncodedSet
from manytune.data.encoding.encoding_cache import EncodingCache
from manytune.data.templates import Example, Segment
from manytune.errors import DataError, ManytuneError
from manytune.evaluation.records import read_record
from manytune.evaluation.results import Answer
from manytune.experiments.answer_journal import AnswerJournal
from manytune.experiments.compare import compare
from manytune.experiments.opening import open_workspace
from manytune.experiments.recipe import experiment_from
from manytune.experiments.runner import InTurn

# -- an experiment


def prepare(shared: Path) -> None:
    """Make the base, the rows and the recipe of experiments, once."""
    with making:
        if not (shared / "experiment.json").is_file():
            shared.mkdir(parents=True, exist_ok=True)
            (shared / "experiment.json").write_text(json.dumps(content(shared)))


def compared(root: Path, acknowledge: Acknowledge, *, shared: Path) -> None:
    """The untouched base, full fine-tuning with a choice of learning rates, and LoRA."""
    found = json.loads((shared / "experiment.json").read_text())
    found["training"]["epochs"] = 0.5
    workspace = open_workspace(experiment_from({**found, "output": str(root)}), Reported())
    compare(workspace, InTurn())
    acknowledge("compared")


def check_compared(root: Path, acknowledge: Acknowledge, *, shared: Path, whole: Path, ended: Ended) -> None:
    """The same command goes on, and its records say what those of the undisturbed one say."""
    there = sorted(path.name for path in (root / "records").rglob("*.json"))
    for path in (root / "records").rglob("*.json"):
        read_record(path)
    compared(root, lambda _: None, shared=shared)
    assert _said(root) == _said(whole)
    acknowledge(
        "the same command ended with the same records"
        if not ended.acknowledged
        else f"all {len(there)} there"
    )


def _said(root: Path) -> dict[str, Any]:
    records = {
        path.relative_to(root).as_posix(): read_record(path) for path in (root / "records").rglob("*.json")
    }
    return {
        name: (
            one.question,
            one.answers,
            one.probes,
            one.seed,
            one.learning_rate,
            one.steps,
            one.curves,
        )
        for name, one in sorted(records.items())
    }


def comparing(folder: Path) -> Scenario:
    """`manytune compare`."""
    shared = folder / "experiment"
    prepare(shared)
    return Scenario(
        "an experiment and its records",
        folder / "cases" / "compare",
        partial(compared, shared=shared),
        partial(check_compared, shared=shared),
        call="compare",
    )


# -- answers of another server

_ASKED = [Example((Segment("user", f"question {number}"),), "", "a.jsonl", number) for number in range(6)]


def keep_answers(root: Path, acknowledge: Acknowledge) -> None:
    """Keep answers, and say of each that it is kept."""
    journal = AnswerJournal(root / "answers.jsonl")
    for number, asked in enumerate(_ASKED):
        if str(number) not in journal.answers:
            journal.keep(str(number), asked, "model", Answer(f"answer {number}", 2, "stop"))
            acknowledge(number)


def check_answers(root: Path, acknowledge: Acknowledge, *, whole: Path, ended: Ended) -> None:
    """Every answer that was kept is there, and the rest is asked for."""
    kept = AnswerJournal(root / "answers.jsonl").answers
    assert {str(number) for number in ended.acknowledged} <= set(kept), (ended.acknowledged, kept)
    keep_answers(root, lambda _: None)
    expected = AnswerJournal(whole / "answers.jsonl").answers
    assert AnswerJournal(root / "answers.jsonl").answers == expected and len(expected) == len(_ASKED)
    acknowledge("each kept answer is there, and only the others are asked for again")


def keeping_answers(folder: Path) -> Scenario:
    """The answers of `manytune evaluate --endpoint`."""
    return Scenario(
        "answers of another server", folder / "cases" / "answers", keep_answers, check_answers, Path.mkdir
    )


# -- encoded rows

_SETS = [EncodedSet(tuple(sequences(8, seed)), (), 0) for seed in range(4)]
_ROOM = 3500  # bytes for two of them, so that the third puts the first out


def encode(root: Path, acknowledge: Acknowledge) -> None:
    """Encode four data sets with a cache that has room for two."""
    cache = EncodingCache(root, fewest=1, most_bytes=_ROOM)
    for number, one in enumerate(_SETS):
        examples = [Example((Segment("user", f"{number} {row}"),), "b", "a.jsonl", row) for row in range(8)]
        found = cache.encoded(examples, tiny_tokenizer(), {}, lambda one=one: one)  # type: ignore[misc]
        assert found == one
        acknowledge(number)


def check_encoded(root: Path, acknowledge: Acknowledge, *, whole: Path, ended: Ended) -> None:
    """The same rows come out, and the cache keeps within its room."""
    del whole
    encode(root, lambda _: None)
    assert sum(entry.nbytes for entry in EncodingCache(root).entries()) <= _ROOM
    if ended.how == "done" and len(ended.acknowledged) == len(_SETS):
        acknowledge("went on without the cache")
    else:
        acknowledge("encoded to the same rows")


def caching(folder: Path) -> Scenario:
    """A cache of encoded rows that evicts."""
    return Scenario("a cache of encoded rows that evicts", folder / "cases" / "cache", encode, check_encoded)


# -- files that are damaged


def damage_cache(root: Path, acknowledge: Acknowledge, *, seed: int) -> None:
    """Damage an entry of the cache: it is noticed, and the rows are encoded again."""
    encode(root, lambda _: None)
    damaged(root, seed)
    encode(root, lambda _: None)
    acknowledge("noticed, encoded again")


def damage_experiment(root: Path, acknowledge: Acknowledge, *, shared: Path, seed: int) -> None:
    """Damage a file of a finished experiment: the same command ends with the same records, or names the file."""
    compared(root, lambda _: None, shared=shared)
    before = _said(root)
    file = damaged(root, seed, lambda path: path.suffix in (".json", ".jsonl", ".yaml"))
    try:
        compared(root, lambda _: None, shared=shared)
        assert _said(root) == before or "records" in file, file
        acknowledge("done again, or without effect")
    except ManytuneError as error:
        check_sentence(str(error))
        acknowledge("refused with the file's name")


def damage_answers(root: Path, acknowledge: Acknowledge, *, seed: int) -> None:
    """Damage kept answers: what is read is what was kept, or the line is named."""
    keep_answers(root, lambda _: None)
    damaged(root, seed)
    try:
        found = AnswerJournal(root / "answers.jsonl").answers
        acknowledge(f"{'read' if found else 'asked again'}")
    except DataError as error:
        check_sentence(str(error))
        acknowledge("refused with the line's number")
