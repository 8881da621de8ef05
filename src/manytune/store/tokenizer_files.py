"""The tokenizer that lies next to an adapter, as TRL's and Trainer's outputs have one: is it the base's?

A server and the commands cut text into tokens with the base's tokenizer. An adapter that was trained with another one
would get other tokens than in its training, so it is refused by what differs. A chat template of its own is kept, and
its prompts are made with it.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from manytune.chat_rendering import render_chat
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
_MOST_OF_A_TEMPLATE = 1 << 20
_LISTED = 5
_TRAINED_OTHERWISE = "adapter was trained with the base's, use `manytune adapters add` with --base-tokenizer."


def own_chat_template(
    directory: Path, names: Collection[str], tokenizer: PreTrainedTokenizerBase
) -> str | None:
    """The chat template that an adapter comes with; None if it is its base's, or there is none.

    Args:
        directory: The adapter's directory.
        names: The files of a tokenizer in it.
        tokenizer: The base's.

    Raises:
        StoreError: The adapter's tokenizer makes other tokens of the same text, or its template can't be used; says
            which file, what is wrong and what to do.
        DamagedError: A file can't be read.
    """
    own = _loaded(directory) if _WHOLE & set(names) else None
    for difference in _differences(directory, names, own, tokenizer):
        raise StoreError(
            f"{directory}: the adapter comes with a tokenizer of its own: {difference}. manytune cuts text with the "
            "base's, so it would get other tokens than in its training. Save that tokenizer into a copy of the base's "
            "directory (with model.resize_token_embeddings, if it has more tokens) and give that as the base; or, if "
            "the adapter was trained with the base's tokenizer and chat template, use `manytune adapters add` with "
            "--base-tokenizer."
        )
    template = template_in(directory, names)
    if template is None and own is not None and isinstance(own.chat_template, str):
        template = own.chat_template
    if template is None or template == tokenizer.chat_template:
        return None
    _try(directory, names, template, tokenizer)
    return template


def template_in(directory: Path, names: Collection[str]) -> str | None:
    """The chat template in a file of its own; None if there is none.

    Args:
        directory: An adapter's directory.
        names: The files of a tokenizer in it.

    Raises:
        DamagedError: The file can't be read.
    """
    if "chat_template.jinja" in names:
        return _text(directory / "chat_template.jinja")
    if "chat_template.json" in names:
        content = _json(directory / "chat_template.json").get("chat_template")
        return content if isinstance(content, str) else None
    if "tokenizer_config.json" in names:
        content = _json(directory / "tokenizer_config.json").get("chat_template")
        return content if isinstance(content, str) else None
    return None


def _try(directory: Path, names: Collection[str], template: str, tokenizer: Any) -> None:
    where = f"{directory / _where(names)}: the adapter's chat template"
    if len(template) > _MOST_OF_A_TEMPLATE:
        raise StoreError(
            f"{where} has {len(template):,} characters; expected {_MOST_OF_A_TEMPLATE:,} at most."
        )
    asked = [{"role": "user", "content": "Hello"}]
    answered = [*asked, {"role": "assistant", "content": "Yes"}]
    try:
        prompt, whole = (
            render_chat(template, messages, tokenizer.special_tokens_map, **more)
            for messages, more in ((asked, {"add_generation_prompt": True}), (answered, {}))
        )
    except Exception as error:  # a template is a program of its author's: it can raise anything
        raise StoreError(
            f"{where} can't write a message and its answer: {type(error).__name__}: {error}. Correct it; or, if the "
            f"{_TRAINED_OTHERWISE}"
        ) from error
    if not whole.startswith(prompt):
        raise StoreError(
            f"{where} writes a prompt differently once it is answered, so the adapter would be asked something else "
            "than it was trained on. Use one whose generation prompt begins the answer; or, if the "
            f"{_TRAINED_OTHERWISE}"
        )


def _differences(directory: Path, names: Collection[str], own: Any, base: Any) -> Iterator[str]:
    if "added_tokens.json" in names:
        yield from _other_tokens(
            "added_tokens.json", _json(directory / "added_tokens.json"), base.get_vocab()
        )
    if own is None:
        return
    yield from _other_tokens("its tokenizer", own.get_vocab(), base.get_vocab())
    # A padding token is often chosen at run time, and never reaches the model unmasked.
    for kind in ("bos_token", "eos_token"):
        if getattr(own, kind) != getattr(base, kind):
            yield f"its {kind} is {getattr(own, kind)!r}, the base's {getattr(base, kind)!r}"
    if _rules(own) != _rules(base):
        yield "tokenizer.json cuts text into tokens by other rules"


def _other_tokens(where: str, own: Mapping[str, Any], base: Mapping[str, int]) -> Iterator[str]:
    other = sorted(token for token, number in own.items() if base.get(token) != number)
    if other:
        more = f" and {len(other) - _LISTED} more" if len(other) > _LISTED else ""
        listed = ", ".join(map(repr, other[:_LISTED]))
        yield f"{where} has tokens that the base's hasn't, or not under the same number: {listed}{more}"


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
