"""Which adapters of a store vLLM can serve, and why not the others.

The rules are those of vLLM's own checks when it loads an adapter, and further ones for what some of its releases leave
out without a word: a start from the base's weights, LoRA on an output head that is the embeddings' table, and, before
release 0.32, ranks and alphas that differ between layers.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import Any

import torch

from manytune.data.encoding.encoding_options import EncodingOptions
from manytune.errors import ConfigError, DataError, ManytuneError, StoreError, UnreachableError
from manytune.examination.examiner import shared_examiner
from manytune.examination.plain_files import check_files
from manytune.methods.checkpoint.format import TENSORS_NAME
from manytune.methods.config import PeftConfig
from manytune.methods.registry import method_of
from manytune.server.adapters.examined import Examined
from manytune.server.adapters.validation import MetaBase, check_options
from manytune.store.adapters import check_base
from manytune.store.base import Base
from manytune.store.entry import StoreEntry
from manytune.store.manifest import Manifest
from manytune.store.resident import ResidentAdapter
from manytune.store.servability import is_for_a_head
from manytune.store.store import AdapterStore
from manytune.store.tensor_header import read_header
from manytune.store.tensors_in_memory import DTYPES

#: Values of vLLM's --max-lora-rank.
RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
_MOST_BYTES = 4 << 30
_HEAD = ".lm_head.lora_"


@dataclass(frozen=True)
class Verdict:
    """Whether vLLM can serve an adapter.

    Attributes:
        rank: The rank that it needs room for; 0 if it can't be served.
        nbytes: The size of its tensors in its file; 0 if it can't be served.
        reason: Why it can't be served, and what to do instead; None if it can.
        notes: What will be different from manytune's own server.
    """

    rank: int = 0
    nbytes: int = 0
    reason: str | None = None
    notes: tuple[str, ...] = ()


class VllmVerdicts:
    """What vLLM makes of adapters, by digest. Any number of threads may use it.

    Args:
        store: Where they are kept.
        base: Their base; its model may be on the meta device.
        patterns: Whether this vLLM reads `rank_pattern` and `alpha_pattern`.

    Attributes:
        examined: What is known of them from their examination, before which nothing of them is read.
        most_rank: The rank that vLLM was started for; None before that.
    """

    def __init__(self, store: AdapterStore, base: Base, *, patterns: bool) -> None:
        self.examined = Examined(store, shared_examiner(), max_bytes=_MOST_BYTES)
        self._store = store
        self._base = base
        self._patterns = patterns
        self._meta = MetaBase(base.model)
        self._tied = bool(getattr(base.model.config.get_text_config(), "tie_word_embeddings", False))
        self._trying = threading.Lock()
        self._found: dict[str, Verdict] = {}
        self._noted: dict[str, str] = {}
        self.most_rank: int | None = None

    def of(self, entry: StoreEntry) -> str | None:
        """Why vLLM can't serve an adapter, and what to do instead; None if nothing speaks against it."""
        return self._reason(self.verdict(entry))

    def verdict(self, entry: StoreEntry) -> Verdict:
        """The same as a whole, whatever rank vLLM was started for."""
        with self._trying:
            if entry.digest not in self._found:
                try:
                    self._found[entry.digest] = self._try(entry)
                except UnreachableError as error:  # nothing is known of it yet
                    return Verdict(reason=str(error))
            return self._found[entry.digest]

    def known(self, digest: str) -> str | None:
        """What `of` has found, or vLLM itself, without trying anything; None, too, if nobody has tried."""
        found = self._found.get(digest)
        return self._noted.get(digest) or (None if found is None else self._reason(found))

    def note(self, digest: str, reason: str | None) -> None:
        """Take down why vLLM refused an adapter that these rules let through; None if it took it."""
        if reason is not None:
            self._noted[digest] = reason
        else:
            self._noted.pop(digest, None)

    def _reason(self, found: Verdict) -> str | None:
        if found.reason is None and self.most_rank is not None and found.rank > self.most_rank:
            return (
                f"its rank is {found.rank}, and vLLM was started for up to {self.most_rank}. Start again, with "
                f"--max-lora-rank {rank_for(found.rank)} after -- if it is given there."
            )
        return found.reason

    def _try(self, entry: StoreEntry) -> Verdict:
        try:
            return self._checked(entry)
        except UnreachableError:
            raise
        except ManytuneError as error:
            return Verdict(reason=str(error))
        except Exception as error:  # whatever a malformed file can make of a library
            return Verdict(reason=f"it can't be read ({type(error).__name__}: {str(error)[:200]}).")

    def _checked(self, entry: StoreEntry) -> Verdict:
        self.examined.examine(entry.digest).require()
        check_files(self._store.root, entry.path, max_bytes=_MOST_BYTES)
        packed = check_base(entry.path, entry.manifest, self._base.fingerprint, name=self._base.name)
        config = PeftConfig.from_pretrained(entry.path)
        check_options(config)
        file = entry.path / TENSORS_NAME
        with file.open("rb") as opened:
            header = read_header(opened, file)
        rank = check_adapter(config, list(header.places), patterns=self._patterns, tied=self._tied)
        shapes = {
            name: torch.empty(place.shape, dtype=DTYPES[place.dtype], device="meta")
            for name, place in header.places.items()
        }
        self._meta.check_shapes(ResidentAdapter(entry.digest, config, shapes, header.nbytes, entry.manifest))
        notes = notes_of(entry.manifest)
        return Verdict(rank, header.nbytes, notes=notes if packed is None else (packed, *notes))


def check_adapter(config: PeftConfig, names: list[str], *, patterns: bool, tied: bool) -> int:
    """The rank of an adapter that vLLM can serve.

    Args:
        config: Its options.
        names: The names of its tensors in its file.
        patterns: Whether this vLLM reads `rank_pattern` and `alpha_pattern`.
        tied: Whether the base's output head is its embeddings' table.

    Raises:
        ConfigError: vLLM can't serve it, and what to do instead.
    """
    if is_for_a_head(config):
        raise ConfigError(
            f"its task is {config.task_type}, with a head of its own, and vLLM is started for text here. Serve it with "
            "--engine manytune."
        )
    rank = method_of(config).tuner.vllm_rank(config, names, patterns=patterns)
    if rank > RANKS[-1]:
        raise ConfigError(f"vLLM runs ranks up to {RANKS[-1]}, and its rank is {rank}.")
    head = next((name for name in names if _HEAD in name), None)
    if tied and head is not None:
        raise ConfigError(
            f"it has {head}, and the base's output head is its embeddings' table: whether vLLM adapts that depends on "
            "its release, so it isn't handed over. Merge it into its base instead."
        )
    return rank


def rank_for(rank: int) -> int:
    """The least value of --max-lora-rank with room for a rank."""
    return next(known for known in RANKS if known >= rank)


def notes_of(manifest: Manifest) -> tuple[str, ...]:
    """What vLLM does otherwise than training did with an adapter's prompts.

    Raises:
        StoreError: The manifest doesn't say how they are made in a way that can be read.
    """
    options = options_of(manifest)
    notes = []
    if options.max_prompt is not None:
        notes.append(f"prompts were cut to {options.max_prompt} tokens in training, and aren't here")
    if options.date is not None:
        notes.append(f"its chat template may write the date: {options.date} in training, today's here")
    return tuple(notes)


def options_of(manifest: Manifest) -> EncodingOptions:
    """How an adapter's prompts are made.

    Raises:
        StoreError: Its manifest doesn't say it in a way that can be read.
    """
    values: dict[str, Any] = dict(manifest.encoding_options or {})
    try:
        return EncodingOptions.from_dict(values)
    except DataError as error:
        raise StoreError(f"the adapter's manifest: {error}.") from error
