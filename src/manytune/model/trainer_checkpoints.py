"""Checkpoints of transformers' Trainer that hold adapters alone, where `peft` isn't installed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from manytune.model.peft_model import PeftModel


class AdapterCheckpoints:
    """Lets a Trainer save adapters alone, resume from them and load the best: `class T(AdapterCheckpoints, Trainer)`.

    Where `peft` is installed, transformers' Trainer does so by itself; without it, it knows no adapters, would write
    the base into each checkpoint, and fails where the base's embeddings are tied. With a model of another class, or
    one that FSDP or DeepSpeed shards, everything is left to the Trainer. `training_args.bin`, a pickle that resuming
    doesn't read, isn't written.

    Example:
        ```python
        class AdapterTrainer(AdapterCheckpoints, Trainer): ...
        ```
    """

    # What a Trainer has.
    model: Any
    args: Any
    state: Any
    processing_class: Any
    accelerator: Any
    is_fsdp_enabled: bool
    is_deepspeed_enabled: bool

    def _adapted(self) -> PeftModel | None:
        if self.is_fsdp_enabled or self.is_deepspeed_enabled:
            return None
        model = self.accelerator.unwrap_model(self.model, keep_torch_compile=False)
        return model if isinstance(model, PeftModel) else None

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        model = self._adapted()
        if model is None:
            super()._save(output_dir, state_dict)  # type: ignore[misc]
            return
        if not self.args.should_save:
            return
        directory = Path(self.args.output_dir if output_dir is None else output_dir)
        model.save_pretrained(directory)
        tokenizer = self.processing_class or getattr(getattr(self, "data_collator", None), "tokenizer", None)
        if tokenizer is not None:
            tokenizer.save_pretrained(directory)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        adapted = self._adapted()
        if adapted is None:
            super()._load_from_checkpoint(resume_from_checkpoint, model)  # type: ignore[misc]
        else:
            _load(adapted, resume_from_checkpoint)

    def _load_best_model(self) -> None:
        adapted = self._adapted()
        if adapted is None:
            super()._load_best_model()  # type: ignore[misc]
        else:
            _load(adapted, self.state.best_model_checkpoint)


def _load(model: PeftModel, checkpoint: str) -> None:
    """Fill every adapter of a model from a checkpoint that `_save` wrote."""
    for name in model.peft_config:
        model.load_adapter(checkpoint, name, is_trainable=True)
