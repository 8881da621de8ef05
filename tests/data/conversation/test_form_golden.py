"""What rows of each form become with each family's chat template, against files that were written by hand."""

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.chat_templates import FAMILIES, tokenizer_of

from manytune.data.conversation.form import ConversationForm
from manytune.data.encoding.encode import Encoder
from manytune.data.encoding.encoded import Encoded
from manytune.data.readers import read
from manytune.errors import DataError

GOLDEN = Path(__file__).parent / "golden"


def sections() -> Iterator[Any]:
    for family in FAMILIES:
        text = (GOLDEN / f"{family}.txt").read_text(encoding="utf-8")
        for section in text.split("=== ")[1:]:
            heading, _, expected = section.removesuffix("\n").partition("\n")
            for place in heading.split(", "):
                form, row = place.split()
                yield pytest.param(family, form, int(row), expected, id=f"{family}: {form} {row}")


def test_every_row_is_written_for_every_family() -> None:
    rows = {
        (file.stem, row) for file in GOLDEN.glob("*.jsonl") for row in range(1, len(read(str(file)).kept) + 1)
    }
    written = [(case.values[0], tuple(case.values[1:3])) for case in sections()]
    assert sorted(written) == sorted((family, row) for family in FAMILIES for row in rows)


def with_marks(encoder: Encoder, sequence: Encoded) -> str:
    learned = [False] * len(sequence.prompt_ids) + [True] * len(sequence.completion_ids)
    for start, end in sequence.given:
        for place in range(start, end):
            learned[len(sequence.prompt_ids) + place] = False
    parts = itertools.groupby(zip(sequence.input_ids, learned, strict=True), key=lambda pair: pair[1])
    texts = [(bears_loss, encoder.text([token for token, _ in pairs])) for bears_loss, pairs in parts]
    return "".join(f"«{text}»" if bears_loss else text for bears_loss, text in texts)


@pytest.mark.parametrize(("family", "form", "row", "expected"), list(sections()))
def test_a_row_becomes_what_was_written_by_hand(
    family: str, form: Any, row: int, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(GOLDEN)
    record = read(f"{form}.jsonl").kept[row - 1]
    encoder = Encoder(tokenizer_of(family), max_length=None, chat_template_kwargs=FAMILIES[family].options)
    example = ConversationForm(form).render(record)
    if expected.startswith("refused: "):
        with pytest.raises(DataError) as caught:
            encoder.sequences(example)
        assert str(caught.value).startswith(f"{form}.jsonl:{row}: the chat template ")
        assert expected.removeprefix("refused: ") in str(caught.value)
        return
    found = [with_marks(encoder, sequence) for sequence in encoder.sequences(example)]
    assert found == expected.split("\n---\n")
