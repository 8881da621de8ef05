"""Encoded rows from one run to the next: reading them takes a small part of the time that encoding takes.

An entry is a file named after a SHA-256 of everything that decides its content: the rendered rows, the tokenizer with
its chat template, the recipe's limits and options, and the code that encodes. So an entry is never out of date; one
that is damaged is noticed by the hash inside it, and made again.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from manytune import chat_rendering, template_limits
from manytune.atomic import atomic_write, clean_leftovers
from manytune.caches import cache_directory
from manytune.data.encoding.encoded import EncodedSet
from manytune.data.encoding.encoded_file import from_bytes, to_bytes
from manytune.data.templates import Example
from manytune.errors import DamagedError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

FEWEST = 200
"""Fewer rows than this aren't kept: they take less than a second."""
MOST_BYTES = 4 << 30
"""The most that all entries take together; those that weren't used for longest go first."""

_RENDERING = [Path(str(module.__file__)) for module in (chat_rendering, template_limits)]
_SUFFIX = ".safetensors"
_AN_HOUR = 3600.0


@dataclass(frozen=True)
class CacheEntry:
    """An entry of the cache.

    Attributes:
        path: Its file.
        nbytes: The file's size.
        used: When it was last written or read, in seconds since 1970.
    """

    path: Path
    nbytes: int
    used: float


class EncodingCache:
    """Encoded rows by a digest of what they were made from. Any number of processes may use it at once.

    Args:
        directory: Where the entries are; None for manytune's cache directory.
        fewest: The fewest rows that are kept.
        most_bytes: The most bytes of all entries together.
        notify: Receives a line when an entry is used, or found to be damaged.
    """

    def __init__(
        self,
        directory: Path | None = None,
        *,
        fewest: int = FEWEST,
        most_bytes: int = MOST_BYTES,
        notify: Callable[[str], None] | None = None,
    ) -> None:
        self.directory = cache_directory() / "encoded" if directory is None else directory
        self._fewest = fewest
        self._most_bytes = most_bytes
        self._say = notify or (lambda _: None)

    def encoded(
        self,
        examples: Sequence[Example],
        tokenizer: PreTrainedTokenizerBase,
        options: dict[str, Any],
        encode: Callable[[], EncodedSet],
    ) -> EncodedSet:
        """What `encode` gives, from the cache if it is there.

        Args:
            examples: The rows, rendered.
            tokenizer: What they are encoded with; only the rules of a fast one can be told from their text.
            options: What else decides the result; JSON.
            encode: Encodes them.
        """
        rules = rules_of(tokenizer)
        if len(examples) < self._fewest or rules is None:
            return encode()
        path = self.directory / f"{_key(examples, rules, options)}{_SUFFIX}"
        found = self._read(path, len(examples))
        if found is None:
            found = encode()
            try:
                self._write(path, to_bytes(found))
            except OSError as error:  # nothing depends on it
                self._say(f"warning: the encoded rows aren't kept for the next run: {error}")
        return found

    def entries(self) -> list[CacheEntry]:
        """What is there, the entry that was used last first."""
        found = []
        for path in self.directory.glob(f"*{_SUFFIX}"):
            try:
                status = path.stat()
            except FileNotFoundError:  # another process was faster
                continue
            found.append(CacheEntry(path, status.st_size, status.st_mtime))
        return sorted(found, key=lambda entry: (-entry.used, entry.path.name))

    def clear(self) -> list[CacheEntry]:
        """Remove everything; gives what was there."""
        found = self.entries()
        for entry in found:
            entry.path.unlink(missing_ok=True)
        return found

    def _read(self, path: Path, count: int) -> EncodedSet | None:
        try:
            if path.stat().st_size > self._most_bytes:
                raise DamagedError(f"{path}: larger than any entry.")
            found = from_bytes(path.read_bytes(), where=str(path))
            with suppress(OSError):  # which one is evicted first isn't worth a failure
                os.utime(path)
        except FileNotFoundError:
            return None
        except (DamagedError, OSError) as error:
            self._say(f"warning: {error} The rows are encoded again.")
            return None
        self._say(f"{count:,} encoded rows come from the cache (`manytune data cache`)")
        return found

    def _write(self, path: Path, content: bytes) -> None:
        if len(content) > self._most_bytes:
            return
        self.directory.mkdir(parents=True, exist_ok=True)
        clean_leftovers(self.directory, older_than=_AN_HOUR)
        room = self._most_bytes - len(content)
        for entry in self.entries():
            room -= entry.nbytes
            if room < 0 and entry.path != path:
                entry.path.unlink(missing_ok=True)
        atomic_write(path, content)


def rules_of(tokenizer: PreTrainedTokenizerBase) -> str | None:
    """A hash of everything that decides a tokenizer's ids; None for one that can't say it as text."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return None
    # The text begins with the truncation and padding that the last call happened to use; the rules follow.
    rules = backend.to_str().partition('"added_tokens":')[2]
    kind = f"{type(tokenizer).__module__}.{type(tokenizer).__qualname__}"
    special = {name: str(token) for name, token in tokenizer.special_tokens_map.items()}
    parts = [rules, kind, special, getattr(tokenizer, "chat_template", None)]
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()


def _key(examples: Sequence[Example], rules: str, options: dict[str, Any]) -> str:
    digest = hashlib.sha256()
    digest.update(json.dumps([_code(), rules, options], sort_keys=True).encode())
    for example in examples:
        digest.update(f"\n{example!r}".encode("utf-8", "surrogatepass"))
    return digest.hexdigest()


@lru_cache(maxsize=1)
def _code() -> list[str]:
    """What encodes: these files, and the releases of the libraries that they call."""
    digest = hashlib.sha256()
    for file in [*sorted(Path(__file__).parent.rglob("*.py")), *_RENDERING]:
        digest.update(file.read_bytes())
    return [
        digest.hexdigest(),
        *(metadata.version(name) for name in ("transformers", "tokenizers", "jinja2")),
    ]
