"""The README.md next to a saved adapter: what it is, which base it needs, how to load it."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from torch import nn
from transformers import PreTrainedModel

from manytune.atomic import atomic_write
from manytune.errors import CheckpointError
from manytune.methods.config import PeftConfig, TaskType

_METADATA = re.compile(r"---\r?\n(.*?)^---\r?$\n?", re.DOTALL | re.MULTILINE)

_LOADERS: dict[str, str] = {
    TaskType.CAUSAL_LM: "AutoPeftModelForCausalLM",
    TaskType.SEQ_2_SEQ_LM: "AutoPeftModelForSeq2SeqLM",
    TaskType.SEQ_CLS: "AutoPeftModelForSequenceClassification",
    TaskType.TOKEN_CLS: "AutoPeftModelForTokenClassification",
    TaskType.QUESTION_ANS: "AutoPeftModelForQuestionAnswering",
    TaskType.FEATURE_EXTRACTION: "AutoPeftModelForFeatureExtraction",
}

_BODY = """
# {method} adapter for {base}

This directory holds an adapter: a small set of trained weights that change what a large frozen model does. It
is of no use without its base, {base}.

| file | what it is |
|---|---|
| `adapter_config.json` | the method's options, and the base it belongs to |
| `adapter_model.safetensors` | the trained weights |
| `manifest.json`, if present | the base's fingerprint, the prompt template, the recipe, scores and checksums |

## Load it

```python
from manytune import {loader}

model = {loader}.from_pretrained("path/to/this/directory")
```

The files have the format of HF PEFT, so `peft.{loader}.from_pretrained` loads them, too.

## What it was trained on

Describe the data here: where it comes from, its licence, how many examples, which prompt template turned it
into text. The template matters: prompts must be written the same way when the adapter is used.

## What it is good for

{scores}
"""
_NO_SCORES = """\
Describe the scores here, compared with those of the untouched base on the same examples, and what it should not be
used for."""
_SCORES = re.compile(r"<!-- scores -->.*?<!-- /scores -->", re.DOTALL)
_PIPELINES: dict[str, str] = {
    TaskType.CAUSAL_LM: "text-generation",
    TaskType.SEQ_2_SEQ_LM: "text2text-generation",
    TaskType.SEQ_CLS: "text-classification",
    TaskType.TOKEN_CLS: "token-classification",
    TaskType.QUESTION_ANS: "question-answering",
    TaskType.FEATURE_EXTRACTION: "feature-extraction",
}


def write_card(directory: Path, base: nn.Module, config: PeftConfig) -> None:
    """Write a model card, or bring the metadata of the one that is there up to date; its text stays.

    Raises:
        CheckpointError: The card that is there can't be read.
    """
    path = directory / "README.md"
    name = config.base_model_name_or_path
    data: dict[str, Any] = {}
    if path.exists():
        data, text = _parted(path)
    else:
        loader = _LOADERS.get(config.task_type or "", "AutoPeftModel")
        text = _BODY.format(
            method=config.peft_type, base=name or "its base model", loader=loader, scores=_NO_SCORES
        )
    present = data.get("tags") or []
    tags = {*([present] if isinstance(present, str) else present), *_base_tags(base)}
    tags.add(str(config.peft_type).lower())
    if isinstance(base, PreTrainedModel):
        tags.add("transformers")
    if name:
        data["base_model"] = name
        tags.add(f"base_model:adapter:{name}")
    data |= {"library_name": "peft", "tags": sorted(tags)}
    if config.task_type in _PIPELINES:
        data.setdefault("pipeline_tag", _PIPELINES[config.task_type])
    atomic_write(path, _joined(data, text))


def card_with_scores(path: Path, scores: Mapping[str, float], *, model: str, dataset: str) -> str | None:
    """A card with an adapter's scores, as a hub's `model-index` and as a table; its other text stays.

    Args:
        path: The card.
        scores: Numbers by name; those that are NaN or Inf are left out.
        model: What the adapter is called.
        dataset: What it was trained and measured on.

    Returns:
        The text; None if there is no card or there are no scores.

    Raises:
        CheckpointError: The card can't be read.
    """
    finite = {name: score for name, score in scores.items() if math.isfinite(score)}
    if not path.is_file() or not finite:
        return None
    data, text = _parted(path)
    result = {
        "task": {"type": data.get("pipeline_tag", "text-generation")},
        "dataset": {"name": dataset, "type": "local"},
        "metrics": [{"type": name, "name": name, "value": score} for name, score in finite.items()],
    }
    data["model-index"] = [{"name": model, "results": [result]}]
    rows = "\n".join(f"| {name} | {score:.4g} |" for name, score in finite.items())
    table = f"<!-- scores -->\n| score | value |\n|---|---|\n{rows}\n<!-- /scores -->"
    text = _SCORES.sub(lambda _: table, text.replace(_NO_SCORES, table), count=1)
    return _joined(data, text)


def _joined(data: Mapping[str, Any], text: str) -> str:
    return f"---\n{yaml.safe_dump(dict(data), allow_unicode=True)}---\n{text}"


def _parted(path: Path) -> tuple[dict[str, Any], str]:
    """A card's metadata and its text."""
    card = path.read_text(encoding="utf-8")
    found = _METADATA.match(card)
    if found is None:
        return {}, card
    try:
        data = yaml.safe_load(found.group(1))
    except yaml.YAMLError as error:
        data = error
    if data is not None and not isinstance(data, dict):
        raise CheckpointError(
            f"{path}: expected metadata as YAML keys and values between the first two lines of '---', found {data}. "
            "Mend or remove the card."
        )
    return data or {}, card[found.end() :]


def _base_tags(base: nn.Module) -> list[str]:
    tags = getattr(base, "model_tags", None)
    return [str(tag) for tag in tags] if isinstance(tags, (list, tuple)) else []
