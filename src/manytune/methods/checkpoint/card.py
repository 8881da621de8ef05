"""The README.md next to a saved adapter: what it is, which base it needs, how to load it."""

from __future__ import annotations

import re
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

Describe the scores here, compared with those of the untouched base on the same examples, and what it should not be
used for.
"""


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
        text = _BODY.format(method=config.peft_type, base=name or "its base model", loader=loader)
    present = data.get("tags") or []
    tags = {*([present] if isinstance(present, str) else present), *_base_tags(base)}
    tags.add(str(config.peft_type).lower())
    if isinstance(base, PreTrainedModel):
        tags.add("transformers")
    if name:
        data["base_model"] = name
        tags.add(f"base_model:adapter:{name}")
    data |= {"library_name": "peft", "tags": sorted(tags)}
    if config.task_type == TaskType.CAUSAL_LM:
        data.setdefault("pipeline_tag", "text-generation")
    head = yaml.safe_dump(data, allow_unicode=True)
    atomic_write(path, f"---\n{head}---\n{text}")


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
