"""From a store and a base to a running vLLM with manytune before it."""

from __future__ import annotations

import asyncio
import logging
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from fastapi import FastAPI

from manytune.errors import ServeError
from manytune.handover.adapter_copies import directory_for_copies
from manytune.handover.adapter_prompts import AdapterPrompts
from manytune.handover.app import create_front
from manytune.handover.base import EmptyBase
from manytune.handover.front import FrontSettings
from manytune.handover.versions import Versions
from manytune.handover.vllm_client import VllmClient
from manytune.handover.vllm_options import USUAL_BATCH, VllmOptions, check_options, number_of
from manytune.handover.vllm_process import VllmProcess
from manytune.handover.vllm_release import Vllm
from manytune.handover.vllm_rules import RANKS, Verdict, VllmVerdicts, rank_for
from manytune.server.access.auth import Keys
from manytune.server.access.key_file import KeySource
from manytune.store.entry import StoreEntry
from manytune.store.store import AdapterStore

_log = logging.getLogger(__name__)
_USUAL_RANK = 16  # vLLM's
_USUAL_IN_BATCH = 8
_MOST_IN_MEMORY = 1024
_STOPPING_SECONDS = 20.0


@dataclass(frozen=True, kw_only=True)
class HandoverSettings:
    """How a store is handed over to vLLM.

    Attributes:
        base_name: The base's name in requests.
        adapter_memory: Bytes that adapters in vLLM's memory may take, about.
        answer_tokens: The longest answer.
        queue: Answers of one tenant that may wait in addition to as many as vLLM runs at once.
        watch_seconds: Interval at which the store is checked for new versions.
        more: vLLM's own options.
    """

    base_name: str
    adapter_memory: int = 1 << 30
    answer_tokens: int = 1024
    queue: int = 64
    watch_seconds: float = 2.0
    more: tuple[str, ...] = ()


@dataclass(frozen=True)
class Checked:
    """An adapter of the store, and whether vLLM can serve it.

    Attributes:
        entry: The adapter.
        verdict: What was found.
        reason: Why it can't be served, with the rank that vLLM is started for; None if it can.
    """

    entry: StoreEntry
    verdict: Verdict
    reason: str | None


def check_store(store: AdapterStore, verdicts: VllmVerdicts, more: Sequence[str]) -> list[Checked]:
    """All adapters with a name, and whether vLLM can serve them; decides which rank it is started for.

    Args:
        store: The adapters.
        verdicts: What vLLM makes of them.
        more: vLLM's own options.

    Raises:
        ServeError: An option's value can't be used.
    """
    check_options(more)
    named = [
        entry
        for entry in store.entries(unreadable=lambda digest, why: _log.warning("%s: %s", digest[:12], why))
        if entry.names
    ]
    found = [verdicts.verdict(entry) for entry in named]
    needed = rank_for(max((one.rank for one in found if one.reason is None), default=1))
    verdicts.most_rank = number_of(more, "--max-lora-rank", max(needed, _USUAL_RANK))
    if verdicts.most_rank not in RANKS:
        raise ServeError(f"--max-lora-rank {verdicts.most_rank}: vLLM takes {', '.join(map(str, RANKS))}.")
    return [Checked(entry, one, verdicts.of(entry)) for entry, one in zip(named, found, strict=True)]


@contextmanager
def running_vllm(
    vllm: Vllm,
    base: EmptyBase,
    store: AdapterStore,
    verdicts: VllmVerdicts,
    checked: Sequence[Checked],
    settings: HandoverSettings,
    keys: Keys | KeySource,
    environment: Mapping[str, str] = os.environ,
) -> Iterator[tuple[FastAPI, VllmProcess]]:
    """Start vLLM, and give the application before it; vLLM ends with the block.

    Args:
        vllm: What is started.
        base: What it loads.
        store: The adapters.
        verdicts: Which of them it can serve; the rank is decided.
        checked: What `check_store` found.
        settings: How they are handed over.
        keys: The API keys, or where they come from.
        environment: What vLLM's own is made from.

    Raises:
        ServeError: It ends before it answers; with the last lines of its output.
    """
    # Nobody else can enter the socket's directory: who reaches vLLM needs no key. A socket's path has to be short.
    with tempfile.TemporaryDirectory(prefix="manytune-vllm-") as folder, directory_for_copies() as copies:
        socket = Path(folder, "socket")
        options = vllm_options(base, verdicts, checked, settings, socket=socket, copies=copies)
        process = VllmProcess(options.command(vllm.command), options.environment(environment))
        try:
            client = VllmClient(socket)
            process.wait_until(lambda: asyncio.run(client.is_ready()))
            versions = Versions(
                store,
                verdicts,
                AdapterPrompts(base.base),
                client,
                copies=copies,
                location=base.location,
                base_name=settings.base_name,
            )
            front = FrontSettings(
                base_name=settings.base_name,
                of_tenant=number_of(settings.more, "--max-num-seqs", USUAL_BATCH) + settings.queue,
                answer_tokens=settings.answer_tokens,
                watch_seconds=settings.watch_seconds,
            )
            yield create_front(front, versions, client, keys, failure=lambda: process.failure), process
        finally:
            process.stop(_STOPPING_SECONDS)


def vllm_options(
    base: EmptyBase,
    verdicts: VllmVerdicts,
    checked: Sequence[Checked],
    settings: HandoverSettings,
    *,
    socket: Path,
    copies: Path,
) -> VllmOptions:
    """What vLLM is started with: room for the adapters that it can serve, within their memory.

    Args:
        base: What it loads.
        verdicts: With the rank that was decided.
        checked: What `check_store` found.
        settings: How the adapters are handed over.
        socket: Where it listens.
        copies: The directory of its resolver.
    """
    assert verdicts.most_rank is not None, "check_store comes first"
    servable = [one.verdict.nbytes for one in checked if one.reason is None]
    in_batch = number_of(settings.more, "--max-loras", max(1, min(_USUAL_IN_BATCH, len(servable))))
    room = settings.adapter_memory // max(servable, default=1)
    in_memory = max(in_batch, min(room, _MOST_IN_MEMORY))
    return VllmOptions(
        location=base.location,
        base_name=settings.base_name,
        socket=socket,
        adapters=copies,
        rank=verdicts.most_rank,
        in_batch=in_batch,
        in_memory=in_memory,
        answer_tokens=settings.answer_tokens,
        more=settings.more,
    )
