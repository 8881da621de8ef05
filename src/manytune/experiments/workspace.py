"""Where an experiment's trials are run and asked: one base in memory, one record on disk a run."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from statistics import mean
from typing import Any

from manytune.data.dataset import Splits, TokenSplits
from manytune.data.encoding.encode import Encoder
from manytune.data.labels.label_kinds import AnyLabels
from manytune.data.row_limit import limited
from manytune.engine.constraint import Constraint
from manytune.errors import ConfigError, DivergedError, RecipeError
from manytune.evaluation.answers import Question
from manytune.evaluation.metrics import Metric, metrics_named
from manytune.evaluation.metrics.structured import SchemaValid, schema_metric, with_schema
from manytune.evaluation.ranks import Spectrum
from manytune.evaluation.records import GroupLoss, RunRecord, write_record
from manytune.evaluation.results import Answer, Cost
from manytune.experiments.answering import Decoding, ask_model, group_losses, is_of_task, read_texts
from manytune.experiments.classifying import ask_classifier, baseline_answers
from manytune.experiments.constrained import schema_constraint
from manytune.experiments.few_shot import FewShot
from manytune.experiments.finished import kept_record, record_path
from manytune.experiments.probes import (
    LoadedProbe,
    probes_digest,
    questions_digest,
)
from manytune.experiments.prompted import questions_of, questions_that_fit
from manytune.experiments.ran_on import ran_on
from manytune.experiments.recipe import BASE, Experiment
from manytune.experiments.reporter import Reporter
from manytune.experiments.spectra import spectrum_of
from manytune.experiments.trials import Phase, Trial, train
from manytune.experiments.variants import Variants
from manytune.store.attaching import attached
from manytune.store.base import Base
from manytune.store.resident import read_resident
from manytune.store.servability import served_terms
from manytune.training.loop.rows import TrainingRows
from manytune.training.training_plan import count_steps


@dataclass(frozen=True)
class _Replies:
    """What a system answered."""

    answers: tuple[Answer, ...]
    constrained: tuple[Answer, ...] = ()
    probes: Mapping[str, tuple[Answer, ...]] = field(default_factory=dict)
    validation: tuple[GroupLoss, ...] = ()


@dataclass(frozen=True)
class Workspace:
    """Everything that the trials of an experiment have in common.

    Attributes:
        experiment: The experiment.
        base: The base; between trials nothing is attached to it.
        splits: The rows.
        data: Their token ids.
        questions: What is asked of every system.
        probes: What else is asked.
        ranks: Whether records keep what a rank sweep needs: validation losses by group, and spectra.
        reporter: Where progress goes.
        labels: A classifier's classes, or a regression's numbers; None for models that generate.
    """

    experiment: Experiment
    base: Base
    splits: Splits
    data: TokenSplits
    questions: tuple[Question, ...]
    probes: tuple[LoadedProbe, ...]
    ranks: bool
    reporter: Reporter
    labels: AnyLabels | None = None

    @property
    def variants(self) -> Variants:
        """Makes the trials."""
        return Variants(self.experiment, self.data.mixture)

    @property
    def metrics(self) -> tuple[Metric, ...]:
        """The scores, the deciding one first."""
        return with_schema(metrics_named(self.experiment.compare.metrics), self._schema)

    @cached_property
    def _schema(self) -> SchemaValid | None:
        """What answers are to be valid by."""
        file = self.experiment.compare.json_schema
        return None if file is None else schema_metric(Path(file))

    @cached_property
    def _constraint(self) -> Constraint | None:
        """What holds answers to the schema, if they are also asked for so."""
        wanted = self._schema if self.experiment.compare.constrained else None
        return None if wanted is None else schema_constraint(wanted, self.base, self.encoder, self.questions)

    @property
    def steps(self) -> int:
        """Optimizer steps of the whole budget, if it is counted in steps."""
        settings = self.experiment.recipe.training
        rows = TrainingRows(
            train=self.data.train, mixture=self.data.mixture, pad_id=0, by_length=self.labels is not None
        )
        return count_steps(self.base.model, settings, rows)

    def steps_with(self, rows: int | None) -> int:
        """Optimizer steps of as many epochs on only so many of the training rows; with `max_steps` it is those.

        Raises:
            DataError: There are fewer rows.
        """
        if rows is None:
            return self.steps
        kept = {(row.source, row.row) for row in limited(self.splits.train, rows)}
        train = tuple(one for one in self.data.train if (one.source, one.row) in kept)
        found = TrainingRows(train=train, mixture=None, pad_id=0, by_length=self.labels is not None)
        return count_steps(self.base.model, self.experiment.recipe.training, found)

    @cached_property
    def encoder(self) -> Encoder:
        """Makes prompts as the training makes them; they are cut only if they are cut there."""
        data = self.experiment.recipe.data
        options = data.encoding_options(max_prompt=self.data.max_prompt).within(
            self.base.positions, self.experiment.compare.max_new_tokens
        )
        return options.encoder(
            self.base.tokenizer, chat=self._chat, encoder_decoder=self.base.is_encoder_decoder
        )

    @property
    def _chat(self) -> bool | None:
        chat = self.experiment.recipe.data.chat
        return None if chat == "auto" else chat

    # -- what is on disk

    def record_path(self, name: str) -> Path:
        """Where a run's record is."""
        return record_path(self.experiment.directory, name)

    def record(self, name: str) -> RunRecord | None:
        """A run's record; None if there is none, or if it doesn't answer all that is asked now.

        A sweep's record answers a comparison, too, and not the other way round.

        Raises:
            DataError: The file isn't a record.
        """
        return kept_record(self.experiment.directory, name, self.digest, ranks=self.ranks)

    # -- trials

    def run(self, trial: Trial, phase: Phase) -> None:
        """Do what a phase does with a trial; what was done before is only read.

        Raises:
            RunError: The training failed.
        """
        if phase is Phase.SEARCH:
            self.search(trial)
        else:
            self.finish(trial)

    def search(self, trial: Trial) -> float:
        """Train a trial whose validation loss is wanted; infinite if the training diverged.

        Raises:
            RunError: The training failed otherwise.
        """
        if trial.divergence is not None:
            return math.inf
        try:
            self.train(trial, adapters=False)
        except DivergedError as error:
            trial.keep_divergence(error)
            self.reporter.line(f"{trial.name} diverged: {error}")
            return math.inf
        # The last step's update may be what diverges: then no step is left to notice it.
        return trial.validation_loss if math.isfinite(trial.validation_loss) else math.inf

    def train(self, trial: Trial, *, adapters: bool = True) -> None:
        """Train a trial, or what is missing of it; its adapters may not be wanted any more."""
        there = trial.trained and not (adapters and trial.dropped)
        if not there:
            self.reporter.line(f"training {trial.name}")
        train(trial, self.base, adapters=adapters, report=self.reporter.training)

    def finish(self, trial: Trial) -> RunRecord:
        """Train a trial if need be, ask it everything, and keep the record; a finished one is only read."""
        found = self.record(trial.name)
        if found is not None:
            return found
        self.train(trial)
        self.reporter.line(f"asking {trial.name}")
        replies = self._ask(trial.adapters)
        recipe, single = trial.any_recipe, trial.adapters.get(None)
        record = RunRecord(
            name=trial.name,
            system=trial.system,
            method=recipe.method.name,
            question=self.digest,
            answers=replies.answers,
            constrained=replies.constrained,
            probes=replies.probes,
            seed=recipe.training.seed,
            learning_rate=recipe.training.learning_rate,
            steps=trial.steps,
            validation=replies.validation,
            cost=trial.cost(),
            curves=trial.curves(),
            spectrum=self._spectrum(single) if self.ranks and single is not None else None,
            recipe={task or "": found.model_dump(mode="json") for task, found in trial.recipes.items()},
            ran_on=ran_on(self.base.model.device),
        )
        write_record(record, self.record_path(trial.name))
        return record

    def _spectrum(self, adapter: Path) -> Spectrum | None:
        try:
            return spectrum_of(served_terms(read_resident(adapter), self.base.model))
        except ConfigError:
            return None

    def ask_base(self) -> RunRecord:
        """Ask the untouched base everything, or read what it answered."""
        found = self.record(BASE)
        if found is None:
            replies = self._ask_untouched()
            found = RunRecord(
                name=BASE,
                system=BASE,
                method=BASE,
                question=self.digest,
                answers=replies.answers,
                constrained=replies.constrained,
                probes=replies.probes,
                validation=replies.validation,
                cost=Cost(total_params=self.base.model.num_parameters()),
            )
            write_record(found, self.record_path(BASE))
        return found

    def _ask_untouched(self) -> _Replies:
        """The base's answers; for classifiers those of their baseline, since it has no head."""
        if self.labels is not None:
            return _Replies(baseline_answers(self.questions, self.labels))
        self.reporter.line("asking the untouched base")
        return self._ask({None: None})

    def ask_prompted(self, name: str) -> RunRecord | None:
        """Ask the untouched base the test questions with examples before each, or read what it answered.

        Returns:
            The record; None if nobody named the system, and its examples don't fit into the context of every prompt, or
            there are none.

        Raises:
            DataError: There are fewer training prompts than examples are asked for.
            RecipeError: A classifier was to be asked so.
        """
        system, seed = self.experiment.prompted()[name], self.experiment.compare.seeds[0]
        if self.labels is not None:
            if self.experiment.must_prompt:
                raise RecipeError(
                    f"compare.systems names {name}, and a classifier takes no examples in a prompt. Leave it out."
                )
            return None
        documents = any(question.is_document for question in self.questions)
        few = self.few_shot(name) if self.experiment.must_prompt else None
        if few is None and not documents:
            few = questions_that_fit(name, self.experiment, self.base, self.splits, say=self.reporter.line)
        if few is None:
            return None
        questions = few.questions[: self.experiment.compare.limit]
        digest = self._digest_of(questions)
        found = kept_record(self.experiment.directory, name, digest)
        if found is not None:
            return found
        self.reporter.line(f"asking the untouched base with {system.shots} examples in the prompt ({name})")
        activations = self.experiment.recipe.training.activations
        with attached(self.base, None, activations=activations) as model:
            replies = self._ask_test(model, questions)
        found = RunRecord(
            name=name,
            system=name,
            method=BASE,
            question=digest,
            answers=replies.answers,
            constrained=replies.constrained,
            probes={},
            cost=Cost(
                total_params=self.base.model.num_parameters(),
                prompt_tokens=mean(len(question.prompt_ids) for question in questions),
            ),
            recipe={
                "shots": system.shots,
                "choose_shots": system.choose_shots,
                "seed": seed,
                "shortened": few.shortened,
            },
        )
        write_record(found, self.record_path(name))
        return found

    def few_shot(self, name: str) -> FewShot:
        """The test questions with examples before each, of a system that is the base with these.

        Raises:
            DataError: There are fewer training prompts than examples are asked for.
        """
        return questions_of(name, self.experiment, self.base, self.splits)

    def _ask(self, adapters: Mapping[str | None, Path | None]) -> _Replies:
        """Ask each adapter the questions of its task; the one for everything also gets the probes."""
        answers: dict[int, Answer] = {}
        constrained: dict[int, Answer] = {}
        for task, adapter in adapters.items():
            places = [place for place, question in enumerate(self.questions) if is_of_task(question, task)]
            activations = self.experiment.recipe.training.activations
            with attached(self.base, adapter, activations=activations) as model:
                given = self._ask_test(model, [self.questions[place] for place in places])
                answers |= dict(zip(places, given.answers, strict=True))
                constrained |= dict(zip(places, given.constrained, strict=False))
                if task is None:
                    probes = {probe.name: self.ask_probe(model, probe) for probe in self.probes}
                    layout = self.experiment.recipe.training.batching
                    losses = group_losses(model, self.data.validation, layout) if self.ranks else ()
                    return replace(given, probes=probes, validation=losses)
        return _Replies(_in_order(answers), _in_order(constrained))

    def _ask_test(self, model: Any, questions: Sequence[Question]) -> _Replies:
        """Ask questions, and ask them again if answers are wanted that are held to a schema."""
        compare = self.experiment.compare
        if self.labels is not None:
            size, told = compare.batch_size, self.reporter.answering
            return _Replies(ask_classifier(model, questions, self.labels, batch_size=size, notice=told))
        decoding = self._decoding(compare.max_new_tokens)
        measured, notice = "perplexity" in compare.metrics, self.reporter.answering
        ask = partial(ask_model, model, self.base.tokenizer, questions, likelihoods=measured, notice=notice)
        answers, constraint = ask(decoding), self._constraint
        return _Replies(answers, () if constraint is None else ask(replace(decoding, constraint=constraint)))

    def ask_probe(self, model: Any, probe: LoadedProbe) -> tuple[Answer, ...]:
        """A model's answers to one probe."""
        if probe.passages:
            return read_texts(model, probe.passages, notice=self.reporter.answering)
        return ask_model(
            model,
            self.base.tokenizer,
            probe.questions,
            self._decoding(self.experiment.forgetting.max_new_tokens),
            notice=self.reporter.answering,
        )

    def _decoding(self, max_new_tokens: int) -> Decoding:
        return Decoding(
            max_new_tokens=max_new_tokens,
            batch_size=self.experiment.compare.batch_size,
            end_ids=(self.encoder.end_id,),
        )

    @cached_property
    def digest(self) -> str:
        """Changes with everything that is asked, and how."""
        return self._digest_of(self.questions)

    def _digest_of(self, questions: Sequence[Question]) -> str:
        compare, forgetting = self.experiment.compare, self.experiment.forgetting
        longest = (compare.max_new_tokens, forgetting.max_new_tokens)
        how: list[object] = [*longest, "perplexity" in compare.metrics]
        if self._schema is not None and compare.constrained:
            how.append(self._schema.schema)
        parts = [probes_digest(self.probes), json.dumps(how), questions_digest(questions)]
        return hashlib.sha256("".join(parts).encode()).hexdigest()


def _in_order(answers: Mapping[int, Answer]) -> tuple[Answer, ...]:
    return tuple(answers[place] for place in sorted(answers))
