"""What is known about a classifier's rows before it is trained, and what the model will see of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from statistics import fmean, pstdev

from manytune.data.check import DataCheck, FileCheck, Lengths, NumberCheck, TokenCheck
from manytune.data.labels.label_encoder import LabelEncoder
from manytune.data.labels.label_kinds import AnyLabelledForm, AnyLabels, labels_for
from manytune.data.labels.labelled import Labels
from manytune.data.labels.numeric_labels import number_in
from manytune.data.labels.word_labels import TaggedExample
from manytune.data.preview import Part, Preview
from manytune.data.records import Records, Rejected
from manytune.data.templates import Example, render_all
from manytune.errors import DataError
from manytune.images import decoded, image_name


def labels_in(
    sources: Mapping[str, Records], form: AnyLabelledForm, train: Collection[str]
) -> tuple[AnyLabels, dict[str, tuple[Example, ...]]]:
    """The labels of the training files, and every file's examples.

    Args:
        sources: What was read from each file.
        form: How rows become examples.
        train: The training files.

    Raises:
        DataError: No training row can be used, or their labels can't be learned.
    """
    examples = {
        source: render_all(form, records.kept, on_error="skip").kept for source, records in sources.items()
    }
    learned = [example for source in train for example in examples[source]]
    if not learned:
        raise DataError("no row can be used", where=", ".join(train))
    return labels_for(form, learned), examples


def with_labels(
    found: DataCheck,
    examples: Mapping[str, Sequence[Example]],
    labels: AnyLabels,
    *,
    encoder: LabelEncoder | None = None,
    limit: int | None = None,
    images: bool = False,
) -> DataCheck:
    """A check of files with how many rows have which label, and with lengths in tokens.

    Rows with a label that no training row has are rejected, and so are those whose image can't be decoded.

    Args:
        found: What `check` found with the same form and without a tokenizer.
        examples: Every file's examples.
        labels: The training rows'.
        encoder: Makes token ids; None for no look at tokens.
        limit: The most tokens that will be allowed.
        images: Whether they are images, which have no lengths.
    """
    files = (_file(file, examples[file.source], labels, encoder, limit) for file in found.files)
    if images:
        files = (_without_undecodable(file, examples[file.source]) for file in files)
    return replace(found, files=tuple(files))


def _without_undecodable(file: FileCheck, examples: Sequence[Example]) -> FileCheck:
    bad = [
        Rejected(one.source, one.row, why) for one in examples if (why := _why_undecodable(one)) is not None
    ]
    return replace(file, rejected=tuple(sorted((*file.rejected, *bad), key=lambda row: row.row)), lengths={})


def _why_undecodable(example: Example) -> str | None:
    try:
        decoded(example.segments[0].text)
    except DataError as error:
        return str(error)
    return None


def _file(
    file: FileCheck,
    examples: Sequence[Example],
    labels: AnyLabels,
    encoder: LabelEncoder | None,
    limit: int | None,
) -> FileCheck:
    counts = Counter(name for example in examples for name in _names(example))
    names = labels.names if isinstance(labels, Labels) else counts  # what isn't a number was rejected before
    unknown = [
        Rejected(example.source, example.row, f"the label {odd[0]!r} is no training row's")
        for example in examples
        if (odd := [name for name in _names(example) if name not in names])
    ]
    lengths = (
        {"text, characters": file.lengths["prompt, characters"]}
        if "prompt, characters" in file.lengths
        else {}
    )
    tokens: TokenCheck | None = None
    if encoder is not None and examples:
        found = [len(encoder.tokens(encoder.texts(example))[0]) for example in examples]
        lengths["text, tokens"] = Lengths.of(found)
        spelled = sum(encoder.spelled_special_token(example) is not None for example in examples)
        tokens = TokenCheck(None if limit is None else sum(length > limit for length in found), spelled)
    return replace(
        file,
        rejected=tuple(sorted((*file.rejected, *unknown), key=lambda row: row.row)),
        lengths=lengths,
        tokens=tokens,
        labels={name: counts[name] for name in (*names, *sorted(set(counts) - set(names)))}
        if isinstance(labels, Labels)
        else {},
        numbers=None if isinstance(labels, Labels) else _numbers(examples),
    )


def _names(example: Example) -> tuple[str, ...]:
    """An example's label, or the tags of its words."""
    return example.tags if isinstance(example, TaggedExample) else (example.completion,)


def _numbers(examples: Sequence[Example]) -> NumberCheck | None:
    values = [value for example in examples if (value := number_in(example.completion)) is not None]
    return NumberCheck(min(values), fmean(values), pstdev(values), max(values)) if values else None


def preview_labelled(
    example: Example, encoder: LabelEncoder | None = None, *, image: bool = False
) -> Preview | Rejected:
    """What the model sees of an example, the label last, or why it is left out.

    With an encoder, the text is decoded from the token ids of training. An image is shown by its path, or a hash of it.
    """
    if image and (reason := _why_undecodable(example)) is not None:
        return Rejected(example.source, example.row, reason)
    if encoder is None:
        shown = [image_name(segment.text) if image else segment.text for segment in example.segments]
        text = "\n".join(shown)
        return Preview(
            example.source, example.row, (Part(f"{text}\n", False), Part(example.completion, True))
        )
    try:
        row, cut = encoder.encode(example)
    except DataError as error:
        return Rejected(example.source, example.row, str(error).removeprefix(f"{example.where}: "))
    given = Part(encoder.text(row.prompt_ids), False, len(row.prompt_ids))
    return Preview(example.source, example.row, (given, Part(example.completion, True, 0)), truncated=cut)
