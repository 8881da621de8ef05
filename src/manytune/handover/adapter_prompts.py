"""How vLLM is asked so that an adapter gets the prompts that it was trained with, and whether it does.

vLLM knows one chat template, the base's. An adapter's own, its values of the template's variables, and that it was
trained without any go with each request. Whether the same tokens come out is tried, not assumed: vLLM's tokens of two
conversations are compared with those of training's own code.
"""

from __future__ import annotations

import copy
import json
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from manytune.data.encoding.encoding_options import EncodingOptions
from manytune.data.templates import Segment
from manytune.handover.vllm_client import VllmClient
from manytune.handover.vllm_rules import options_of
from manytune.store.base import Base
from manytune.store.manifest import Manifest

#: Messages joined by blank lines, as prompts were made where training used no chat template.
_PLAIN = (
    "{% for m in messages %}{{ m['content'] }}{% if not loop.last %}{{ '\\n\\n' }}{% endif %}{% endfor %}"
)
_TRIED = (
    (Segment("user", "What is 12 + 30?"),),
    (
        Segment("user", "Hello  there."),
        Segment("assistant", "Hi!"),
        Segment("user", "Name two rivers,\nplease."),
    ),
)


@dataclass(frozen=True)
class ChatAdditions:
    """What a request for a conversation needs in addition to what the client sent.

    Attributes:
        fields: Fields of the body that manytune decides.
        kwargs: The adapter's values of the chat template's variables; a client's own come on top.
        end_id: The token that ends the adapter's answers.
    """

    fields: Mapping[str, Any] = field(default_factory=dict)
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    end_id: int | None = None

    def added(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """A body with them."""
        found = {**body, **self.fields}
        kwargs = {**self.kwargs, **(body.get("chat_template_kwargs") or {})}
        if kwargs:
            found["chat_template_kwargs"] = kwargs
        if self.end_id is not None and not body.get("ignore_eos"):
            ends = body.get("stop_token_ids") or []
            found["stop_token_ids"] = ends if self.end_id in ends else [*ends, self.end_id]
        return found


class AdapterPrompts:
    """The additions of adapters, and whether vLLM's prompts are right with them. Any number of threads may use it.

    Args:
        base: The base, of which the tokenizer is used.
    """

    def __init__(self, base: Base) -> None:
        self._tokenizer = copy.deepcopy(base.tokenizer)
        self._lock = threading.Lock()
        self._known: dict[str, tuple[ChatAdditions, list[tuple[int, ...]]]] = {}

    def additions(self, manifest: Manifest | None) -> ChatAdditions:
        """What requests for an adapter need, or for the base, if it is None.

        Raises:
            StoreError: Its manifest doesn't say how its prompts are made in a way that can be read.
            DataError: Its chat template can't be used.
        """
        return self._of(manifest)[0]

    async def why_not(self, manifest: Manifest | None, model: str, client: VllmClient) -> str | None:
        """Why vLLM's prompts aren't those of an adapter's training, or, for None, the base's; None if they are.

        Args:
            manifest: The adapter's.
            model: What vLLM calls it.
            client: Reaches vLLM.
        """
        additions, expected = self._of(manifest)
        if manifest is None and not self._tokenizer.chat_template:
            return None  # the base has /v1/completions only
        for conversation, tokens in zip(_TRIED, expected, strict=True):
            messages = [{"role": one.role, "content": one.text} for one in conversation]
            body = {"model": model, "messages": messages, **additions.fields}
            if additions.kwargs:
                body["chat_template_kwargs"] = dict(additions.kwargs)
            status, found = await client.json("POST", "/tokenize", body)
            if status != 200 or not isinstance(found, dict):
                return f"vLLM can't make its prompts ({_shown(found)})."
            if tuple(found.get("tokens", ())) != tokens:
                return (
                    f"vLLM makes other prompts than its training did: of {conversation[-1].text!r} "
                    f"{_first_difference(found.get('tokens', ()), tokens)}. Serve it with --engine manytune."
                )
        return None

    def _of(self, manifest: Manifest | None) -> tuple[ChatAdditions, list[tuple[int, ...]]]:
        options = EncodingOptions() if manifest is None else options_of(manifest)
        is_plain = (manifest is not None and manifest.encoding == "plain") or not (
            options.chat_template or self._tokenizer.chat_template
        )
        key = json.dumps([is_plain, options.to_dict()], sort_keys=True)
        with self._lock:
            if key not in self._known:
                self._known[key] = self._made(options, is_plain=is_plain)
            return self._known[key]

    def _made(
        self, options: EncodingOptions, *, is_plain: bool
    ) -> tuple[ChatAdditions, list[tuple[int, ...]]]:
        encoder = options.encoder(self._tokenizer, chat=False if is_plain else None)
        expected = [encoder.prompt_ids(conversation) for conversation in _TRIED]
        fields: dict[str, Any] = {}
        if is_plain:
            fields = {"chat_template": _PLAIN, "add_special_tokens": True}
        elif options.chat_template is not None:
            fields = {"chat_template": options.chat_template}
        end_id = encoder.end_id if encoder.end_id != self._base_end() else None
        return ChatAdditions(fields, dict(options.chat_template_kwargs), end_id), expected

    def _base_end(self) -> int | None:
        end: int | None = self._tokenizer.eos_token_id
        return end


def _first_difference(found: Sequence[int], expected: Sequence[int]) -> str:
    place = next(
        (at for at, pair in enumerate(zip(found, expected, strict=False)) if pair[0] != pair[1]),
        min(len(found), len(expected)),
    )
    return (
        f"token {place} is {list(found[place : place + 1]) or 'missing'}, expected "
        f"{list(expected[place : place + 1]) or 'none'}"
    )


def _shown(content: object) -> str:
    error = content.get("error", content) if isinstance(content, dict) else content
    message = error.get("message", error) if isinstance(error, dict) else error
    return str(message)[:200]
