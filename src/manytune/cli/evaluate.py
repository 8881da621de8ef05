"""`manytune evaluate`: scores with intervals, against the base, on the same examples."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from manytune.cli.options import AsJson, MovedBase
from manytune.errors import DataError

if TYPE_CHECKING:
    from manytune.cli.chosen import Chosen
    from manytune.data.encode import Encoder
    from manytune.data.templates import Example
    from manytune.engine.constraint import Constraint
    from manytune.evaluation.answers import Question
    from manytune.evaluation.evaluate import System
    from manytune.evaluation.metrics import Metric
    from manytune.evaluation.results import Answer, Evaluation
    from manytune.experiments.answering import Decoding
    from manytune.store.base import Base

Adapters = Annotated[
    list[Path],
    typer.Argument(metavar="RUN...", help="Run or adapter directories.", show_default=False),
]


def register(app: typer.Typer) -> None:
    """Add the command to the command line."""
    app.command("evaluate")(evaluate)


def evaluate(
    adapters: Adapters,
    data: Annotated[
        str | None,
        typer.Option(help="Rows to ask: a file or a datasets name. Without it, the recipe's test rows."),
    ] = None,
    task: Annotated[
        str | None,
        typer.Option(
            help="Which one of several tasks that the adapters were trained on; --data's rows are its rows.",
            show_default=False,
        ),
    ] = None,
    base: MovedBase = None,
    turns: Annotated[
        Literal["last", "each"],
        typer.Option(
            help="Which answers of a conversation are asked for: its last one, or each, after the conversation as it "
            "was recorded."
        ),
    ] = "last",
    limit: Annotated[
        int | None, typer.Option(min=1, help="Ask only this many prompts, the first ones.")
    ] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Cut answers at this many tokens.")] = 128,
    metrics: Annotated[
        str | None,
        typer.Option(
            help="Metrics, separated by commas; the first decides the verdict. Without it: rouge1, rouge2, "
            "rougeL, rougeLsum, bleu, chrf, exact_match, perplexity. For classes: accuracy, f1. For short facts: "
            "contains. For structured answers: tool_calls, tool_names, json_valid, json_fields."
        ),
    ] = None,
    schema: Annotated[
        Path | None,
        typer.Option(
            help="A JSON schema; also score the share of answers that are valid by it.", show_default=False
        ),
    ] = None,
    constrained: Annotated[
        bool, typer.Option("--constrained", help="Hold every answer to --schema while it is generated.")
    ] = False,
    beams: Annotated[
        int,
        typer.Option(min=1, help="Search with this many beams; 1 takes the likeliest token at each step."),
    ] = 1,
    batch_size: Annotated[int, typer.Option(min=1, help="Prompts to a batch.")] = 8,
    report: Annotated[Path | None, typer.Option(help="Also write an HTML page to this file.")] = None,
    as_json: AsJson = False,
) -> None:
    """Score adapters and their untouched base on the same prompts, with confidence intervals and paired tests.

    A run gets evaluation.json with every answer, and an adapter's manifest gets the scores, unless --limit,
    --task or --constrained is given. An adapter trained on several tasks also gets the scores of each.
    """
    from manytune import __version__
    from manytune.cli.chosen import choose, load_common_base
    from manytune.cli.outputs.evaluation import print_evaluation, summary
    from manytune.cli.outputs.json_output import print_json
    from manytune.evaluation.answers import each_turn, questions_from
    from manytune.evaluation.evaluate import evaluate as score
    from manytune.evaluation.report import write_report
    from manytune.experiments.answering import Decoding
    from manytune.experiments.provenance import describe_sources

    if report is not None and not report.parent.is_dir():
        raise typer.BadParameter(f"there is no directory {report.parent}", param_hint="--report")
    if constrained and schema is None:
        raise typer.BadParameter("it holds answers to --schema; give that, too", param_hint="--constrained")
    chosen = choose(adapters)
    examples = _common_examples(chosen, data, task)
    if turns == "each":
        examples = each_turn(examples)
    wanted = _metrics(metrics, schema, documents=all(example.is_document for example in examples))
    loaded, chosen = load_common_base(chosen, base)
    encoders = _encoders(chosen, loaded, new_tokens=max_new_tokens)
    longest = _longest(chosen[0], loaded)
    asked = [questions_from(examples, encoder, longest=longest)[:limit] for encoder in encoders]
    questions, encoder = asked[0], encoders[0]
    decoding = Decoding(
        max_new_tokens=max_new_tokens,
        batch_size=batch_size,
        end_ids=(encoder.end_id,),
        constraint=_constraint(schema, loaded, encoder, questions) if constrained and schema else None,
        beams=beams,
        likelihood_batch_size=batch_size,
    )
    likelihoods = any(metric.name == "perplexity" for metric in wanted)
    systems = _systems(loaded, chosen, asked, decoding, likelihoods=likelihoods)
    evaluation = score(
        [question.item for question in questions],
        systems,
        wanted,
        provenance={
            "Base": f"{loaded.name} ({loaded.fingerprint})",
            "Data": describe_sources(question.item.source for question in questions),
            "Answers": f"{_search(beams)}, at most {max_new_tokens} tokens, {encoder.mode} prompts"
            + (f", held to {schema.name}" if constrained and schema else ""),
            "Release": f"manytune {__version__}",
        },
    )
    written = _save(evaluation, chosen, whole=limit is None and task is None and not constrained)
    if report is not None:
        write_report(evaluation, report, title=_title(chosen))
        written.append(report)
    if as_json:
        print_json(summary(evaluation, written))
    else:
        print_evaluation(evaluation, written)


def _metrics(names: str | None, schema: Path | None, *, documents: bool) -> tuple[Metric, ...]:
    """The metrics that are named, or those for texts; running text has its perplexity alone."""
    from manytune.evaluation.metrics import METRICS, TEXT_METRICS, metrics_named
    from manytune.evaluation.metrics.structured import schema_metric, with_schema

    try:
        valid = None if schema is None else schema_metric(schema)
        if names is None:
            defaults = ("perplexity",) if documents else TEXT_METRICS
            return with_schema([METRICS[name] for name in defaults], valid)
        found = metrics_named([name.strip() for name in names.split(",") if name.strip()])
    except DataError as error:
        raise typer.BadParameter(str(error), param_hint="--schema" if schema else "--metrics") from None
    if documents and [metric.name for metric in found] != ["perplexity"]:
        raise typer.BadParameter(
            "running text is only read, so perplexity is all that can be measured", param_hint="--metrics"
        )
    return with_schema(found, valid)


def _constraint(schema: Path, base: Base, encoder: Encoder, questions: Sequence[Question]) -> Constraint:
    """What holds answers to a schema.

    Raises:
        GrammarError, DataError: Answers can't be held to it.
    """
    from manytune.evaluation.metrics.structured import schema_metric
    from manytune.experiments.constrained import schema_constraint

    return schema_constraint(schema_metric(schema), base, encoder, questions)


def _longest(one: Chosen, base: Base) -> int | None:
    """The most tokens of a document that are read at once: as in training, and no more than the base has positions."""
    limits = [one.recipe.get("data", {}).get("max_length"), base.positions]
    return min((limit for limit in limits if limit is not None), default=None)


def _common_examples(chosen: Sequence[Chosen], data: str | None, task: str | None) -> tuple[Example, ...]:
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
    from dataclasses import replace

    from manytune.data.dataset import read_splits
    from manytune.data.readers import read_role
    from manytune.data.templates import render_all
    from manytune.training.recipe import recipe_from

    if data is not None:
        examples = render_all(chosen.form(task), read_role(data, "test").kept).kept
        return tuple(replace(example, task=task) for example in examples)
    wanted = None if task is None else chosen.templates(task)
    if not chosen.recipe:
        raise DataError(f"{chosen.name} has no recipe that names test rows; give them with --data")
    # The rest of it may have keys of another release.
    recipe = recipe_from({"data": chosen.recipe.get("data", {})}, where=f"{chosen.name}'s recipe")
    if not any(one.test is not None for one in recipe.data.tasks or (recipe.data,)):
        raise DataError(f"{chosen.name}'s recipe sets no test rows aside (data.test); give some with --data")
    found = read_splits(recipe.data).test
    return tuple(example for example in found if wanted is None or example.task in wanted)


def _encoders(chosen: Sequence[Chosen], base: Base, *, new_tokens: int) -> list[Encoder]:
    """Each adapter's encoder. They may differ in the date that a chat template writes, and in nothing else.

    Raises:
        DataError: Two adapters would be asked different things, so that a comparison would mean nothing.
    """
    from dataclasses import replace

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
            systems.append(_system(one, answers) if one else System(name, "base", answers))
    return systems


def _search(beams: int) -> str:
    return "greedy" if beams == 1 else f"best of {beams} beams"


def _system(one: Chosen, answers: tuple[Answer, ...]) -> System:
    from manytune.evaluation.evaluate import System
    from manytune.evaluation.results import Curves
    from manytune.evaluation.run_files import read_cost, read_curves

    manifest = one.stored.manifest
    provenance = {"Adapter": str(one.stored.path), "Method": one.method}
    if manifest is not None:
        provenance |= {"Trained": f"{manifest.created}, manytune {manifest.manytune}"}
        provenance |= {f"SHA-256 of {name}": digest for name, digest in manifest.files.items()}
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


def _save(evaluation: Evaluation, chosen: Sequence[Chosen], *, whole: bool) -> list[Path]:
    """Keep each run's part of the evaluation in its directory, and the scores in the manifests."""
    from manytune.evaluation.evaluate import part
    from manytune.evaluation.results import write_evaluation
    from manytune.store.adapters import add_scores
    from manytune.store.run_directory import RunDirectory

    written = []
    for one in chosen:
        if one.run is not None:
            written.append(RunDirectory(one.run).evaluation_file)
            write_evaluation(part(evaluation, one.name), written[-1])
        if whole and one.stored.manifest is not None:
            add_scores(
                one.stored.path, {score.metric: score.value for score in evaluation.result(one.name).scores}
            )
    return written


def _title(chosen: Sequence[Chosen]) -> str:
    names = ", ".join(one.name for one in chosen)
    return f"Did it work? {names} against the base"
