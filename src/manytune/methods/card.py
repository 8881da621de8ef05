"""The README.md beside a saved adapter: what it is, which base it needs, how to load it."""

from __future__ import annotations

from pathlib import Path

from torch import nn
from transformers import PreTrainedModel

from manytune.methods.config import PeftConfig, TaskType
from manytune.methods.files import write_atomically

_BODY = """
# {method} adapter for {base}

This directory holds an adapter: a small set of trained weights that change what a large frozen model does. It
is of no use without its base, {base}.

| file | what it is |
|---|---|
| `adapter_config.json` | the method's options, and the base it belongs to |
| `adapter_model.safetensors` | the trained weights |
| `manifest.json`, if present | the base's fingerprint, the prompt template, the recipe, scores and checksums
|

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

Describe the scores here, beside those of the untouched base on the same examples, and what it should not be
used for.
"""


def write_card(directory: Path, base: nn.Module, config: PeftConfig) -> None:
    """Write a model card with its metadata, unless there is one already."""
    path = directory / "README.md"
    if path.exists():
        return
    name = config.base_model_name_or_path
    metadata = ["---", *([f"base_model: {name}"] if name else []), "library_name: peft", "tags:"]
    metadata += [f"- base_model:adapter:{name}"] if name else []
    metadata += [f"- {str(config.peft_type).lower()}"]
    metadata += ["- transformers"] if isinstance(base, PreTrainedModel) else []
    metadata += ["pipeline_tag: text-generation"] if config.task_type == TaskType.CAUSAL_LM else []
    loader = "AutoPeftModelForCausalLM" if config.task_type == TaskType.CAUSAL_LM else "AutoPeftModel"
    body = _BODY.format(method=config.peft_type, base=name or "its base model", loader=loader)
    write_atomically(path, "\n".join([*metadata, "---", body]).encode())
