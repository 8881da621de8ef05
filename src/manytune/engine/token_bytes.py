"""The bytes that tokens are for, also where a token is only a part of a character.

Byte-level BPE (GPT-2, Llama 3, Qwen) spells the bytes of a token in letters of its vocabulary; SentencePiece's byte
fallback (Llama 2, Gemma) has a token such as `<0xF0>` for each byte. Both are read from the vocabulary, as the decoder
of a tokenizer gives U+FFFD for a part of a character. The tokens of other tokenizers are whole texts.
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Collection
from typing import Any

_BYTE = re.compile("<0x([0-9A-F]{2})>")


class TokenBytes:
    """Bytes of single tokens. It must be used from one thread at a time, like its tokenizer.

    Args:
        tokenizer: The tokenizer.
        silent: Tokens without text, such as those that end an answer.
    """

    def __init__(self, tokenizer: Any, silent: Collection[int] = ()) -> None:
        self._tokenizer = tokenizer
        self._silent = frozenset(silent)
        self._letters = _letters() if _has_decoder(tokenizer, "ByteLevel") else None
        self._known: dict[tuple[int, bool], bytes] = {}
        self._before = self._usual_token()

    def of(self, token: int, *, first: bool = False) -> bytes:
        """The bytes of a token.

        Args:
            token: The token.
            first: Whether its text begins there. Some tokenizers then leave out a leading space.
        """
        if token in self._silent:
            return b""
        key = (token, first)
        if key not in self._known:
            self._known[key] = self._read(token, first)
        return self._known[key]

    def label(self, token: int, *, first: bool = False) -> str:
        r"""What to call a token: its text; `bytes:\xf0\x9f`, as OpenAI has it, for a part of a character."""
        if token in self._silent:
            return self._name(token)
        try:
            return self.of(token, first=first).decode()
        except UnicodeDecodeError as error:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in error.object)

    def _read(self, token: int, first: bool) -> bytes:
        name = self._name(token)
        if self._letters is not None:
            letters = self._letters
            return bytes(letters[one] for one in name) if set(name) <= letters.keys() else name.encode()
        byte = _BYTE.fullmatch(name)
        if byte is not None and byte[1] >= "80":
            return bytes.fromhex(byte[1])
        if first or self._before is None:
            return self._decode(token).encode()
        return self._decode(self._before, token).removeprefix(self._decode(self._before)).encode()

    def _name(self, token: int) -> str:
        # A model may have more rows than its tokenizer has tokens.
        return str(self._tokenizer.convert_ids_to_tokens(token) or "")

    def _decode(self, *tokens: int) -> str:
        return str(
            self._tokenizer.decode(
                list(tokens), skip_special_tokens=False, clean_up_tokenization_spaces=False
            )
        )

    def _usual_token(self) -> int | None:
        """A token that is no special one and has text, to decode others after it."""
        special = set(self._tokenizer.all_special_ids)
        usual = (token for token in range(len(self._tokenizer)) if token not in special)
        return next((token for token in usual if self._decode(token).strip(" \ufffd")), None)


class CharacterCount:
    """Counts the characters of bytes that come in parts, which may end within a character."""

    def __init__(self, characters: int = 0) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._characters = characters

    def add(self, new: bytes) -> int:
        """Add bytes; returns the index of the character to which the first of them belongs."""
        continues = bool(new) and new[0] & 0xC0 == 0x80
        if new and not continues:  # what came before is broken for good
            self._characters += len(self._decoder.decode(b"", final=True))
            self._decoder.reset()
        place = self._characters
        self._characters += len(self._decoder.decode(new))
        return place


def _has_decoder(tokenizer: Any, kind: str) -> bool:
    decoder = getattr(getattr(tokenizer, "backend_tokenizer", None), "decoder", None)
    if decoder is None:
        return False
    described = json.loads(decoder.__getstate__())
    return any(one["type"] == kind for one in (described, *described.get("decoders", ())))


def _letters() -> dict[str, int]:
    """Byte-level BPE's letter for each byte: printable bytes are their own, the others follow from U+0100 on."""
    own = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(0x100) if byte not in own]
    return {**{chr(byte): byte for byte in own}, **{chr(0x100 + at): byte for at, byte in enumerate(others)}}
