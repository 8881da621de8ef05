"""Servers to compare with, each around a library of others. Started by `server.py`.

    python benchmarks/server_peers.py openvino --port N --gguf FILE
    python benchmarks/server_peers.py llama --port N --gguf FILE --adapters DIR
    python benchmarks/server_peers.py peft --port N --adapters DIR

OpenVINO GenAI's continuous batching and the loop over HF PEFT take `{"prompt": [ids], "max_tokens"}` at
/v1/completions; the latter answers one request after another, as a model that has one adapter at a time does. llama.cpp
has its own server, with the adapters 0.gguf, 1.gguf ... as `lora` of a request. All read the prompt's ids as they are,
answer greedily and go on to the limit.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import os
import signal
import threading
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

#: Requests that run at once.
ROWS = 32
#: Tokens of each, for servers that give each request a part of a cache of fixed size.
ROW_TOKENS = 640


def serve_openvino(port: int, gguf: Path) -> None:
    """OpenVINO GenAI's continuous batching: requests join between its steps."""
    import numpy as np
    import openvino as ov
    import openvino_genai as genai

    scheduling = genai.SchedulerConfig()
    scheduling.cache_size, scheduling.max_num_seqs = 2, ROWS  # GiB
    scheduling.enable_prefix_caching = False
    pipeline = genai.ContinuousBatchingPipeline(str(gguf), scheduling, "CPU")
    running: list[tuple[Any, asyncio.Future[int]]] = []
    arrived, numbers = asyncio.Event(), itertools.count()

    async def answer(body: Any) -> int:
        settings = genai.GenerationConfig()
        settings.max_new_tokens = settings.min_new_tokens = body["max_tokens"]
        settings.ignore_eos, settings.do_sample = True, False
        ids = ov.Tensor(np.array([body["prompt"]], dtype=np.int64))
        made: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        running.append((pipeline.add_request(next(numbers), ids, settings), made))
        arrived.set()
        return await made

    async def steps() -> None:
        while True:
            await arrived.wait()
            pipeline.step()
            for one in list(running):
                handle, made = one
                if handle.get_status() != genai.GenerationStatus.RUNNING:
                    running.remove(one)
                    made.set_result(sum(len(output.generated_ids) for output in handle.read_all()))
            if not running:
                arrived.clear()
            for _ in range(4):  # connections, heads and bodies that have come meanwhile
                await asyncio.sleep(0)

    async def both() -> None:
        server = await asyncio.start_server(lambda *streams: _respond(answer, *streams), "127.0.0.1", port)
        async with server:
            await steps()

    asyncio.run(both())


async def _respond(
    answer: Callable[[Any], Any], reader: asyncio.StreamReader, writer: asyncio.StreamWriter
) -> None:
    """One request on a connection: 200 to whatever is asked with GET, and an answer to what is posted."""
    head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
    made = 0
    if head.startswith("post"):
        size = int(head.partition("content-length:")[2].split()[0])
        made = await answer(json.loads(await reader.readexactly(size)))
    body = json.dumps({"usage": {"completion_tokens": made}}).encode()
    writer.write(
        b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nConnection: close\r\n"
        + f"Content-Length: {len(body)}\r\n\r\n".encode()
        + body
    )
    await writer.drain()
    writer.close()


def serve_llama(port: int, gguf: Path, adapters: Path) -> None:
    """llama.cpp's own server. It batches requests for the same adapters, and others wait."""
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path, params.port = str(gguf), port
    params.n_ctx, params.n_parallel = ROWS * ROW_TOKENS, ROWS
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = len(os.sched_getaffinity(0))
    params.cont_batching = params.lora_init_without_apply = True
    files = sorted(adapters.glob("*.gguf"), key=lambda file: int(file.stem))
    params.lora_adapters = [xllamacpp.CommonAdapterLoraInfo(str(file), 1.0) for file in files]
    server = xllamacpp.Server(params)
    signal.pause()
    del server


def serve_peft(port: int, adapters: Path) -> None:
    """What one writes oneself around HF PEFT: a lock, `set_adapter`, `generate`."""
    import peft
    import torch
    import uvicorn
    from fastapi import FastAPI, Request
    from transformers import GenerationConfig

    from manytune.store.base import load_base

    names = sorted(path.name for path in adapters.iterdir())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = peft.PeftModel.from_pretrained(
            load_base("embedded").model, str(adapters / names[0]), adapter_name=names[0]
        ).eval()
        for name in names[1:]:
            model.load_adapter(str(adapters / name), adapter_name=name)

    def answer(name: str, prompt: list[int], limit: int) -> int:
        config = GenerationConfig(
            do_sample=False, max_new_tokens=limit, min_new_tokens=limit, pad_token_id=0, eos_token_id=2
        )
        ids = torch.tensor([prompt])
        with lock, torch.inference_mode():
            model.set_adapter(name)
            made = model.generate(
                input_ids=ids, attention_mask=torch.ones_like(ids), generation_config=config
            )
        return int(made.shape[1] - len(prompt))

    app, lock = FastAPI(), threading.Lock()

    @app.get("/readyz")
    def readyz() -> str:
        return "ready"

    @app.post("/v1/completions")
    async def complete(request: Request) -> dict[str, dict[str, int]]:
        asked = await request.json()
        made = await asyncio.to_thread(answer, asked["model"], asked["prompt"], asked["max_tokens"])
        return {"usage": {"completion_tokens": made}}

    uvicorn.run(app, host="127.0.0.1", port=port, log_level="warning")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("kind", choices=["openvino", "llama", "peft"])
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--adapters", type=Path)
    parser.add_argument("--gguf", type=Path)
    options = parser.parse_args()
    match options.kind:
        case "openvino":
            serve_openvino(options.port, options.gguf)
        case "llama":
            serve_llama(options.port, options.gguf, options.adapters)
        case "peft":
            serve_peft(options.port, options.adapters)


if __name__ == "__main__":
    main()
