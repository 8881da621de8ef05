"""What an adapter's directory says about itself: `manifest.json`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Literal, cast

from manytune.errors import StoreError
from manytune.store.fingerprint import Fingerprint

MANIFEST_NAME = "manifest.json"
FORMAT = 1

Encoding = Literal["chat", "plain"]


@dataclass(frozen=True)
class Manifest:
    """What was trained, on what, with what, and what the files must be.

    Attributes:
        method: The method's name, such as "lora".
        base: What the base was called when the adapter was trained: a hub id, a directory or a file.
        fingerprint: What recognises that base.
        template: The prompt template's parts by name (`prompt`, `completion`, `system`, `group_by`); None
            if there was none.
        encoding: Whether prompts went through the tokenizer's chat template or not; None if it isn't known.
        recipe: The recipe of the run; None if there was none.
        scores: Measured numbers by name.
        files: The SHA-256 of each file that decides what the adapter computes, by name.
        created: When, in UTC, as `2026-01-31T12:00:00Z`.
        manytune: The release that wrote it.
        templates: For several tasks, the template's parts of each by the task's name; `template` is None
            then. None for a single task.
        combination: For an adapter that was combined from others: the kind, and of each its content hash and weight.
            None for one that was trained.
        format: The version of this description.
    """

    method: str
    base: str
    fingerprint: Fingerprint
    template: Mapping[str, str] | None
    encoding: Encoding | None
    recipe: Mapping[str, Any] | None
    scores: Mapping[str, float]
    files: Mapping[str, str]
    created: str
    manytune: str
    templates: Mapping[str, Mapping[str, str]] | None = None
    combination: Mapping[str, Any] | None = None
    format: int = field(default=FORMAT)

    def to_json(self) -> str:
        """As it is written to `manifest.json`."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        values["fingerprint"] = self.fingerprint.to_dict()
        for key in ("templates", "combination"):
            if values[key] is None:
                del values[key]  # only adapters of several tasks, or out of several adapters, have the key
        ordered = {"format": values.pop("format"), **values}
        return json.dumps(ordered, indent=2, ensure_ascii=False, default=dict) + "\n"

    @classmethod
    def from_json(cls, text: str, *, where: str) -> Manifest:
        """Read what `to_json` wrote.

        Args:
            text: The content of a `manifest.json`.
            where: The file, for messages.

        Raises:
            StoreError: It isn't JSON, has another format, or a key is missing, unknown or of the wrong
                kind.
        """
        try:
            values = json.loads(text)
        except ValueError as error:
            raise StoreError(f"{where}: expected JSON: {error}.") from error
        if not isinstance(values, dict):
            raise StoreError(f"{where}: expected a JSON object; found {type(values).__name__}.")
        values.setdefault("templates", None)
        values.setdefault("combination", None)
        if values.get("format") != FORMAT:
            raise StoreError(
                f"{where}: expected manifest format {FORMAT}; found {values.get('format')!r}. "
                "A newer manytune may have written it: update manytune, or train the adapter again."
            )
        known = {f.name for f in fields(cls)}
        for word, keys in (("misses", known - set(values)), ("has the unknown", set(values) - known)):
            if keys:
                raise StoreError(f"{where}: the manifest {word} key {', '.join(sorted(keys))}.")
        for key, (kinds, expected) in _KINDS.items():
            if not isinstance(values[key], kinds):
                raise StoreError(f"{where}: {key} must be {expected}; found {values[key]!r}.")
        if values["encoding"] not in ("chat", "plain", None):
            raise StoreError(
                f'{where}: encoding must be "chat", "plain" or null; found {values["encoding"]!r}.'
            )
        try:
            recognised = Fingerprint.from_dict(values.pop("fingerprint"))
        except StoreError as error:
            raise StoreError(f"{where}: {error}") from error
        return cls(fingerprint=recognised, **cast(dict[str, Any], values))


_ABSENT = type(None)
_KINDS: dict[str, tuple[tuple[type, ...], str]] = {
    "method": ((str,), "text"),
    "base": ((str,), "text"),
    "template": ((dict, _ABSENT), "an object or null"),
    "templates": ((dict, _ABSENT), "an object or null"),
    "combination": ((dict, _ABSENT), "an object or null"),
    "recipe": ((dict, _ABSENT), "an object or null"),
    "scores": ((dict,), "an object"),
    "files": ((dict,), "an object"),
    "created": ((str,), "text"),
    "manytune": ((str,), "text"),
}
