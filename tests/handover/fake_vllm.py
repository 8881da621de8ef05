"""What manytune uses of vLLM over HTTP, without a model: an answer says whose weights it would have come from."""

from __future__ import annotations

import asyncio
import hashlib
import json
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from tests.server.live import until

from manytune.chat_rendering import render_chat


def weights_of(directory: Path) -> str:
    """Identifies the tensors of an adapter."""
    return hashlib.sha256((directory / "adapter_model.safetensors").read_bytes()).hexdigest()[:16]


class FakeVllm:
    """A server that loads adapters by their directories, and answers with whose weights it has.

    Attributes:
        adapters: What is loaded: the weights of each name.
        asked: The bodies of all completions.
        refusal: If set, why no adapter can be loaded.
        template: What it takes for the base's chat template.
        paused: Streams wait after their first chunk while it is set.
    """

    def __init__(self, tokenizer: Any) -> None:
        self.adapters: dict[str, str] = {}
        self.asked: list[dict[str, Any]] = []
        self.refusal: str | None = None
        self.template = tokenizer.chat_template
        self.paused = False
        self._tokenizer = tokenizer
        self.app = FastAPI()
        self.app.get("/health")(self._health)
        self.app.get("/metrics")(self._metrics)
        self.app.post("/tokenize")(self._tokenize)
        self.app.post("/v1/load_lora_adapter")(self._load)
        self.app.post("/v1/unload_lora_adapter")(self._unload)
        self.app.post("/v1/completions")(self._complete)
        self.app.post("/v1/chat/completions")(self._complete)

    async def _health(self) -> Response:
        return Response()

    async def _metrics(self) -> Response:
        return PlainTextResponse("vllm:num_requests_running 0.0\n")

    async def _tokenize(self, http: Request) -> Response:
        body = await http.json()
        text = render_chat(
            body.get("chat_template") or self.template,
            body["messages"],
            self._tokenizer.special_tokens_map,
            add_generation_prompt=True,
            **body.get("chat_template_kwargs", {}),
        )
        tokens = self._tokenizer(text, add_special_tokens=body.get("add_special_tokens", False))["input_ids"]
        return JSONResponse({"tokens": tokens, "count": len(tokens)})

    async def _load(self, http: Request) -> Response:
        body = await http.json()
        if self.refusal is not None:
            return _error(500, self.refusal)
        if body["lora_name"] in self.adapters:
            return _error(400, f"The lora adapter '{body['lora_name']}' has already been loaded.")
        self.adapters[body["lora_name"]] = weights_of(Path(body["lora_path"]))
        return PlainTextResponse("Success")

    async def _unload(self, http: Request) -> Response:
        body = await http.json()
        return PlainTextResponse(self.adapters.pop(body["lora_name"]))

    async def _complete(self, http: Request) -> Response:
        body = await http.json()
        self.asked.append(body)
        name = body["model"]
        if len(name) == 64 and name not in self.adapters:
            return _error(404, f"The model `{name}` does not exist.")
        if body.get("max_tokens") == 7:
            return _error(400, f"{name} can't have 7 tokens.")
        words = ["weights", self.adapters.get(name, "base")]
        usage = {"prompt_tokens": 5, "completion_tokens": 2, "total_tokens": 7}
        if body.get("stream"):
            return StreamingResponse(self._stream(name, words, usage), media_type="text/event-stream")
        choices = [
            {"index": index, "text": " ".join(words), "finish_reason": "stop"}
            for index in range(body.get("n", 1))
        ]
        return JSONResponse({"id": "1", "model": name, "choices": choices, "usage": usage})

    async def _stream(self, name: str, words: list[str], usage: dict[str, int]) -> AsyncIterator[str]:
        for number, word in enumerate(words):
            while number and self.paused:
                await asyncio.sleep(0.01)
            # What is in memory now, as where a version is replaced in place.
            text = self.adapters.get(name, "gone") if number else word
            end = "stop" if number == len(words) - 1 else None
            choice = {"index": 0, "text": text, "finish_reason": end}
            yield f"data: {json.dumps({'model': name, 'choices': [choice], 'usage': None})}\n\n"
        yield f"data: {json.dumps({'model': name, 'choices': [], 'usage': usage})}\n\n"
        yield "data: [DONE]\n\n"


def _error(status: int, message: str) -> Response:
    return JSONResponse(
        {"error": {"message": message, "type": "Error", "param": None, "code": status}}, status
    )


@contextmanager
def listening(fake: FakeVllm, socket: Path) -> Iterator[None]:
    """Serve it at a Unix socket, from a thread."""
    server = uvicorn.Server(uvicorn.Config(fake.app, uds=str(socket), log_level="error", lifespan="off"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    until(lambda: server.started)
    try:
        yield
    finally:
        fake.paused = False
        server.should_exit = True
        thread.join(20)
