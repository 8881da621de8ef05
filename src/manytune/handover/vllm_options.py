"""The command line and the environment that vLLM is started with."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from manytune.errors import ServeError

#: vLLM's largest batch where --max-num-seqs isn't given.
USUAL_BATCH = 256
#: Decide where vLLM listens, what it calls models and who may ask: that is manytune's part.
_OWN = (
    *("--model", "--served-model-name", "--lora-modules", "--enable-lora", "--no-enable-lora"),
    *("--host", "--port", "--uds", "--api-key", "--root-path", "--trust-request-chat-template"),
    *("--ssl-keyfile", "--ssl-certfile", "--config", "--headless"),
)
#: Sampling without options is OpenAI's and manytune's, whatever the base's generation_config.json says; its end tokens
#: stay.
NEUTRAL_SAMPLING = {"temperature": 1.0, "top_p": 1.0, "top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0}
_RESOLVER = "lora_filesystem_resolver"


@dataclass(frozen=True, kw_only=True)
class VllmOptions:
    """How vLLM is started.

    Attributes:
        location: What it loads, and calls its model: a directory, or a hub id.
        base_name: The base's name in requests.
        socket: The Unix socket that it listens at.
        adapters: The directory of its resolver.
        rank: --max-lora-rank.
        in_batch: --max-loras: adapters in one batch.
        in_memory: --max-cpu-loras: adapters in memory.
        answer_tokens: The longest answer.
        more: Options of the user's own, which come last, so that they hold.
    """

    location: str
    base_name: str
    socket: Path
    adapters: Path
    rank: int
    in_batch: int
    in_memory: int
    answer_tokens: int
    more: tuple[str, ...] = ()

    def command(self, executable: Path) -> list[str]:
        """The command line."""
        defaults = {**NEUTRAL_SAMPLING, "max_new_tokens": self.answer_tokens}
        return [
            *[str(executable), "serve", self.location, "--served-model-name", self.base_name],
            *["--uds", str(self.socket), "--enable-lora", "--max-lora-rank", str(self.rank)],
            *["--max-loras", str(self.in_batch), "--max-cpu-loras", str(self.in_memory)],
            *["--trust-request-chat-template", "--override-generation-config", json.dumps(defaults)],
            *["--uvicorn-log-level", "warning", *self.more],
        ]

    def environment(self, ours: Mapping[str, str]) -> dict[str, str]:
        """The environment: this process' own, and what has vLLM find the adapters."""
        found = {
            **ours,
            "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1",
            "VLLM_LORA_RESOLVER_CACHE_DIR": str(self.adapters),
        }
        # Without the variable vLLM loads every plugin there is, the resolver included.
        plugins = [name for name in ours.get("VLLM_PLUGINS", "").split(",") if name]
        if "VLLM_PLUGINS" in ours and _RESOLVER not in plugins:
            found["VLLM_PLUGINS"] = ",".join([*plugins, _RESOLVER])
        return found


def value_of(options: Sequence[str], name: str) -> str | None:
    """The value that an option has on a command line, as `--name value` or `--name=value`; None if it isn't there.

    Args:
        options: The command line.
        name: The option, such as `--max-loras`; vLLM also takes underscores in it.
    """
    found = None
    for place, word in enumerate(options):
        given, equals, value = word.partition("=")
        if _plain(given) == name:
            found = value if equals else options[place + 1] if place + 1 < len(options) else ""
    return found


def number_of(options: Sequence[str], name: str, default: int) -> int:
    """The same as a number.

    Raises:
        ServeError: It isn't a whole number above 0.
    """
    value = value_of(options, name)
    if value is None:
        return default
    if not value.isdecimal() or int(value) < 1:
        raise ServeError(f"{name} after --: expected a whole number above 0, found {value!r}.")
    return int(value)


def check_options(options: Sequence[str]) -> None:
    """Refuse options of vLLM that are manytune's part.

    Raises:
        ServeError: There is one.
    """
    if options and not options[0].startswith("-"):
        raise ServeError(f"expected vLLM's options after --, found {options[0]!r}.")
    own = next((word for word in options if _plain(word.partition("=")[0]) in _OWN), None)
    if own is not None:
        raise ServeError(
            f"{own} after --: manytune gives vLLM its address, its base and its adapters. Leave it out."
        )


def _plain(option: str) -> str:
    return option.replace("_", "-") if option.startswith("--") else option
