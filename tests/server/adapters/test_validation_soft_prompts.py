"""How a soft prompt began is past when it is served: its text is prose, and no tokenizer is loaded for it."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
from tests.store.adapters_made import make_adapter
from tests.store.tiny import tiny_model

from manytune.errors import ConfigError
from manytune.server.adapters.validation import MetaBase
from manytune.store.base import Base
from manytune.store.resident import ResidentAdapter, read_resident

START = {
    "prompt_tuning_init": "TEXT",
    "prompt_tuning_init_text": "(a+)+ is prose here, ***not*** a pattern {of} [modules] " * 20,
    "tokenizer_name_or_path": "nobody/has-this",
}
METHODS: dict[str, dict[str, Any]] = {
    "prompt-tuning": {"num_virtual_tokens": 3},
    "combined": {
        "weights": {"name": "lora", "r": 2, "target_modules": ["q_proj"]},
        "prompt": {"name": "prompt-tuning", "num_virtual_tokens": 3},
    },
}


def with_start(adapter: ResidentAdapter, **options: Any) -> ResidentAdapter:
    """The adapter with another start in its options, and as one that will train: so a file may say."""
    config: Any = adapter.config
    if hasattr(config, "prompt"):
        changed = dataclasses.replace(config, prompt=dataclasses.replace(config.prompt, **options))
    else:
        changed = dataclasses.replace(config, **options)
    changed.inference_mode = False
    return dataclasses.replace(adapter, config=changed)


@pytest.mark.parametrize("method", METHODS)
def test_a_prompt_that_began_as_a_text_is_checked_without_its_tokenizer(
    method: str, tmp_path: Path, base: Base
) -> None:
    adapter = read_resident(make_adapter(tmp_path / "a", base, method=method, **METHODS[method]))
    MetaBase(tiny_model()).check(with_start(adapter, **START))


def test_other_texts_are_patterns_in_a_combination_too(tmp_path: Path, base: Base) -> None:
    adapter = read_resident(make_adapter(tmp_path / "a", base, method="combined", **METHODS["combined"]))
    config: Any = adapter.config
    config.weights.target_modules = "(?=a)(a+)+q_proj"
    with pytest.raises(
        ConfigError, match=r"weights\.target_modules='\(\?=a\)\(a\+\)\+q_proj': a server takes"
    ):
        MetaBase(tiny_model()).check(adapter)
