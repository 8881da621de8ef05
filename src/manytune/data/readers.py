"""Files and datasets to records: a row that can't be read is named with its file and line, never lost."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Literal

from manytune.data.delimited import read_csv, read_tsv
from manytune.data.json_files import read_json, read_json_lines
from manytune.data.nearest import did_you_mean
from manytune.data.records import Record, Records, Rejected
from manytune.data.row_errors import row_error
from manytune.errors import DataError

_DATASET_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?(:[\w.-]+)?")
_WORKBOOKS = (".xlsx", ".xls", ".xlsm", ".ods")
_COMPRESSED = (".gz", ".zip", ".bz2", ".xz", ".zst")
_WITH_SPLIT = re.compile(r"(.+)\[([\w.-]+)\]")


def read(spec: str, *, split: str | None = None, on_error: Literal["error", "skip"] = "error") -> Records:
    """Read all rows of a file or a dataset.

    Args:
        spec: A file (.jsonl, .json, .csv, .tsv, .parquet), a directory of such files, or a name that
            `datasets` can load, as `name` or `name:config`. The last two take a split: `name[train]`.
        split: Which split of a dataset or directory, if `spec` doesn't say; not needed if there is only one.
        on_error: `"error"` raises if any row can't be read; `"skip"` returns such rows as rejected.

    Raises:
        DataError: The file is missing, empty or unreadable, or rows are broken and `on_error` is `"error"`.
    """
    rows = _rows(spec, split)
    kept = tuple(row for row in rows if isinstance(row, Record))
    rejected = tuple(row for row in rows if isinstance(row, Rejected))
    if rejected and on_error == "error":
        first = DataError(rejected[0].reason, where=rejected[0].where)
        raise row_error(first, failed=len(rejected), rows=len(rows))
    if not rows:
        raise DataError("there are no rows in it; a table needs rows below its header", where=spec)
    return Records(kept, rejected)


def read_role(spec: str, role: str, *, on_error: Literal["error", "skip"] = "error") -> Records:
    """Read the rows that are used in a role, such as `test`: a file's, or those of a dataset's split of that name.

    Args:
        spec: As for `read`; a dataset may also name its split itself.
        role: The name of a dataset's split.
        on_error: As for `read`.

    Raises:
        DataError: As for `read`.
    """
    is_file = Path(spec).expanduser().is_file()
    return read(spec, split=None if is_file else role, on_error=on_error)


def require_there(spec: str) -> None:
    """See that a file is there, without reading it; whether there is a dataset of a name, only `read` finds out.

    Args:
        spec: As for `read`.

    Raises:
        DataError: There is no such file.
    """
    path = Path(spec).expanduser()
    if path.is_file() or path.is_dir():
        return
    if path.exists() or spec == "-":
        raise DataError("rows are read from files, and this is none; write them into one", where=spec)
    if advice := _not_a_path(spec):
        raise DataError(advice, where=spec)
    if chosen := _WITH_SPLIT.fullmatch(spec):
        require_there(chosen[1])
    elif holds_rows(path) or not _DATASET_NAME.fullmatch(spec):
        nearest = (
            _similar_file(path)
            or f"; a path that isn't absolute begins where the command runs, at {Path.cwd()}"
        )
        raise DataError(f"there is no such file{nearest}", where=spec)


def holds_rows(path: Path) -> bool:
    """Whether a file's name says that there are rows in it."""
    return path.suffix.lower() in _READERS


def _not_a_path(spec: str) -> str:
    """What to do about a spec that means something else than a file or a dataset; empty if it may be one."""
    if spec.casefold() == "none":
        return "this is a text to YAML; write null for no rows, without quotes"
    if "://" in spec:
        return "addresses aren't read; download the file, and name it"
    if "*" in spec or "?" in spec:
        return "patterns aren't read; list the files, as in [a.jsonl, b.jsonl]"
    if share := re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*%\s*", spec):
        return f"there is no such file; a share of the rows is written {float(share[1]) / 100:g}"
    return ""


def _rows(spec: str, split: str | None) -> list[Record | Rejected]:
    path = Path(spec).expanduser()
    if path.is_file():
        if split is not None:
            raise DataError(f"a file has no splits, so split={split!r} can't be chosen", where=spec)
        return _file_rows(path, spec)
    if chosen := _WITH_SPLIT.fullmatch(spec):
        return _rows(chosen[1], chosen[2])
    if path.is_dir():
        return _dataset_rows(spec, str(path), None, split)
    require_there(spec)
    name, _, config = spec.partition(":")
    return _dataset_rows(spec, name, config or None, split)


def _file_rows(path: Path, source: str) -> list[Record | Rejected]:
    reader = _READERS.get(path.suffix.lower())
    if reader is None:
        raise DataError(_other_kind(path.suffix.lower()), where=source)
    try:
        if path.stat().st_size == 0:
            raise DataError("the file is empty; write rows into it, or name another file", where=source)
        return reader(path, source)
    except OSError as error:
        raise DataError(f"the file can't be read: {error.strerror or error}", where=source) from error


def _other_kind(suffix: str) -> str:
    kinds = ", ".join(_READERS)
    if suffix in _WORKBOOKS:
        return "a workbook isn't read; save its sheet as CSV UTF-8 (Save As in Excel), and name that file"
    if suffix in _COMPRESSED:
        return f"a compressed file isn't read; unpack it, and name the {kinds} file in it"
    return f"files end in {kinds}, not {suffix!r}; write the rows as one of these, or rename the file if it is one"


def _parquet_rows(path: Path, source: str) -> list[Record | Rejected]:
    import pyarrow
    from pyarrow import parquet

    try:
        with parquet.ParquetFile(path) as file:
            table = file.read()
    except pyarrow.ArrowException as error:
        reason = str(error).rstrip(".")
        raise DataError(
            f"it isn't a readable Parquet file, and may have been cut off; write or copy it again ({reason})",
            where=source,
        ) from error
    return [Record(fields, source, row) for row, fields in enumerate(table.to_pylist(), start=1)]


def _dataset_rows(spec: str, name: str, config: str | None, split: str | None) -> list[Record | Rejected]:
    import datasets

    try:
        loaded = datasets.load_dataset(name, config, split=split)
    except Exception as error:  # datasets, the hub client and each file format raise errors of their own
        found = (
            "no rows can be read from the directory"
            if Path(name).is_dir()
            else "there is no such file or dataset"
        )
        kinds = ", ".join(_READERS)
        reason = str(error).rstrip(".").replace(str(Path(name).resolve()), name)
        message = (
            f"{found}; name a {kinds} file, or a dataset of the hub ({reason}){_similar_file(Path(spec))}"
        )
        raise DataError(message, where=spec) from error
    if split is None:
        if len(loaded) != 1:
            names = ", ".join(loaded)
            raise DataError(
                f"it has the splits {names}; choose one, as in {spec}[{next(iter(loaded))}]", where=spec
            )
        split, loaded = next(iter(loaded.items()))
    return [Record(fields, f"{spec}[{split}]", row) for row, fields in enumerate(loaded, start=1)]


def _similar_file(path: Path) -> str:
    if not path.parent.is_dir():
        return ""
    files = [str(file) for file in path.parent.iterdir() if file.suffix.lower() in _READERS]
    return did_you_mean(str(path), files)


_READERS: dict[str, Callable[[Path, str], list[Record | Rejected]]] = {
    ".jsonl": read_json_lines,
    ".json": read_json,
    ".csv": read_csv,
    ".tsv": read_tsv,
    ".parquet": _parquet_rows,
}
