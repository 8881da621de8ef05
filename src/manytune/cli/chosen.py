"""Adapters that are chosen on the command line, by name or path: their templates, their encoder, their base."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from manytune.cli.bases import common_base
from manytune.errors import StoreError
from manytune.methods.config import PeftConfig
from manytune.store.adapters import StoredAdapter, open_adapter
from manytune.store.references import referenced
from manytune.store.run_directory import RunDirectory

if TYPE_CHECKING:
    from manytune.data.encoding.encode import Encoder
    from manytune.data.encoding.encoding_options import EncodingOptions
    from manytune.data.labels.label_kinds import AnyLabels
    from manytune.data.recipe import DataRecipe
    from manytune.data.templates import PromptTemplate, RowForm
    from manytune.store.base import Base

BASE_NAME = "base"
"""What tables call the untouched base."""


@dataclass(frozen=True)
class Chosen:
    """An adapter that was named on the command line.

    Attributes:
        name: What to call it: its name in the store, or the run's or the adapter's directory; all that was given for it
            if that isn't unique.
        run: The run directory; None for an adapter without one.
        stored: The adapter, its files checked.
        digest: Its digest in the store; None for one that was named by its path.
    """

    name: str
    run: Path | None
    stored: StoredAdapter
    digest: str | None = None

    @property
    def recipe(self) -> dict[str, Any]:
        """The recipe of the run that trained it; empty if it isn't known."""
        manifest = self.stored.manifest
        return dict(manifest.recipe) if manifest is not None and manifest.recipe is not None else {}

    @property
    def method(self) -> str:
        """The method's name."""
        if self.stored.manifest is not None:
            return self.stored.manifest.method
        return str(self._config().peft_type).lower()

    @property
    def base_spec(self) -> str | None:
        """Where its base is; None if its files don't say."""
        if "base" in self.recipe:
            return str(self.recipe["base"])
        if self.stored.manifest is not None:
            return self.stored.manifest.base
        name: str | None = self._config().base_model_name_or_path
        return name

    @property
    def labels(self) -> AnyLabels | None:
        """A classifier's classes, or a regression's numbers; None for a model that generates.

        Raises:
            DataError: Its manifest doesn't say them in a way that can be read.
        """
        from manytune.data.labels.label_kinds import labels_from

        manifest = self.stored.manifest
        return None if manifest is None or manifest.labels is None else labels_from(manifest.labels)

    @property
    def data(self) -> DataRecipe:
        """The data section of the recipe of the run that trained it.

        Raises:
            RecipeError: It can't be read.
        """
        from manytune.training.recipe import recipe_from

        # The rest of it may have keys of another release.
        kept: dict[str, Any] = {key: self.recipe[key] for key in ("task", "data") if key in self.recipe}
        return recipe_from({"data": {}, **kept}, where=f"{self.name}'s recipe").data

    @property
    def activations(self) -> Literal["float32", "base"]:
        """The dtype of hidden states that it was trained with on a base in half precision."""
        return "base" if self.recipe.get("training", {}).get("activations") == "base" else "float32"

    def templates(self, task: str | None = None) -> dict[str | None, PromptTemplate]:
        """The templates that it was trained with, by task; a single task's is under None.

        Args:
            task: The task that is wanted, or one whose promptsource templates are wanted; None for all.

        Raises:
            StoreError: Its files don't say, or there is no such task.
        """
        from manytune.data.nearest import did_you_mean
        from manytune.data.templates import PromptTemplate

        manifest = self.stored.manifest
        if self.labels is not None:
            raise StoreError(
                f"{self.name} answers a text with a label or a number, and has no prompt template. "
                "Evaluate it, or serve it and ask /v1/classify."
            )
        if manifest is not None and manifest.template is None and manifest.templates is None and self.recipe:
            raise StoreError(
                f"{self.name} was trained on conversations, so it has no prompt template for fields. Ask it with a "
                "message, or with a file of conversations."
            )
        if manifest is None or (manifest.template is None and manifest.templates is None):
            raise StoreError(
                f"{self.stored.path}: the adapter doesn't say which prompt template it was trained with, so rows can't "
                "be turned into its prompts. Adapters that manytune trains say so in manifest.json."
            )
        if manifest.template is not None:
            if task is not None:
                raise StoreError(
                    f"{self.name} was trained on a single task without a name; leave --task out."
                )
            return {None: PromptTemplate.from_dict(manifest.template)}
        named = manifest.templates or {}
        chosen = [name for name in named if task is None or name == task or name.startswith(f"{task}/")]
        if not chosen:
            raise StoreError(
                f"{self.name} has no task {task!r}{did_you_mean(str(task), named)} Its tasks: {', '.join(named)}."
            )
        return {name: PromptTemplate.from_dict(named[name]) for name in chosen}

    def template(self, task: str | None = None) -> PromptTemplate:
        """The one template that it was trained with, or a task's.

        Raises:
            StoreError: Its files don't say, or there are several to choose from.
        """
        found = self.templates(task)
        if len(found) > 1:
            listed = ", ".join(map(str, found))
            raise StoreError(f"{self.name} has several prompt templates; name one with --task: {listed}.")
        return next(iter(found.values()))

    def form(self, task: str | None = None) -> RowForm:
        """How rows became its examples: the one template that it was trained with, or its conversations' form.

        Raises:
            StoreError: Its files don't say, or there are several to choose from.
        """
        if not self.recipe:
            return self.template(task)
        data = self.data
        if (data.is_conversational or data.is_labelled) and task is None:
            return data.form((), self.name)
        for one in data.tasks:
            if one.format is not None and one.name == task:
                return one.forms(data.learn)[one.name]
        references = [one.references for one in data.tasks if task in (one.name, *one.prompt_templates())]
        return dataclasses.replace(self.template(task), references=(*references, data.references)[0])

    @property
    def encoding_options(self) -> EncodingOptions:
        """What decided, besides the chat template, how its training's prompts became tokens.

        Raises:
            DataError: Its manifest doesn't say it in a way that can be read.
        """
        from manytune.data.encoding.encoding_options import EncodingOptions

        manifest = self.stored.manifest
        kept = None if manifest is None else manifest.encoding_options
        template = self.stored.chat_template
        own = {} if template is None else {"chat_template": template}
        return EncodingOptions.from_dict({**(kept or {}), **own})

    def encoder(self, base: Base, *, new_tokens: int) -> Encoder:
        """The encoder that makes prompts as its training did; prompts are cut only if they were cut there.

        Args:
            base: Its base.
            new_tokens: The longest answer, for which a prompt that is cut leaves room.

        Raises:
            DataError: The base's chat template doesn't take what the adapter was trained with.
        """
        manifest = self.stored.manifest
        chat = None if manifest is None or manifest.encoding is None else manifest.encoding == "chat"
        return self.encoding_options.within(base.positions, new_tokens).encoder(
            base.tokenizer, chat=chat, encoder_decoder=base.is_encoder_decoder
        )

    def _config(self) -> Any:

        return PeftConfig.from_pretrained(self.stored.path)


def choose(adapters: Sequence[str], store: str | Path) -> tuple[Chosen, ...]:
    """Open every adapter that was named; a run names the adapter in it.

    Args:
        adapters: Runs' and adapters' directories; or names in the store, digests or their first digits.
        store: The store's directory, which needn't be there, or its URL.

    Raises:
        StoreError: One is neither a run nor an adapter, or isn't in the store, or a file is damaged.
    """
    found = []
    for adapter in adapters:
        meant = referenced(adapter, store)
        run = RunDirectory.of_adapter(meant.directory) if meant.digest is None else None
        path = run.path if run else Path(adapter)
        name = adapter if meant.digest else path.resolve().name
        if name == BASE_NAME:
            name = meant.digest[:12] if meant.digest else adapter
        found.append(Chosen(name, run.path if run else None, open_adapter(meant.directory), meant.digest))
    names = [chosen.name for chosen in found]
    return tuple(
        dataclasses.replace(chosen, name=adapter) if names.count(chosen.name) > 1 else chosen
        for chosen, adapter in zip(found, adapters, strict=True)
    )


def answering_device() -> str:
    """Where every command that answers puts its base: the GPU if there is one."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def load_common_base(chosen: Sequence[Chosen], override: str | None) -> tuple[Base, tuple[Chosen, ...]]:
    """Load the one base of all adapters and check that each was trained on it.

    Returns:
        The base; and the adapters, each with the chat template that it comes with.

    Raises:
        StoreError: The adapters name different bases or none, or it can't be loaded.
        BaseMismatchError: An adapter was trained on another base.
    """
    from manytune.store.base import load_base

    spec = override or common_base({one.name: one.base_spec for one in chosen})
    dtype = chosen[0].recipe.get("training", {}).get("dtype")
    # Packed as in training, unless some were trained on the unpacked base.
    forms = {one.recipe.get("weights") for one in chosen}
    weights = forms.pop() if len(forms) == 1 else None
    base = load_base(
        spec, dtype=None if dtype == "auto" else dtype, device=answering_device(), weights=weights
    )
    return base, checked_against(base, chosen)


def checked_against(base: Base, chosen: Sequence[Chosen]) -> tuple[Chosen, ...]:
    """Check that adapters were trained on a base; each is returned with the chat template that it comes with.

    Raises:
        BaseMismatchError: One was trained on another base.
    """
    return tuple(dataclasses.replace(one, stored=open_adapter(one.stored.path, base=base)) for one in chosen)
