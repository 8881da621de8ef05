"""One adapter out of several, and a whole model out of a base and its adapters."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from manytune.atomic import atomic_directory, require_absent
from manytune.errors import StoreError
from manytune.methods.arithmetic.combination import Combination
from manytune.methods.config import PeftConfig
from manytune.methods.registry import method_of
from manytune.model.peft_model import PeftModel
from manytune.store.adapters import StoredAdapter, open_adapter, save_adapter
from manytune.store.base import Base
from manytune.store.base_source import without_bars
from manytune.store.digests import digest_of
from manytune.store.manifest import Description, Manifest
from manytune.store.servability import note_verdict


def combine_adapters(
    sources: Sequence[Path], weights: Sequence[float], target: Path, base: Base, how: Combination
) -> Manifest:
    """Write the weighted combination of adapters of one base; see `methods/arithmetic/combination.py`.

    The prompt template is kept if all of them have the same. Scores aren't: nobody has measured the combination.

    Args:
        sources: Their directories.
        weights: One for each; a negative one negates what the adapter adds.
        target: The new adapter's directory.
        base: Their base; left as it was.
        how: The kind of combination.

    Raises:
        StoreError: A directory holds no adapter or a damaged one.
        BaseMismatchError: One was trained on another base.
        AdapterError, ConfigError: They have no sum of this kind.
    """
    stored = [open_adapter(source, base=base) for source in sources]
    manifests = [one.manifest for one in stored if one.manifest is not None]
    model, names = _loaded(sources, base)
    try:
        model.add_weighted_adapter(
            names,
            weights,
            "default",
            combination_type=how.kind,
            svd_rank=how.svd_rank,
            svd_clamp=how.svd_clamp,
            density=how.density,
            majority_sign_method=how.sign,
        )
        config = model.peft_config["default"]
        alike = manifests if len(manifests) == len(stored) else []
        one = alike[0] if alike and all(_asks_alike(alike[0], other) for other in alike) else None
        manifest = save_adapter(
            _Combined(model),
            target,
            Description(
                method=method_of(config).name,
                base=base.name,
                fingerprint=base.fingerprint,
                template=one.template if one is not None else None,
                templates=one.templates if one is not None else None,
                encoding=one.encoding if one is not None else None,
                encoding_options=one.encoding_options if one is not None else None,
                combination={"kind": how.kind, "adapters": _parts(stored, weights)},
            ),
        )
        note_verdict(target, base.model)
        return manifest
    finally:
        model.unload()


def merge_adapters(sources: Sequence[Path], target: Path, base: Base) -> None:
    """Write a base with adapters in its weights as a plain model, with its tokenizer and the adapters' chat template.

    Args:
        sources: The adapters' directories; several are written in one after another.
        target: The model's directory, which must not exist.
        base: Their base. Its model is used up: afterwards it has the merged weights.

    Raises:
        StoreError: A directory holds no adapter or a damaged one, or the base is packed.
        TargetExistsError: The target exists.
        BaseMismatchError: An adapter was trained on another base.
        AdapterError: An adapter isn't in the weights, as a soft prompt isn't; or the merged weights aren't finite.
    """
    require_absent(target)
    if base.fingerprint.packing is not None:
        raise StoreError(
            f"base {base.name!r}: its weights are packed as {base.fingerprint.packing}, and a sum of them and an "
            "adapter doesn't fit into so few bits. Merge into the base that was packed: name it with --base."
        )
    templates = [open_adapter(source, base=base).chat_template for source in sources]
    model, names = _loaded(sources, base)
    merged = model.merge_and_unload(safe_merge=True, adapter_names=names)
    with atomic_directory(target) as directory, without_bars():
        merged.save_pretrained(directory)  # type: ignore[operator]
        tokenizer = copy.copy(base.tokenizer)
        if templates[-1] is not None and set(templates) == {templates[-1]}:
            tokenizer.chat_template = templates[-1]
        tokenizer.save_pretrained(directory)


@dataclass(frozen=True)
class _Combined:
    """The one adapter of a model that is to be saved."""

    model: PeftModel

    def save_pretrained(self, save_directory: str) -> None:
        self.model.save_pretrained(save_directory, selected_adapters=["default"])


def _loaded(sources: Sequence[Path], base: Base) -> tuple[PeftModel, list[str]]:
    names = [f"adapter{number}" for number in range(len(sources))]
    config = PeftConfig.from_pretrained(sources[0])
    model = PeftModel.from_pretrained(base.model, sources[0], names[0], config=config, strict=True)
    for name, source in zip(names[1:], sources[1:], strict=True):
        model.load_adapter(source, name, strict=True)
    return model, names


def _parts(stored: Sequence[StoredAdapter], weights: Sequence[float]) -> list[dict[str, object]]:
    """What a combination is made of, by digest; an adapter without a manifest by its directory."""
    return [
        {"adapter": str(one.path) if one.manifest is None else digest_of(one.manifest), "weight": weight}
        for one, weight in zip(stored, weights, strict=True)
    ]


def _asks_alike(one: Manifest, other: Manifest) -> bool:
    keys = ("template", "templates", "encoding", "encoding_options")
    return all(getattr(one, key) == getattr(other, key) for key in keys)
