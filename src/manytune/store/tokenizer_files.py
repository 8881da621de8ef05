"""The tokenizer that lies next to an adapter, as TRL's and Trainer's outputs have one: is it the base's?

A server and the commands make prompts with the base's tokenizer and chat template. An adapter that was trained with
others would get other tokens than in its training, so it is refused by what differs.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from manytune.errors import DamagedError, StoreError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_MOST_BYTES = 256 << 20
#: Decide how text is cut into tokens; the padding and truncation of the last call don't.
_RULES = ("normalizer", "pre_tokenizer", "post_processor", "model")
#: Which a tokenizer can be loaded from.
_WHOLE = {
    "tokenizer.json",
    "tokenizer.model",
    "vocab.json",
    "vocab.txt",
    "spiece.model",
    "sentencepiece.bpe.model",
}
_TEMPLATES = ("chat_template.jinja", "chat_template.json")
_LISTED = 5


def check_tokenizer(directory: Path, names: Collection[str], tokenizer: PreTrainedTokenizerBase) -> None:
    """Refuse an adapter whose own tokenizer or chat template isn't its base's.

    Args:
        directory: The adapter's directory.
        names: The files of a tokenizer in it.
        tokenizer: The base's.

    Raises:
        StoreError: They make other tokens; says which file, what differs and what to do.
        DamagedError: A file can't be read.
    """
    for difference in _differences(directory, names, tokenizer):
        raise StoreError(
            f"{directory}: the adapter comes with a tokenizer of its own: {difference}. manytune makes prompts with "
            "the base's, so it would get other tokens than in its training. Save that tokenizer into a copy of the "
            "base's directory (with model.resize_token_embeddings, if it has more tokens) and give that as the base; "
            "or, if the adapter was trained with the base's tokenizer and chat template, use `manytune adapters add` "
            "with --base-tokenizer."
        )


def _differences(directory: Path, names: Collection[str], base: Any) -> Iterator[str]:
    if "added_tokens.json" in names:
        yield from _other_tokens(
            "added_tokens.json", _json(directory / "added_tokens.json"), base.get_vocab()
        )
    template = _template(directory, names)
    if template is not None and template != base.chat_template:
        yield f"{_where(names)} has {_another(base.chat_template)}"
    if not _WHOLE & set(names):
        return
    own = _loaded(directory)
    yield from _other_tokens("its tokenizer", own.get_vocab(), base.get_vocab())
    # A padding token is often chosen at run time, and never reaches the model unmasked.
    for kind in ("bos_token", "eos_token"):
        if getattr(own, kind) != getattr(base, kind):
            yield f"its {kind} is {getattr(own, kind)!r}, the base's {getattr(base, kind)!r}"
    if template is None and own.chat_template and own.chat_template != base.chat_template:
        yield f"tokenizer_config.json has {_another(base.chat_template)}"
    if _rules(own) != _rules(base):
        yield "tokenizer.json cuts text into tokens by other rules"


def _another(of_base: object) -> str:
    return "another chat template" if of_base else "a chat template, and the base has none"


def _other_tokens(where: str, own: Mapping[str, Any], base: Mapping[str, int]) -> Iterator[str]:
    other = sorted(token for token, number in own.items() if base.get(token) != number)
    if other:
        more = f" and {len(other) - _LISTED} more" if len(other) > _LISTED else ""
        listed = ", ".join(map(repr, other[:_LISTED]))
        yield f"{where} has tokens that the base's hasn't, or not under the same number: {listed}{more}"


def _template(directory: Path, names: Collection[str]) -> str | None:
    """The chat template in a file of its own; None if there is none."""
    if "chat_template.jinja" in names:
        return _text(directory / "chat_template.jinja")
    if "chat_template.json" in names:
        content = _json(directory / "chat_template.json").get("chat_template")
        return content if isinstance(content, str) else None
    if "tokenizer_config.json" in names:
        content = _json(directory / "tokenizer_config.json").get("chat_template")
        return content if isinstance(content, str) else None
    return None


def _where(names: Collection[str]) -> str:
    return next((name for name in _TEMPLATES if name in names), "tokenizer_config.json")


def _loaded(directory: Path) -> Any:
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(str(directory), local_files_only=True, trust_remote_code=False)
    except Exception as error:  # whatever a file can make of tokenizers, which raises bare exceptions
        first = str(error).strip().partition("\n")[0]
        raise DamagedError(
            f"{directory}: the tokenizer next to the adapter can't be read ({first}). Remove its files if the adapter "
            "was trained with its base's, or add it with --base-tokenizer."
        ) from error


def _rules(tokenizer: Any) -> Any:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return None
    content = json.loads(backend.to_str())
    return {name: content.get(name) for name in _RULES}


def _json(file: Path) -> Mapping[str, Any]:
    try:
        content = json.loads(_text(file))
    except (ValueError, RecursionError) as error:
        raise DamagedError(f"{file}: expected JSON: {error}.") from None
    if not isinstance(content, dict):
        raise DamagedError(f"{file}: expected a JSON object; found {type(content).__name__}.")
    return content


def _text(file: Path) -> str:
    if not file.is_file() or file.stat().st_size > _MOST_BYTES:
        raise DamagedError(f"{file}: expected a plain file of at most {_MOST_BYTES:,} bytes.")
    try:
        return file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise DamagedError(f"{file}: expected text in UTF-8: {error}.") from None
