"""A tiny base that generates letters, a store with adapters of it, and the answers of an engine without a server."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from tests.store.adapters_made import make_adapter
from tests.store.tiny import tiny_model, tiny_tokenizer

from manytune.data.encoding.encode import Encoder
from manytune.data.templates import Segment
from manytune.engine.engine import Engine
from manytune.engine.options import EngineOptions
from manytune.engine.request import Completion, Request, SamplingParams
from manytune.server.app import create_app
from manytune.server.settings import Settings
from manytune.store.base import Base, load_base
from manytune.store.resident import read_resident
from manytune.store.store import AdapterStore

CHAT = (
    "{% for m in messages %}{{ m.role }} {{ m.content }}<end>{% endfor %}"
    "{% if add_generation_prompt %}assistant {% endif %}"
)
LIMIT = 12


def save_base(directory: Path) -> Base:
    """The base, with a chat template."""
    model = tiny_model()
    for parameter in model.parameters():
        parameter.data *= 6  # else every answer is one letter again and again
    model.save_pretrained(directory)
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = CHAT
    tokenizer.save_pretrained(directory)
    return load_base(str(directory))


def fill_store(directory: Path, base: Base, names: tuple[str, ...] = ("one", "two")) -> AdapterStore:
    """A store with an adapter of each name; they were trained without the chat template."""
    store = AdapterStore(directory / "store")
    for seed, name in enumerate(names):
        store.add(make_adapter(directory / f"made-{name}", base, seed=seed), name=name)
    return store


def new_version(store: AdapterStore, directory: Path, base: Base, name: str, seed: int) -> None:
    """Put another adapter in the place of a name."""
    store.add(make_adapter(directory / f"made-{name}-{seed}", base, seed=seed), name=name, move=True)


def app_of(base: Base, store: AdapterStore, keys: Any = None, **settings: Any) -> Any:
    """The application, with limits as small as the base."""
    values = {
        "base_name": "base",
        "max_answer_tokens": 40,
        "watch_seconds": 3600.0,
        "drain_seconds": 5.0,
        **settings,
    }
    return create_app(base, store, Settings(**values), keys, EngineOptions(max_batch=8, weights="plain"))


def routes_of(app: Any) -> list[tuple[str, str]]:
    """Every method and path that the application answers, with `one` in place of parameters."""
    found = [("GET", "/"), ("GET", "/operator"), ("GET", "/openapi.json")]
    for path, methods in app.openapi()["paths"].items():
        found += [(method.upper(), re.sub(r"\{.*?\}", "one", path)) for method in methods]
    return found


def plain_ids(base: Base, text: str) -> tuple[int, ...]:
    """A prompt as the adapters had it in training."""
    return Encoder(base.tokenizer, max_length=None, chat=False).prompt_ids([Segment("user", text)])


def chat_ids(base: Base, text: str) -> tuple[int, ...]:
    """A prompt as the base has it."""
    return Encoder(base.tokenizer, max_length=None).prompt_ids([Segment("user", text)])


def alone(
    base: Base, store: AdapterStore, name: str | None, ids: tuple[int, ...], **params: Any
) -> Completion:
    """The answer of an engine that has no other request."""
    params.setdefault("max_new_tokens", LIMIT)
    end_ids = [Encoder(base.tokenizer, max_length=None).end_id]
    engine = Engine(base.model, base.tokenizer, EngineOptions(weights="plain"), end_ids=end_ids)
    if name is not None:
        engine.add_adapter(name, read_resident(store.path(name)))
    (completion,) = engine.generate([Request("only", ids, SamplingParams(**params), name)])
    return completion
