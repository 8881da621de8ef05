"""Where an experiment's trials are run and asked: one base in memory, one record on disk a run."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

from manytune.atomic import atomic_write, clean_leftovers
from manytune.data.dataset import Splits, TokenSplits, content_hash, encode_splits, read_splits
from manytune.data.encode import Encoder
from manytune.errors import DataError, RunError
from manytune.evaluation.answers import Question, questions_from
from manytune.evaluation.metrics import Metric, metrics_named
from manytune.evaluation.records import GroupLoss, RunRecord, read_record, write_record
from manytune.evaluation.results import Answer, Cost
from manytune.experiments import probes as probing
from manytune.experiments.answering import ask_model, group_losses, is_of_task, read_texts
from manytune.experiments.probes import LoadedProbe, load_probes, write_rehearsal
from manytune.experiments.recipe import BASE, Experiment
from manytune.experiments.spectra import spectrum_of
from manytune.experiments.trials import Trial, train
from manytune.experiments.variants import Variants
from manytune.store.attaching import attached
from manytune.store.base import Base, load_base
from manytune.store.digests import sha256_file
from manytune.training.loop.train import check_device
from manytune.training.progress import Report
from manytune.training.recipe import Recipe
from manytune.training.training_plan import total_steps

_FACTS = "experiment.json"
_DIVERGED = "diverged.txt"
_AN_HOUR = 3600.0


class Show(Protocol):
    """Where progress goes."""

    def line(self, text: str) -> None:
        """A stage, or a doubt."""

    def training(self, report: Report) -> None:
        """A step or a validation of the training that is going on."""

    def answering(self, what: str, done: int, total: int) -> None:
        """How far the answers are that are being given."""


@dataclass(frozen=True)
class _Heard:
    """What a system said."""

    answers: tuple[Answer, ...]
    probes: Mapping[str, tuple[Answer, ...]]
    validation: tuple[GroupLoss, ...]


@dataclass(frozen=True)
class Bench:
    """Everything that the trials of an experiment have in common.

    Attributes:
        experiment: The experiment.
        base: The base; between trials nothing is attached to it.
        splits: The rows.
        data: Their token ids.
        questions: What is asked of every system.
        probes: What else is asked.
        ranks: Whether records keep what a rank sweep needs: validation losses by group, and spectra.
        show: Where progress goes.
    """

    experiment: Experiment
    base: Base
    splits: Splits
    data: TokenSplits
    questions: tuple[Question, ...]
    probes: tuple[LoadedProbe, ...]
    ranks: bool
    show: Show

    @property
    def variants(self) -> Variants:
        """Makes the trials."""
        return Variants(self.experiment, self.data.mixture)

    @property
    def metrics(self) -> tuple[Metric, ...]:
        """The scores, the deciding one first."""
        return metrics_named(self.experiment.compare.metrics)

    @property
    def steps(self) -> int:
        """Optimizer steps of the whole budget, if it is counted in steps."""
        settings = self.experiment.recipe.training
        return total_steps(self.base.model, settings, self.data.train, self.data.mixture)

    @cached_property
    def encoder(self) -> Encoder:
        """Makes prompts as the training makes them; they are cut only if they are cut there."""
        data = self.experiment.recipe.data
        cut = data.overflow == "truncate_prompt"
        return Encoder(
            self.base.tokenizer,
            max_length=data.max_length if cut else None,
            overflow="truncate_prompt" if cut else "error",
            encoder_decoder=self.base.is_encoder_decoder,
        )

    # -- what is on disk

    def record_path(self, name: str) -> Path:
        """Where a run's record is."""
        return self.experiment.directory / "records" / f"{name}.json"

    def record(self, name: str) -> RunRecord | None:
        """A run's record; None if there is none, or if it doesn't answer all that is asked now.

        A sweep's record answers a comparison, too, and not the other way round.

        Raises:
            DataError: The file isn't a record.
        """
        path = self.record_path(name)
        if not path.is_file():
            return None
        found = read_record(path)
        lacking = self.ranks and not found.validation
        return found if found.question == self._asked and not lacking else None

    # -- trials

    def search(self, trial: Trial) -> float:
        """Train a trial whose validation loss is wanted; infinite if the training diverged."""
        diverged = self.experiment.directory / "trials" / trial.name / _DIVERGED
        if diverged.is_file():
            return float("inf")
        try:
            self.train(trial, adapters=False)
        except RunError as error:
            if not str(error).startswith("step "):  # the trainer names the step where it went wrong
                raise
            atomic_write(diverged, f"{error}\n")
            self.show.line(f"{trial.name} diverged: {error}")
            return float("inf")
        return trial.validation_loss

    def train(self, trial: Trial, *, adapters: bool = True) -> None:
        """Train a trial, or what is missing of it; its adapters may not be wanted any more."""
        there = trial.trained and not (adapters and trial.dropped)
        if not there:
            self.show.line(f"training {trial.name}")
        train(trial, self.base, adapters=adapters, report=self.show.training)

    def finish(self, trial: Trial) -> RunRecord:
        """Train a trial if need be, ask it everything, and keep the record; a finished one is only read."""
        found = self.record(trial.name)
        if found is not None:
            return found
        self.train(trial)
        self.show.line(f"asking {trial.name}")
        heard = self._ask(trial.adapters)
        recipe, single = trial.any_recipe, trial.adapters.get(None)
        record = RunRecord(
            name=trial.name,
            system=trial.system,
            method=recipe.method.name,
            question=self._asked,
            answers=heard.answers,
            probes=heard.probes,
            seed=recipe.training.seed,
            learning_rate=recipe.training.learning_rate,
            steps=trial.steps,
            validation=heard.validation,
            cost=trial.cost(),
            curves=trial.curves(),
            spectrum=spectrum_of(single) if self.ranks and single is not None else None,
            recipe={task or "": found.model_dump(mode="json") for task, found in trial.recipes.items()},
        )
        write_record(record, self.record_path(trial.name))
        return record

    def ask_base(self) -> RunRecord:
        """Ask the untouched base everything, or read what it said."""
        found = self.record(BASE)
        if found is None:
            self.show.line("asking the untouched base")
            heard = self._ask({None: None})
            cost = Cost(total_params=self.base.model.num_parameters())
            found = RunRecord(
                name=BASE,
                system=BASE,
                method=BASE,
                question=self._asked,
                answers=heard.answers,
                probes=heard.probes,
                validation=heard.validation,
                cost=cost,
            )
            write_record(found, self.record_path(BASE))
        return found

    def _ask(self, adapters: Mapping[str | None, Path | None]) -> _Heard:
        """Ask each adapter the questions of its task; the one for everything also gets the probes."""
        compare = self.experiment.compare
        answers: dict[int, Answer] = {}
        for task, adapter in adapters.items():
            places = [place for place, question in enumerate(self.questions) if is_of_task(question, task)]
            with attached(self.base, adapter) as model:
                said = ask_model(
                    model,
                    self.base,
                    [self.questions[place] for place in places],
                    end_ids=[self.encoder.end_id],
                    max_new_tokens=compare.max_new_tokens,
                    batch_size=compare.batch_size,
                    likelihoods="perplexity" in compare.metrics,
                    notice=self.show.answering,
                )
                answers |= dict(zip(places, said, strict=True))
                if task is not None:
                    continue
                probes = {probe.name: self._ask_probe(model, probe) for probe in self.probes}
                layout = self.experiment.recipe.training.batching
                losses = group_losses(model, self.data.validation, layout) if self.ranks else ()
                return _Heard(said, probes, losses)
        return _Heard(tuple(answers[place] for place in range(len(self.questions))), {}, ())

    def _ask_probe(self, model: Any, probe: LoadedProbe) -> tuple[Answer, ...]:
        if probe.passages:
            return read_texts(model, probe.passages, notice=self.show.answering)
        return ask_model(
            model,
            self.base,
            probe.questions,
            end_ids=[self.encoder.end_id],
            max_new_tokens=self.experiment.forgetting.max_new_tokens,
            batch_size=self.experiment.compare.batch_size,
            likelihoods=False,
            notice=self.show.answering,
        )

    @cached_property
    def _asked(self) -> str:
        """A hash over everything that is asked and how."""
        compare, forgetting = self.experiment.compare, self.experiment.forgetting
        digest = hashlib.sha256(probing.fingerprint(self.probes).encode())
        how = [compare.max_new_tokens, forgetting.max_new_tokens, "perplexity" in compare.metrics]
        digest.update(json.dumps(how).encode())
        for question in self.questions:
            digest.update(f"{question.prompt_ids}{question.item.references}".encode())
        return digest.hexdigest()


def open_bench(experiment: Experiment, show: Show, *, ranks: bool = False) -> Bench:
    """Load the base, read the rows and the probes, and see that an earlier start is continued as it began.

    Args:
        experiment: The experiment.
        show: Where progress goes.
        ranks: Whether records keep what a rank sweep needs.

    Raises:
        RunError: The directory holds something else, or the data, the base or the training's settings changed since
            the experiment began.
        DataError: A row or a file can't be used.
        StoreError: The base can't be loaded.
    """
    recipe = experiment.recipe
    check_device(recipe.training)
    splits = read_splits(recipe.data)
    base = load_base(recipe.base, dtype=recipe.training.dtype, notify=show.line)
    data = encode_splits(splits, recipe.data, base.tokenizer, encoder_decoder=base.is_encoder_decoder)
    if not data.validation:
        raise DataError("no validation row is short enough; the learning rate is chosen on validation rows")
    probes = load_probes(experiment.forgetting, base)
    bench = Bench(experiment, base, splits, data, (), probes, ranks, show)
    questions = questions_from(splits.test, bench.encoder)[: experiment.compare.limit]
    _keep_facts(experiment, base, data)
    rehearsing = any(system.rehearse is not None for system in experiment.systems().values())
    if rehearsing and experiment.forgetting.rehearsal is None:
        write_rehearsal(bench.variants.rehearsal_file)
    return dataclasses.replace(bench, questions=questions)


def data_hashes(questions: Sequence[Question], recipe: Recipe) -> str:
    """The files that rows came from, each with its hash if it is a file here."""
    files = [file for task in recipe.data.tasks for file in task.file] or list(recipe.data.files)
    files += [question.item.source for question in questions]
    named = []
    for source in dict.fromkeys(files):
        path = Path(source).expanduser()
        named.append(f"{source} (SHA-256 {sha256_file(path)[:16]})" if path.is_file() else source)
    return ", ".join(named)


def _keep_facts(experiment: Experiment, base: Base, data: TokenSplits) -> None:
    """Write down what the finished runs depend on, or see that it is still so."""
    directory = experiment.directory
    path = directory / _FACTS
    own = {"learning_rate", "seed", "max_steps", "epochs", "device", "tensorboard", "checkpoint_every"}
    facts = {
        "format": 1,
        "train": content_hash(data.train),
        "validation": content_hash(data.validation),
        "base": base.fingerprint.to_dict(),
        "training": {
            key: value
            for key, value in experiment.recipe.training.model_dump(mode="json").items()
            if key not in own
        },
    }
    if path.is_file():
        before = json.loads(path.read_text(encoding="utf-8"))
        changed = [key for key in facts if before.get(key) != facts[key]]
        if changed:
            raise RunError(
                f"{directory}: {' and '.join(changed)} changed since this experiment began, so its finished runs can't "
                "be compared with new ones. Restore what was there, or set output to another directory."
            )
        clean_leftovers(directory, older_than=_AN_HOUR)  # workers may be writing
        return
    if directory.is_dir() and any(directory.iterdir()):
        raise RunError(
            f"{directory}: the directory isn't empty and holds no experiment. Set output to another one, or empty it."
        )
    directory.mkdir(parents=True, exist_ok=True)
    atomic_write(path, json.dumps(facts, indent=2) + "\n")
