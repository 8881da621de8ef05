"""What an adapter's directory says about itself: `manifest.json`."""

from __future__ import annotations

import json
import re
import stat
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal, cast

from manytune.errors import DamagedError, StoreError
from manytune.store.fingerprint import Fingerprint

MANIFEST_NAME = "manifest.json"
FORMAT = 1
MOST_BYTES = 16 << 20

Encoding = Literal["chat", "plain"]

_AGAIN = "Restore the file, or train or add the adapter again."


@dataclass(frozen=True, kw_only=True)
class Description:
    """What an adapter is: what was trained, on what, with what.

    Attributes:
        method: The method's name, such as "lora".
        base: What the base was called when the adapter was trained: a hub id, a directory or a file.
        fingerprint: What identifies that base, taken before anything was attached to it.
        template: The prompt template's parts by name (`prompt`, `completion`, `system`, `group_by`); None
            if there was none.
        templates: For several tasks, the template's parts of each by the task's name; `template` is None
            then. None for a single task.
        encoding: Whether prompts went through the tokenizer's chat template or not; None if it isn't known.
        encoding_options: What else decided how prompts became tokens, such as values of the chat template's variables;
            `manytune.data.encoding.encoding_options` reads it. None for nothing.
        labels: A classifier's classes, which `manytune.data.labels.labelled` reads: `names`, in the order of the head's
            outputs, and `counts`, how many training rows have each. None for a model that generates.
        recipe: The recipe of the run; None if there was none.
        scores: Measured numbers by name.
        combination: For an adapter that was combined from others: the kind, and of each its digest and weight.
            None for one that was trained.
        unservable: Why a server can't run it next to others, as the release that wrote the manifest found it; None if
            it can, or if that was never tried.
    """

    method: str
    base: str
    fingerprint: Fingerprint
    template: Mapping[str, str] | None = None
    templates: Mapping[str, Mapping[str, str]] | None = None
    encoding: Encoding | None = None
    encoding_options: Mapping[str, Any] | None = None
    labels: Mapping[str, Any] | None = None
    recipe: Mapping[str, Any] | None = None
    scores: Mapping[str, float] = field(default_factory=dict)
    combination: Mapping[str, Any] | None = None
    unservable: str | None = None

    @property
    def templates_by_task(self) -> Mapping[str | None, Mapping[str, str]]:
        """The template's parts of each task; a single task's are under None."""
        if self.template is not None:
            return {None: self.template}
        return {task: parts for task, parts in (self.templates or {}).items()}


@dataclass(frozen=True, kw_only=True)
class Manifest(Description):
    """An adapter's description, and what its files must be.

    Attributes:
        files: The SHA-256 of each file that decides what the adapter computes, by name.
        created: When, in UTC, as `2026-01-31T12:00:00Z`.
        manytune: The release that wrote it.
        format: The version of this manifest's format.
    """

    files: Mapping[str, str]
    created: str
    manytune: str
    format: int = FORMAT

    def to_json(self) -> str:
        """As it is written to `manifest.json`."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        values["fingerprint"] = self.fingerprint.to_dict()
        for key in _OPTIONAL:
            if values[key] is None:
                del values[key]
        ordered = {"format": values.pop("format"), **values}
        return json.dumps(ordered, indent=2, ensure_ascii=False, default=dict) + "\n"

    def joined(self, again: Manifest, *, is_tried: bool) -> Manifest:
        """With the scores of an equal adapter as well, and the newer verdict on serving it.

        Args:
            again: The manifest of the other one.
            is_tried: Whether it was tried with its base whether a server can run it.
        """
        unservable = again.unservable if is_tried else self.unservable or again.unservable
        return replace(self, scores={**self.scores, **again.scores}, unservable=unservable)

    @classmethod
    def read(cls, file: Path) -> Manifest:
        """Read a `manifest.json`.

        Raises:
            FileNotFoundError: It isn't there.
            DamagedError: It isn't a manifest; see `from_json`.
        """
        found = file.stat()
        # A pipe would keep its reader waiting, and some devices never end.
        if not stat.S_ISREG(found.st_mode):
            raise DamagedError(f"{file}: expected a plain file. {_AGAIN}")
        if found.st_size > MOST_BYTES:
            raise DamagedError(
                f"{file}: {found.st_size:,} bytes; a manifest has at most {MOST_BYTES:,}. {_AGAIN}"
            )
        try:
            return cls.from_json(file.read_text(encoding="utf-8"), where=str(file))
        except UnicodeDecodeError as error:
            raise DamagedError(f"{file}: expected JSON in UTF-8: {error}. {_AGAIN}") from None

    @classmethod
    def from_json(cls, text: str, *, where: str) -> Manifest:
        """Read what `to_json` wrote.

        Args:
            text: The content of a `manifest.json`.
            where: The file, for messages.

        Raises:
            DamagedError: It isn't JSON, has another format, or a key is missing, unknown or of the wrong
                kind.
        """
        try:
            values = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise DamagedError(f"{where}: expected JSON: {error}. {_AGAIN}") from error
        if not isinstance(values, dict):
            raise DamagedError(f"{where}: expected a JSON object; found {type(values).__name__}. {_AGAIN}")
        for key in _OPTIONAL:
            values.setdefault(key, None)
        if values.get("format") != FORMAT:
            raise DamagedError(
                f"{where}: expected manifest format {FORMAT}; found {_shorten(values.get('format'))}. "
                "A newer manytune may have written it: update manytune, or train the adapter again."
            )
        _check_values(values, where)
        try:
            fingerprint = Fingerprint.from_dict(values.pop("fingerprint"))
        except StoreError as error:
            raise DamagedError(f"{where}: {error} {_AGAIN}") from error
        return cls(fingerprint=fingerprint, **cast(dict[str, Any], values))


def _check_values(values: Mapping[str, Any], where: str) -> None:
    """Refuse a manifest's JSON object if a key is missing, unknown or of the wrong kind."""
    known = {f.name for f in fields(Manifest)}
    for word, keys in (("misses", known - set(values)), ("has the unknown", set(values) - known)):
        if keys:
            raise DamagedError(f"{where}: the manifest {word} key {', '.join(sorted(keys))[:200]}. {_AGAIN}")
    for key, (kinds, expected) in _KINDS.items():
        if not isinstance(values[key], kinds):
            raise DamagedError(f"{where}: {key} must be {expected}; found {_shorten(values[key])}. {_AGAIN}")
    for key, (fits, expected) in _INNER.items():
        for name, value in (values[key] or {}).items():
            if not fits(name, value):
                raise DamagedError(
                    f"{where}: {key} must hold {expected}; found {_shorten({name: value})}. {_AGAIN}"
                )
    if values["encoding"] not in ("chat", "plain", None):
        raise DamagedError(
            f'{where}: encoding must be "chat", "plain" or null; found {_shorten(values["encoding"])}. {_AGAIN}'
        )


def _shorten(value: object) -> str:
    """A value as a message shows it."""
    try:
        shown = repr(value)
    except RecursionError:
        shown = type(value).__name__
    return shown if len(shown) <= 200 else shown[:200] + "…"


def _is_text(_: str, value: object) -> bool:
    return isinstance(value, str)


def _is_task(_: str, value: object) -> bool:
    return isinstance(value, dict) and all(isinstance(part, str) for part in value.values())


def _is_number(_: str, value: object) -> bool:
    if isinstance(value, int):  # JSON has whole numbers that no float can hold
        return not isinstance(value, bool) and value.bit_length() < 1024
    return isinstance(value, float)


def _is_part_of_labels(name: str, value: object) -> bool:
    return name != "names" or (isinstance(value, list) and all(isinstance(one, str) for one in value))


def _is_file(name: str, value: object) -> bool:
    inside = name and "\0" not in name and "\\" not in name and not name.startswith("/")
    return (
        bool(inside)
        and not {"", ".", ".."} & set(name.split("/"))
        and isinstance(value, str)
        and _SHA256.fullmatch(value) is not None
    )


_SHA256 = re.compile("[0-9a-f]{64}")
_INNER: dict[str, tuple[Callable[[str, object], bool], str]] = {
    "template": (_is_text, "texts by name"),
    "templates": (_is_task, "the texts of each task by name"),
    "labels": (_is_part_of_labels, "the labels' names as a list of texts"),
    "scores": (_is_number, "numbers by name"),
    "files": (_is_file, "SHA-256 hashes by paths inside the adapter's directory"),
}
_ABSENT = type(None)
#: Keys that are there only for some: adapters of several tasks, say, made of several, or that no server can run.
_OPTIONAL = ("templates", "encoding_options", "labels", "combination", "unservable")
_KINDS: dict[str, tuple[tuple[type, ...], str]] = {
    "method": ((str,), "text"),
    "base": ((str,), "text"),
    "template": ((dict, _ABSENT), "an object or null"),
    "templates": ((dict, _ABSENT), "an object or null"),
    "encoding_options": ((dict, _ABSENT), "an object or null"),
    "labels": ((dict, _ABSENT), "an object or null"),
    "combination": ((dict, _ABSENT), "an object or null"),
    "recipe": ((dict, _ABSENT), "an object or null"),
    "unservable": ((str, _ABSENT), "text or null"),
    "scores": ((dict,), "an object"),
    "files": ((dict,), "an object"),
    "created": ((str,), "text"),
    "manytune": ((str,), "text"),
}
