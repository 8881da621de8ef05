"""The pooling of an encoder, read from sentence-transformers' files in its directory."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from manytune.engine.encoder import Pooling
from manytune.errors import ServeError

_MODES = {
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
}


def pooling_of(base: str) -> Pooling:
    """The pooling that the directory of a base specifies; the normalized mean if it specifies none.

    Raises:
        ServeError: It specifies one that isn't implemented.
    """
    directory = Path(base).expanduser()
    modules = directory / "modules.json"
    if not modules.is_file():
        return Pooling()
    kinds = {one["type"].rpartition(".")[2]: one.get("path", "") for one in json.loads(modules.read_text())}
    unknown = sorted(set(kinds) - {"Transformer", "Pooling", "Normalize"})
    options: dict[str, Any] = {}
    if "Pooling" in kinds:
        options = json.loads((directory / kinds["Pooling"] / "config.json").read_text())
    chosen = [key for key, value in options.items() if key.startswith("pooling_mode") and value]
    if unknown or len(chosen) > 1 or not set(chosen) <= set(_MODES):
        found = ", ".join([*unknown, *chosen])
        raise ServeError(
            f"{modules}: {found}: this server pools by {', '.join(_MODES.values())}, with or without normalization. "
            "Serve the base with sentence-transformers instead."
        )
    lengths = directory / "sentence_bert_config.json"
    max_tokens = json.loads(lengths.read_text()).get("max_seq_length") if lengths.is_file() else None
    mode: Any = _MODES[chosen[0]] if chosen else "mean"
    return Pooling(mode, "Normalize" in kinds, max_tokens)
