"""`manytune evaluate`: scores with intervals, against the base, on the same examples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from manytune import __version__
from manytune.cli.adapters.arguments import DEFAULT_STORE, Store, store_at, stored_names
from manytune.cli.evaluate import elsewhere
from manytune.cli.options import AsJson, MovedBase, check_place
from manytune.errors import DataError

if TYPE_CHECKING:
    from manytune.cli.chosen import Chosen
    from manytune.data.labels.label_words import LabelWords
    from manytune.data.templates import Example
    from manytune.evaluation.equivalence import Margin
    from manytune.evaluation.evaluate import System
    from manytune.evaluation.metrics import Metric
    from manytune.evaluation.results import Evaluation

Kind = Literal["texts", "documents", "labels", "numbers", "words"]
_OF_HEADS = ("labels", "numbers", "words")
Adapters = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="RUN",
        help="Runs' or adapters' directories, or names in the store.",
        show_default=False,
        autocompletion=stored_names,
    ),
]


def register(app: typer.Typer) -> None:
    """Add the command to the command line."""
    app.command("evaluate")(evaluate)


def evaluate(
    adapters: Adapters = None,
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
    store: Store = DEFAULT_STORE,
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
            "rougeL, rougeLsum, bleu, chrf, exact_match, perplexity; for classifiers accuracy, f1, ece; for "
            "regressions rmse, mae, pearson, spearman; for words span_f1, span_f1_macro, span_precision, span_recall, "
            "tag_accuracy. For "
            "classes that are generated: accuracy, f1. For short facts: contains. For structured answers: tool_calls, "
            "tool_names, json_valid, json_fields."
        ),
    ] = None,
    schema: Annotated[
        Path | None,
        typer.Option(
            help="A JSON schema; also score the share of answers that are valid by it.", show_default=False
        ),
    ] = None,
    equivalence_margin: Annotated[
        float | None,
        typer.Option(
            min=0.0001,
            max=0.9999,
            help="Also test whether systems score within this share of a reference's score, as in 0.02.",
            show_default=False,
        ),
    ] = None,
    equivalent_to: Annotated[
        str | None,
        typer.Option(
            help="The reference of --equivalence-margin. Without it, the adapter that full fine-tuning trained, or the "
            "base.",
            show_default=False,
        ),
    ] = None,
    label_words: Annotated[
        str | None,
        typer.Option(
            help="Classify without a head: of labels such as positive=great,negative=terrible (or yes,no) the one "
            "whose word is the likeliest completion of a prompt. Rows have a label or its word as their completion.",
            show_default=False,
        ),
    ] = None,
    calibrate: Annotated[
        bool,
        typer.Option(
            "--calibrate",
            help="Divide the probability of each of --label-words by its probability where every field is N/A.",
        ),
    ] = False,
    constrained: Annotated[
        bool, typer.Option("--constrained", help="Hold every answer to --schema while it is generated.")
    ] = False,
    beams: Annotated[
        int,
        typer.Option(min=1, help="Search with this many beams; 1 takes the likeliest token at each step."),
    ] = 1,
    batch_size: Annotated[int, typer.Option(min=1, help="Prompts to a batch.")] = 8,
    answers: elsewhere.Answers = None,
    answer_field: elsewhere.AnswerField = None,
    score: elsewhere.Score = None,
    endpoint: elsewhere.EndpointUrl = None,
    models: elsewhere.Models = None,
    api: elsewhere.Api = "chat",
    api_key_from: elsewhere.KeyFrom = "OPENAI_API_KEY",
    concurrency: elsewhere.Concurrency = 8,
    timeout: elsewhere.Timeout = 120.0,
    retries: elsewhere.Retries = 5,
    record: elsewhere.Record = None,
    prompt: elsewhere.PromptText = None,
    completion: elsewhere.CompletionText = None,
    recipe: elsewhere.FromRecipe = None,
    report: Annotated[Path | None, typer.Option(help="Also write an HTML page to this file.")] = None,
    as_json: AsJson = False,
) -> None:
    """Score systems on the same prompts, with confidence intervals and paired tests.

    Systems are the adapters and their untouched base; answers that were made elsewhere; and models behind an
    OpenAI-compatible address. A run gets evaluation.json with every answer, and an adapter's manifest gets the scores,
    unless --limit, --task, --constrained or --label-words is given. An adapter trained on several tasks also gets the
    scores of each.
    """
    from manytune.cli.chosen import choose
    from manytune.cli.evaluate.here import ask_here, common_examples
    from manytune.cli.evaluate.label_words import choose_here
    from manytune.evaluation.answers import by_prompt, each_turn, items_from

    if report is not None:
        check_place("--report", report)
    if constrained and schema is None:
        raise typer.BadParameter("it holds answers to --schema; give that, too", param_hint="--constrained")
    words = _label_words(label_words, calibrate=calibrate, with_schema=schema is not None)
    others = elsewhere.Elsewhere(
        answers=answers or [],
        field=answer_field,
        score=score,
        endpoint=endpoint,
        models=models or [],
        api=api,
        key_from=api_key_from,
        concurrency=concurrency,
        timeout=timeout,
        retries=retries,
        record=record,
        max_tokens=max_new_tokens,
    )
    others.check()
    if not adapters and not others:
        raise typer.BadParameter(
            "name a run or an adapter, or give --answers or --endpoint", param_hint="RUN"
        )
    chosen = choose(adapters or [], store)
    if chosen and (prompt or completion or recipe):
        raise typer.BadParameter("runs name their templates themselves", param_hint="--prompt")
    examples = (
        common_examples(chosen, data, task)
        if chosen
        else elsewhere.rows_elsewhere(data, prompt, completion, recipe)
    )
    if examples is not None and turns == "each":
        examples = each_turn(examples)
    kind = _kind(chosen, examples)
    if words is not None and (kind != "texts" or not chosen or others):
        raise typer.BadParameter(
            "they are for adapters that generate, and for nothing from elsewhere", param_hint="--label-words"
        )
    if constrained and (kind != "texts" or not chosen):
        raise typer.BadParameter(
            "it holds answers that are generated here; name runs or adapters that generate",
            param_hint="--constrained",
        )
    if kind in _OF_HEADS and others:
        raise typer.BadParameter(
            "adapters with a head answer with labels of their own rows; evaluate them without --answers and --endpoint",
            param_hint="--answers",
        )
    local = None
    systems: list[System] = []
    if chosen and examples is not None:
        wanted = _metrics(metrics, schema, "labels" if words else kind, likelihoods=not others)
        local = (
            ask_here(
                chosen,
                examples,
                base,
                wanted,
                limit=limit,
                max_new_tokens=max_new_tokens,
                beams=beams,
                batch_size=batch_size,
                held_to=schema if constrained else None,
            )
            if words is None
            else choose_here(
                chosen,
                examples,
                base,
                words,
                limit=limit,
                batch_size=batch_size,
                task=task,
                calibrate=calibrate,
            )
        )
        chosen, items, systems = local.chosen, local.items, local.systems
    if examples is None:
        items, systems = others.alone()
        items, systems = items[:limit], [replace(one, answers=one.answers[:limit]) for one in systems]
    else:
        # A classifier's rows are its questions; those of others are grouped by their prompts.
        asked = () if kind in _OF_HEADS or words else by_prompt(examples)[:limit]
        items = items if local is not None else items_from(asked)
        names = [system.name for system in systems]
        systems += others.systems(asked, taken=names, partial=limit is not None)
    if local is None:
        scored = all(answer.score is not None for one in systems for answer in one.answers)
        names_of_metrics = metrics or ("recorded" if scored and schema is None else None)
        wanted = _metrics(names_of_metrics, schema, "texts", likelihoods=False)
    from manytune.cli.outputs.evaluation import print_evaluation, summary  # with SciPy, which takes a second
    from manytune.cli.outputs.json_output import print_json
    from manytune.evaluation.evaluate import evaluate as compare
    from manytune.evaluation.report import write_report
    from manytune.experiments.provenance import describe_sources

    evaluation = compare(
        items,
        systems,
        wanted,
        margin=_margin(systems, equivalence_margin, equivalent_to),
        provenance={
            **(local.provenance if local is not None else {}),
            "Data": describe_sources(item.source for item in items),
            "Date": datetime.now(UTC).date().isoformat(),
            "Answers": local.how
            if local is not None
            else f"at most {max_new_tokens} tokens"
            if endpoint
            else "from files",
            "Release": f"manytune {__version__}",
        },
    )
    whole = limit is None and task is None and not constrained and words is None
    written = _save(evaluation, chosen, store, whole=whole)
    if report is not None:
        write_report(evaluation, report, title=_title([system.name for system in systems]))
        written.append(report)
    if as_json:
        print_json(summary(evaluation, written))
    else:
        print_evaluation(evaluation, written)


def _label_words(text: str | None, *, calibrate: bool, with_schema: bool) -> LabelWords | None:
    """The label words that the options name; None for none."""
    from manytune.data.labels.label_words import label_words

    if text is None:
        if calibrate:
            raise typer.BadParameter("it is for --label-words; give these, too", param_hint="--calibrate")
        return None
    if with_schema:
        raise typer.BadParameter("nothing is generated that could have a schema", param_hint="--schema")
    try:
        return label_words(text)
    except DataError as error:
        raise typer.BadParameter(str(error), param_hint="--label-words") from None


def _kind(chosen: Sequence[Chosen], examples: Sequence[Example] | None) -> Kind:
    """What the answers are."""
    from manytune.cli.evaluate.classifiers import common_labels
    from manytune.data.labels.numeric_labels import NumericLabels
    from manytune.data.labels.word_labels import WordLabels

    labels = common_labels(chosen) if chosen else None
    if labels is not None:
        if isinstance(labels, WordLabels):
            return "words"
        return "numbers" if isinstance(labels, NumericLabels) else "labels"
    documents = examples is not None and all(example.is_document for example in examples)
    return "documents" if documents else "texts"


def _metrics(names: str | None, schema: Path | None, kind: Kind, *, likelihoods: bool) -> tuple[Metric, ...]:
    """The metrics that are named, or those for the kind of answers; running text has its perplexity alone.

    Answers of others have no likelihoods.
    """
    from manytune.evaluation.metrics import (
        CLASS_METRICS,
        METRICS,
        NUMBER_METRICS,
        TEXT_METRICS,
        WORD_METRICS,
        metrics_named,
    )
    from manytune.evaluation.metrics.recorded import RECORDED
    from manytune.evaluation.metrics.structured import schema_metric, with_schema

    try:
        valid = None if schema is None else schema_metric(schema)
        if names is None:
            usual = {
                "texts": TEXT_METRICS,
                "documents": ("perplexity",),
                "labels": CLASS_METRICS,
                "numbers": NUMBER_METRICS,
                "words": WORD_METRICS,
            }
            known = [METRICS[name] for name in usual[kind] if likelihoods or name != "perplexity"]
            return with_schema(known, valid)
        found = metrics_named([name.strip() for name in names.split(",") if name.strip()])
    except DataError as error:
        raise typer.BadParameter(str(error), param_hint="--schema" if schema else "--metrics") from None
    if kind == "documents" and [metric.name for metric in found] != ["perplexity"]:
        raise typer.BadParameter(
            "running text is only read, so perplexity is all that can be measured", param_hint="--metrics"
        )
    if likelihoods and any(metric.name == RECORDED for metric in found):
        raise typer.BadParameter("answers that are made here have no recorded score", param_hint="--metrics")
    if not likelihoods and any(metric.name == "perplexity" for metric in found):
        raise typer.BadParameter("answers from elsewhere have no likelihoods", param_hint="--metrics")
    return with_schema(found, valid)


def _margin(systems: Sequence[System], share: float | None, reference: str | None) -> Margin | None:
    """What the systems may be equivalent to, and how near that is; None if nobody asked."""
    from manytune.evaluation.equivalence import Margin
    from manytune.experiments.recipe import REFERENCE

    if share is None:
        if reference is not None:
            raise typer.BadParameter("give --equivalence-margin, too", param_hint="--equivalent-to")
        return None
    names = [system.name for system in systems]
    if reference is not None and reference not in names:
        raise typer.BadParameter(
            f"expected one of {', '.join(names)}; found {reference!r}", param_hint="--equivalent-to"
        )
    full = next((system.name for system in systems if system.method == REFERENCE), names[0])
    return Margin(reference or full, share)


def _save(evaluation: Evaluation, chosen: Sequence[Chosen], store: str, *, whole: bool) -> list[Path]:
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
        scores = {score.metric: score.value for score in evaluation.result(one.name).scores}
        if whole and one.digest is not None:
            store_at(store).add_scores(one.digest, scores)
        elif whole and one.stored.manifest is not None:
            add_scores(one.stored.path, scores)
    return written


def _title(names: Sequence[str]) -> str:
    if len(names) == 1:
        return f"How good is {names[0]}?"
    return f"Did it work? {', '.join(names[1:])} against {'the ' if names[0] == 'base' else ''}{names[0]}"
