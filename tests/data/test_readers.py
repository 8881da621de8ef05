"""What each file format yields, and what is said about a file or a row that can't be read."""

import json
import subprocess
import sys
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from manytune.data.json_files import json_line
from manytune.data.readers import read
from manytune.data.records import Record, Rejected
from manytune.errors import DataError

Write = Callable[[str, str | bytes], str]

_SAVED = "save the file as UTF-8 (CSV UTF-8 in Excel)"
NOT_UTF8 = f"the byte 0xe9 isn't UTF-8 ('é' in Windows-1252, as Excel writes it); {_SAVED}"
QUOTES = "; a cell that has the separator in it is put in quotes"


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Write:
    monkeypatch.chdir(tmp_path)

    def write(name: str, content: str | bytes) -> str:
        (tmp_path / name).write_bytes(content.encode() if isinstance(content, str) else content)
        return name

    return write


def message(spec: str, **options: str) -> str:
    with pytest.raises(DataError) as caught:
        read(spec, **options)  # type: ignore[arg-type]
    return str(caught.value)


def rejected(spec: str) -> list[tuple[int, str]]:
    return [(row.row, row.reason) for row in read(spec, on_error="skip").rejected]


# Every format


def test_all_formats_yield_the_same_fields_with_their_place(write: Write) -> None:
    rows = [{"id": "a", "text": "Größe"}, {"id": "b", "text": "two"}]
    write("x.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    write("x.json", json.dumps(rows, indent=2))
    write("x.csv", "id,text\na,Größe\nb,two\n")
    write("x.tsv", "id\ttext\na\tGröße\nb\ttwo\n")
    pq.write_table(pa.Table.from_pylist(rows), "x.parquet")
    for suffix, numbers in {
        "jsonl": [1, 2],
        "json": [1, 2],
        "csv": [2, 3],
        "tsv": [2, 3],
        "parquet": [1, 2],
    }.items():
        found = read(f"x.{suffix}")
        assert [dict(record.fields) for record in found.kept] == rows
        assert [record.where for record in found.kept] == [f"x.{suffix}:{number}" for number in numbers]
        assert found.rejected == ()


@pytest.mark.parametrize("suffix", ["jsonl", "json", "csv", "tsv", "parquet"])
def test_an_empty_file_is_an_error(write: Write, suffix: str) -> None:
    assert (
        message(write(f"x.{suffix}", ""))
        == f"x.{suffix}: the file is empty; write rows into it, or name another file"
    )


@pytest.mark.parametrize(
    ("name", "content"), [("x.jsonl", "\n \n"), ("x.json", "[]"), ("x.csv", "id,text\n")]
)
def test_a_file_without_rows_is_an_error(write: Write, name: str, content: str) -> None:
    expected = f"{name}: there are no rows in it; a table needs rows below its header"
    assert message(write(name, content)) == expected


def test_the_file_name_that_was_probably_meant_is_named(write: Write) -> None:
    write("train.jsonl", '{"a": 1}')
    assert message("trian.jsonl") == "trian.jsonl: there is no such file; did you mean 'train.jsonl'?"
    assert message("no/where.csv") == (
        "no/where.csv: there is no such file; a path that isn't absolute begins where the command runs, at "
        f"{Path.cwd()}"
    )


def test_an_unknown_kind_of_file_is_an_error_that_lists_the_known_ones(write: Write) -> None:
    expected = (
        "x.txt: files end in .jsonl, .json, .csv, .tsv, .parquet, not '.txt'; write the rows as one of these"
    )
    assert message(write("x.txt", "hello")).startswith(expected)
    assert "save its sheet as CSV UTF-8" in message(write("x.xlsx", "PK"))
    assert "unpack it" in message(write("x.csv.gz", "x"))


def test_a_file_has_no_splits(write: Write) -> None:
    assert "a file has no splits, so split='train' can't be chosen" in message(
        write("x.jsonl", '{"a": 1}'), split="train"
    )


@pytest.mark.parametrize(
    ("name", "content"),
    [("x.jsonl", '{"a": "ü"}'), ("x.json", '[{"a": "ü"}]'), ("x.csv", "a\nü\n"), ("x.csv", "a;b\nü;1\n")],
)
def test_utf16_with_its_mark_is_read_and_named_where_it_is_damaged(
    write: Write, name: str, content: str
) -> None:
    write(name, content.encode("utf-16"))
    assert read(name).kept[0].fields["a"] == "ü"
    assert "begins as UTF-16 and isn't" in message(write(name, content.encode("utf-16") + b"x"))


@pytest.mark.parametrize("mark", [";", "\t", "|"])
def test_a_csv_may_be_separated_as_spreadsheets_do_it(write: Write, mark: str) -> None:
    write("x.csv", f'id{mark}text\n1{mark}one, two\n2{mark}"a{mark}b"\n3{mark}x{mark}y\n')
    assert [record.fields for record in read("x.csv", on_error="skip").kept] == [
        {"id": "1", "text": "one, two"},
        {"id": "2", "text": f"a{mark}b"},
    ]
    assert rejected("x.csv") == [(4, f"expected 2 cells (id, text), found 3{QUOTES}")]


def test_excels_own_first_line_names_the_separator_and_counts_as_a_line(write: Write) -> None:
    write("x.csv", "sep=;\r\nid;text, long\r\n1;a\r\n2\r\n")
    assert read("x.csv", on_error="skip").kept[0].fields == {"id": "1", "text, long": "a"}
    assert rejected("x.csv") == [(4, "expected 2 cells (id, text, long), found 1")]


def test_a_comma_in_the_header_decides(write: Write) -> None:
    write("x.csv", "id,a;b\n1,c;d\n")
    assert read("x.csv").kept[0].fields == {"id": "1", "a;b": "c;d"}


@pytest.mark.parametrize(
    ("name", "content"), [("x.jsonl", '{"a": "1"}'), ("x.json", '[{"a": "1"}]'), ("x.csv", "a\n1\n")]
)
def test_a_byte_order_mark_is_no_part_of_the_first_field(write: Write, name: str, content: str) -> None:
    assert read(write(name, b"\xef\xbb\xbf" + content.encode())).kept[0].fields == {"a": "1"}


# JSON

BROKEN_LINES = [
    ('{"a": 1', "the line isn't valid JSON: Expecting ',' delimiter (column 8)"),
    ('["a", 1]', """expected an object with the row's fields, found ["a", 1]"""),
    ("null", "expected an object with the row's fields, found null"),
    ('"' + "x" * 50 + '"', f"expected an object with the row's fields, found \"{'x' * 38}…"),
    (
        b'{"a": "caf\xe9"}',
        NOT_UTF8,
    ),
    ('{"a": 1, "a": 2}', "the line can't be read: the key 'a' appears twice"),
    ('{"a": NaN}', "the line can't be read: NaN isn't JSON; write null or leave the field out"),
    (
        r'{"a": "\ud83d"}',
        r"the line can't be read: an escape such as \ud83d is half a character",
    ),
]


@pytest.mark.parametrize(("line", "reason"), BROKEN_LINES)
def test_a_broken_line_is_an_error_with_its_number(write: Write, line: str | bytes, reason: str) -> None:
    line = line.encode() if isinstance(line, str) else line
    write("x.jsonl", b'{"a": 0}\n\n' + line + b'\n{"a": 9}\n')
    assert message("x.jsonl") == f"x.jsonl:3: {reason}. In a recipe, data.on_error: skip leaves such rows out"


@pytest.mark.parametrize(("line", "reason"), BROKEN_LINES)
def test_a_skipped_line_is_returned_with_the_reason_and_the_others_are_kept(
    write: Write, line: str | bytes, reason: str
) -> None:
    line = line.encode() if isinstance(line, str) else line
    found = read(write("x.jsonl", b'{"a": 0}\n\n' + line + b'\n{"a": 9}\n'), on_error="skip")
    assert found.kept == (Record({"a": 0}, "x.jsonl", 1), Record({"a": 9}, "x.jsonl", 4))
    assert found.rejected == (Rejected("x.jsonl", 3, reason),)


def test_an_error_says_how_many_more_rows_are_broken(write: Write) -> None:
    assert message(write("x.jsonl", '{"a": 1}\n1\n2\n3\n')).endswith(
        "found 1 (2 more rows can't be used either). In a recipe, data.on_error: skip leaves such rows out"
    )
    assert message(write("x.jsonl", "1\n2\n")).endswith("found 1 (none of the 2 rows can be used)")


def test_whole_surrogate_pairs_are_characters(write: Write) -> None:
    assert read(write("x.jsonl", r'{"a": "\ud83d\ude00"}')).kept[0].fields == {"a": "\U0001f600"}


def test_an_array_in_a_file_of_lines_is_told_its_suffix(write: Write) -> None:
    assert rejected(write("x.jsonl", '[\n{"a": 1}\n]'))[0][1].endswith(
        "A file that is one array is named .json"
    )


def test_a_json_file_may_hold_lines(write: Write) -> None:
    assert [record.row for record in read(write("x.json", '{"a": 1}\n{"a": 2}\n')).kept] == [1, 2]


def test_elements_of_an_array_that_are_no_objects_are_rejected(write: Write) -> None:
    assert rejected(write("x.json", '[{"a": 1}, 7]')) == [
        (2, "expected an object with the row's fields, found 7")
    ]


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ('[{"a": 1},\n{"a": }]', "x.json:2: the array isn't valid JSON: Expecting value"),
        (
            b'[{"a": 1},\n{"a": "\xe9"}]',
            f"x.json:2: {NOT_UTF8}",
        ),
        ('[{"a": 1, "a": 2}]', "x.json: the array can't be read: the key 'a' appears twice"),
        ('{\n"data": [\n{"a": 1}]}', "x.json: expected an array of objects, or one object a line"),
    ],
)
def test_a_json_file_that_is_no_array_of_objects_is_an_error(
    write: Write, content: str | bytes, expected: str
) -> None:
    assert message(write("x.json", content)) == expected


# CSV


def test_a_csv_row_is_named_by_the_line_where_it_begins(write: Write) -> None:
    write("x.csv", 'id,text\r\n1,"two\r\nlines"\r\n\r\n2,"say ""hi"", please"\r\n')
    assert read("x.csv").kept == (
        Record({"id": "1", "text": "two\r\nlines"}, "x.csv", 2),
        Record({"id": "2", "text": 'say "hi", please'}, "x.csv", 5),
    )


def test_ragged_and_malformed_csv_rows_are_rejected_at_their_real_lines(write: Write) -> None:
    write("x.csv", b'id,text\n1,"a\nb"\n2\n3,x,y\n4,"x"y\n5,caf\xe9\n6,ok\n')
    assert rejected("x.csv") == [
        (4, "expected 2 cells (id, text), found 1"),
        (5, f"expected 2 cells (id, text), found 3{QUOTES}"),
        (6, "the row isn't valid CSV: ',' expected after '\"'"),
        (7, NOT_UTF8),
    ]
    assert [record.row for record in read("x.csv", on_error="skip").kept] == [2, 8]


def test_lines_lost_to_a_stray_quote_are_counted_in_the_reason(write: Write) -> None:
    write("x.csv", 'id,text\n1,"a\n2,b\n3,"c"\n4,d\n')
    ((line, reason),) = rejected("x.csv")
    assert line == 2
    assert reason.endswith("(lines 2 to 4 were read as one row)")


def test_a_quote_that_is_never_closed_is_an_error_even_when_skipping(write: Write) -> None:
    write("x.csv", 'id,text\n1,a\n2,"b\n3,c\n4,d\n')
    with pytest.raises(DataError, match=r"x\.csv:3: a quoted field that starts in this row is never closed"):
        read("x.csv", on_error="skip")


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        ("a,b,a", "the header names 'a' twice; give each column a name of its own"),
        (",a", "column 1 of the header has no name (an index column? write the file without it)"),
        ("", "the first line is blank; it must name the fields"),
        ('"a', "the header isn't valid: unexpected end of data"),
        (
            b"caf\xe9",
            NOT_UTF8,
        ),
    ],
)
def test_a_header_that_cannot_name_the_fields_is_an_error(
    write: Write, header: str | bytes, expected: str
) -> None:
    header = header.encode() if isinstance(header, str) else header
    assert message(write("x.csv", header + b"\n1,2,3\n")) == f"x.csv:1: {expected}"


def test_a_document_longer_than_the_csv_modules_limit_is_read(write: Write) -> None:
    import csv

    limit = csv.field_size_limit()
    long = "word " * 50_000
    assert read(write("x.csv", f"text\n{long}\n")).kept[0].fields == {"text": long}
    assert csv.field_size_limit() == limit


# Writing


def test_what_is_written_as_json_is_read_back(write: Write) -> None:
    fields = {"a": "Größe\n", "n": [1, None], "o": {"k": True}}
    assert read(write("x.jsonl", json_line(Record(fields, "y", 1)))).kept[0].fields == fields


def test_dates_are_written_as_text_and_what_has_no_json_form_is_an_error() -> None:
    moment = datetime(2024, 2, 29, 12, 30)
    assert json_line(Record({"at": moment, "on": moment.date()}, "x", 1)) == (
        '{"at": "2024-02-29T12:30:00", "on": "2024-02-29"}\n'
    )
    with pytest.raises(DataError, match="x:1: the row can't be written as JSON: a value of type bytes"):
        json_line(Record({"a": b"a"}, "x", 1))
    with pytest.raises(DataError, match="x:1: the row can't be written as JSON"):
        json_line(Record({"a": float("nan")}, "x", 1))


# Parquet and datasets


def test_parquet_keeps_types_and_nulls(write: Write) -> None:
    rows = [{"n": 1, "parts": ["a", "b"]}, {"n": None, "parts": []}]
    pq.write_table(pa.Table.from_pylist(rows), "x.parquet")
    assert [record.fields for record in read("x.parquet").kept] == rows


def test_a_damaged_parquet_file_is_an_error(write: Write) -> None:
    assert message(write("x.parquet", "PAR1 but not really")).startswith(
        "x.parquet: it isn't a readable Parquet file"
    )


@pytest.fixture
def folder(write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "train.jsonl").write_text('{"a": "one"}\n{"a": "two"}\n')
    (folder / "test.jsonl").write_text('{"a": "three"}\n')
    return folder


def test_a_directory_is_read_through_datasets_one_split_at_a_time(folder: Path) -> None:
    assert read("folder", split="train").kept == (
        Record({"a": "one"}, "folder[train]", 1),
        Record({"a": "two"}, "folder[train]", 2),
    )
    assert message("folder") == "folder: it has the splits train, test; choose one, as in folder[train]"


def test_a_split_can_be_part_of_the_name(folder: Path) -> None:
    assert read("folder[test]").kept == (Record({"a": "three"}, "folder[test]", 1),)


def test_a_split_of_a_file_is_an_error(write: Write) -> None:
    write("x.jsonl", '{"a": 1}')
    assert message("x.jsonl[train]") == "x.jsonl: a file has no splits, so split='train' can't be chosen"


def test_a_file_whose_name_ends_in_brackets_is_a_file(write: Write) -> None:
    assert message(write("x[1]", "hello")).startswith("x[1]: files end in .jsonl")


def test_the_only_split_needs_no_choice(folder: Path) -> None:
    (folder / "test.jsonl").unlink()
    assert [record.source for record in read("folder").kept] == ["folder[train]"] * 2


def test_an_unknown_split_or_dataset_is_an_error_with_the_librarys_reason(folder: Path) -> None:
    assert "train" in message("folder", split="trian")
    (folder.parent / "ACLsum.csv").write_text("a\n1\n")
    unknown = message("aclsum")
    assert unknown.startswith("aclsum: there is no such file or dataset; name a .jsonl")
    assert unknown.endswith("did you mean 'ACLsum.csv'?")


def test_reading_a_text_file_loads_no_large_library(write: Write) -> None:
    write("x.csv", "a\n1\n")
    script = (
        "import sys; from manytune.data.readers import read; read('x.csv'); "
        "print(sorted({'torch', 'transformers', 'datasets', 'pyarrow', 'pandas'} & set(sys.modules)))"
    )
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "[]"
