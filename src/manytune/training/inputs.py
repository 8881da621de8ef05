"""What a recipe names, read and loaded: the base, the rows, their token ids."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from transformers import set_seed

from manytune.data.dataset import Splits, TokenSplits, encode_splits, read_splits
from manytune.data.encoding.encoding_cache import EncodingCache
from manytune.data.labels.label_kinds import AnyLabels
from manytune.data.labels.labelled_dataset import encode_labelled
from manytune.data.labels.word_labels import WordLabels
from manytune.errors import DataError, RunError
from manytune.model.attach import get_peft_model
from manytune.model.classifier import renew_head, train_new_modules
from manytune.model.peft_model import PeftModel
from manytune.store.base import Base, load_base
from manytune.store.classifier_base import classifier_base, text_positions
from manytune.store.quantization import require_trainable
from manytune.training.adapter_memory import require_fitting
from manytune.training.dates import dated
from manytune.training.loop.rows import TrainingRows
from manytune.training.precision import hold_trained_weights, resolve_dtype, say_precision
from manytune.training.recipe import Recipe
from manytune.training.starting_adapter import StartingAdapter, starting_adapter


@dataclass(frozen=True, kw_only=True)
class RunInputs:
    """What a training starts from.

    Attributes:
        recipe: The recipe, as it is run: with the dtype, and with the date if the base's chat template writes one.
        base: The base, with nothing attached.
        splits: The rows, rendered.
        data: Their token ids.
        labels: A classifier's classes, or a regression's numbers; None for a model that generates.
        adapter: The adapter that it starts from; None for new weights.
    """

    recipe: Recipe
    base: Base
    splits: Splits
    data: TokenSplits
    labels: AnyLabels | None = None
    adapter: StartingAdapter | None = None

    @property
    def rows(self) -> TrainingRows:
        """The sequences as the training loop takes them."""
        pad_id = self.base.tokenizer.pad_token_id
        return TrainingRows(
            train=self.data.train,
            validation=self.data.validation,
            mixture=self.data.mixture,
            pad_id=pad_id if isinstance(pad_id, int) else 0,
            by_length=self.labels is not None,
        )


def read_inputs(
    recipe: Recipe,
    *,
    base: Base | None = None,
    date: str | None = None,
    notify: Callable[[str], None] | None = None,
    on_cpu: bool = False,
) -> RunInputs:
    """Read the rows, load the base, and encode the rows for it.

    Args:
        recipe: The recipe.
        base: Its base, if it is loaded already; None loads it.
        date: The date of the run or experiment that is continued, for a chat template that writes one; None for now.
        notify: Receives a line about each stage of loading.
        on_cpu: Load the base into the CPU's memory, wherever it trains: its parts go to GPUs when it is sharded.

    Raises:
        DataError: A row or a file can't be used.
        StoreError: The base can't be loaded.
        RunError: The base is an encoder, which doesn't generate; or one of base and rows is of images, the other of
            texts.
        ConfigError: transformers has no classifier of the base's kind.
        BaseMismatchError: The adapter to start from was trained on another base.
        ShortMemoryError: The method's new weights and their gradients exceed the free memory.
    """
    say = notify or (lambda _: None)
    splits = read_splits(recipe.data)
    asked, recipe = recipe.training, resolve_dtype(recipe, base=base.model if base else None)
    if base is None:
        base = load_base(
            recipe.base,
            dtype=recipe.training.dtype,
            device="cpu" if on_cpu else _device(recipe),
            weights=recipe.weights,
            notify=say,
        )
        if base.fingerprint.packing is not None:
            say(f"the base's linear layers are packed as {base.fingerprint.packing}")
    say_precision(asked, recipe.training, say)
    if recipe.task != "generation":
        return _classifier_inputs(recipe, base, splits)
    if base.is_encoder:
        raise RunError(
            f"base {recipe.base!r} is an encoder, which writes no text. For task: classification say so in the recipe, "
            "with data.text or data.image and data.label; else name a base that generates."
        )
    recipe = dated(recipe, base.tokenizer, date)
    if splits.format is not None:  # kept with the run, so that later rows are read in the same way
        recipe = recipe.model_copy(update={"data": recipe.data.model_copy(update={"format": splits.format})})
    adapter = starting_adapter(recipe, base=base, notify=say)
    data = encode_splits(
        splits,
        recipe.data,
        base.tokenizer,
        encoder_decoder=base.is_encoder_decoder,
        cache=EncodingCache(notify=say) if recipe.data.cache else None,
    )
    _require_positions(data, base, recipe)
    if adapter is None:
        require_fitting(base.model, recipe.method, _task_type(base))
    return RunInputs(recipe=recipe, base=base, splits=splits, data=data, adapter=adapter)


def _require_positions(data: TokenSplits, base: Base, recipe: Recipe) -> None:
    """Refuse rows that are longer than what the base reads, with the adapter's virtual tokens before them.

    Tables of positions end there; rotary positions go on, where the base has learned nothing, and no server reads on.
    """
    config = recipe.method.peft_config("SEQ_2_SEQ_LM" if base.is_encoder_decoder else "CAUSAL_LM")
    virtual = (getattr(config, "num_virtual_tokens", None) or 0) if config.is_prompt_learning else 0
    longest = max((*data.train, *data.validation), key=lambda row: len(row.input_ids))
    if base.positions is None or len(longest.input_ids) + virtual <= base.positions:
        return
    before = f" with {virtual} virtual tokens before them" if virtual else ""
    room = base.positions - virtual
    advice = (
        f"Set data.max_length to {room} or less, and data.overflow to what becomes of longer rows"
        if room > 1
        else "Lower method.num_virtual_tokens"
    )
    raise DataError(
        f"{len(longest.input_ids)} tokens{before} are more than the {base.positions} positions of base {base.name!r}. "
        f"{advice}",
        where=f"{longest.source}:{longest.row}",
    )


def _classifier_inputs(recipe: Recipe, base: Base, splits: Splits) -> RunInputs:
    if (recipe.data.image is None) != (base.images is None):
        reads, key = ("text", "data.text") if base.images is None else ("images", "data.image")
        raise RunError(f"base {recipe.base!r} reads {reads}; give {key}, or name a base that reads the rows.")
    if base.images is not None and recipe.method.peft_config("SEQ_CLS").is_prompt_learning:
        raise RunError(
            f"{recipe.method.name} puts virtual tokens before a text, and base {recipe.base!r} reads images. Use a "
            "method in the layers, such as lora."
        )
    data, labels = encode_labelled(
        splits,
        recipe.data,
        base.tokenizer,
        positions=text_positions(base),
        class_weights=recipe.training.class_weights,
        images=base.images,
        scale=recipe.training.scale,
    )
    base = classifier_base(base, labels.names, of_words=isinstance(labels, WordLabels))
    require_fitting(base.model, recipe.method, _task_type(base, labels))
    return RunInputs(recipe=recipe, base=base, splits=splits, data=data, labels=labels)


def attach_method(inputs: RunInputs) -> PeftModel:
    """Attach the recipe's method to the base. Its first weights come from the recipe's seed, or its adapter.

    Mutates: the base's model, and every random generator, which is seeded.

    Raises:
        ConfigError: An option of the method can't be used with this base, or nothing trains on one that is packed so.
        RunError: It would train the base's own weights in bfloat16.
    """
    recipe, base = inputs.recipe, inputs.base
    require_trainable(base.model)
    set_seed(recipe.training.seed)
    if inputs.labels is not None:
        config = recipe.method.peft_config(_task_type(base, inputs.labels))
        renew_head(base.model)
        train_new_modules(base.model, config)
        model = get_peft_model(base.model, config)
    elif inputs.adapter is not None:
        model = inputs.adapter.attach(base, recipe)
    else:
        model = get_peft_model(base.model, recipe.method.peft_config(_task_type(base)))
    hold_trained_weights(model, recipe)
    return model


def _task_type(base: Base, labels: AnyLabels | None = None) -> str:
    if labels is not None:
        return "TOKEN_CLS" if isinstance(labels, WordLabels) else "SEQ_CLS"
    return "SEQ_2_SEQ_LM" if base.is_encoder_decoder else "CAUSAL_LM"


def _device(recipe: Recipe) -> str:
    """Where the training will be: what is packed isn't moved later."""
    return "cuda" if torch.cuda.is_available() and recipe.training.device != "cpu" else "cpu"
