"""What is read of an adapter's directory before the server reads it: each file by the functions that the server uses.

What these refuse is refused. What only a single request would be refused for, such as a template that doesn't fit its
fields, is tried all the same, for the time and memory that it takes, and its error is left to the request.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from manytune.chat_rendering import render_chat
from manytune.data.rendering import named_fields
from manytune.data.templates import PromptTemplate
from manytune.examination.expressions import compile_expressions
from manytune.examination.limits import limit_met
from manytune.examination.plain_files import check_files
from manytune.methods.config import CONFIG_NAME, PeftConfig
from manytune.store.content_checks import check_content
from manytune.store.contents import contents_of, refuse_links
from manytune.store.manifest import MANIFEST_NAME, Manifest
from manytune.store.tokenizer_files import template_in

_PROBE = "manytune"
_CONVERSATION = [{"role": "user", "content": _PROBE}, {"role": "assistant", "content": _PROBE}]
_SPECIAL_TOKENS = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}


@dataclass(frozen=True)
class Task:
    """What is asked.

    Attributes:
        directory: An adapter's directory.
        root: The store that it is in; None for a source, from which it is to be copied.
        max_bytes: Largest size of a stored adapter's tensors.
    """

    directory: str
    root: str | None = None
    max_bytes: int = 0


def examine_directory(task: Task) -> dict[str, Any]:
    """Read an adapter's directory.

    Returns:
        `fields`: what its prompt templates name, sorted.

    Raises:
        ManytuneError: It is refused.
    """
    directory = Path(task.directory)
    if task.root is not None:
        check_files(Path(task.root), directory, max_bytes=task.max_bytes)
    contents = contents_of(directory)
    if task.root is None:
        refuse_links(directory, (*contents.files, *contents.tokenizer))
    for name in contents.files:
        check_content(directory / name)
    if CONFIG_NAME in contents.files:
        compile_expressions(PeftConfig.from_json_file(directory / CONFIG_NAME))
    fields: set[str] = set()
    if MANIFEST_NAME in contents.files:
        fields = _try_manifest(Manifest.read(directory / MANIFEST_NAME))
    if task.root is None:
        _try_tokenizer(directory, contents.tokenizer)
    return {"fields": sorted(fields)}


def _try_manifest(manifest: Manifest) -> set[str]:
    """Fill its prompt templates, and apply its chat template; returns the fields that the former name."""
    fields: set[str] = set()
    for parts in manifest.templates_by_task.values():
        named: set[str] = set()
        with _left_to_requests():
            texts = [parts[part] for part in ("prompt", "system") if part in parts]
            named = {field for text in texts for field in named_fields(text)} - {"fields"}
        fields |= named
        with _left_to_requests():
            PromptTemplate.from_dict(parts).render_prompt(dict.fromkeys(named, _PROBE))
    _try_chat_template((manifest.encoding_options or {}).get("chat_template"))
    return fields


def _try_chat_template(template: object) -> None:
    if not isinstance(template, str):
        return
    for messages, asks in ((_CONVERSATION[:1], True), (_CONVERSATION, False)):
        with _left_to_requests():
            render_chat(template, messages, _SPECIAL_TOKENS, add_generation_prompt=asks)


def _try_tokenizer(directory: Path, names: Iterable[str]) -> None:
    """Read the files of a tokenizer next to an adapter, as far as that takes no model library."""
    for name in names:
        with _left_to_requests():
            if name == "tokenizer.json":
                from tokenizers import Tokenizer

                Tokenizer.from_file(str(directory / name))
            elif name.endswith(".json"):
                json.loads((directory / name).read_bytes())
    with _left_to_requests():
        _try_chat_template(template_in(directory, [*names]))


@contextmanager
def _left_to_requests() -> Iterator[None]:
    """Whatever is wrong here is said where it is used; a limit ends the examination."""
    try:
        yield
    except Exception as error:  # foreign programs and foreign files: anything
        if limit_met(error) is not None:
            raise
