"""Two servers to compare with: what one writes oneself around HF PEFT, and around llama.cpp. Started by `server.py`.

    python benchmarks/server_peers.py peft|llama --port N --adapters DIR [--gguf FILE]

Both take `{"model", "prompt": [ids], "max_tokens"}` at /v1/completions and answer one request after another, as a model
that has one adapter at a time does. Answers go on to the limit.
"""

from __future__ import annotations

import argparse
import threading
import warnings
from collections.abc import Callable
from pathlib import Path

import uvicorn
from fastapi import FastAPI
from pydantic import BaseModel

#: From an adapter's name, a prompt and a limit to the number of tokens that were made.
Answer = Callable[[str, list[int], int], int]


class Asked(BaseModel):
    """What a client sends."""

    model: str
    prompt: list[int]
    max_tokens: int


def app_of(answer: Answer) -> FastAPI:
    app, lock = FastAPI(), threading.Lock()

    @app.get("/readyz")
    def readyz() -> str:
        return "ready"

    @app.post("/v1/completions")
    def complete(asked: Asked) -> dict[str, dict[str, int]]:
        with lock:
            made = answer(asked.model, asked.prompt, asked.max_tokens)
        return {"usage": {"completion_tokens": made}}

    return app


def by_peft(adapters: Path) -> Answer:
    import peft
    import torch
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
        model.set_adapter(name)
        config = GenerationConfig(
            do_sample=False, max_new_tokens=limit, min_new_tokens=limit, pad_token_id=0, eos_token_id=2
        )
        ids = torch.tensor([prompt])
        with torch.inference_mode():
            made = model.generate(
                input_ids=ids, attention_mask=torch.ones_like(ids), generation_config=config
            )
        return int(made.shape[1] - len(prompt))

    return answer


def by_llama(adapters: Path, gguf: Path) -> Answer:
    import llama_cpp

    model = llama_cpp.Llama(str(gguf), n_ctx=256, verbose=False)
    loaded = {
        path.stem: llama_cpp.llama_adapter_lora_init(model.model, str(path).encode())
        for path in adapters.glob("*.gguf")
    }
    end = model.token_eos()

    def answer(name: str, prompt: list[int], limit: int) -> int:
        context = model.ctx
        llama_cpp.llama_clear_adapter_lora(context)
        llama_cpp.llama_set_adapter_lora(context, loaded[name], 1.0)
        model.reset()
        made = model.create_completion(prompt, max_tokens=limit, temperature=0.0, logit_bias={end: -100.0})
        return int(made["usage"]["completion_tokens"])

    return answer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("kind", choices=["peft", "llama"])
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--adapters", type=Path, required=True)
    parser.add_argument("--gguf", type=Path)
    options = parser.parse_args()
    answer = by_peft(options.adapters) if options.kind == "peft" else by_llama(options.adapters, options.gguf)
    uvicorn.run(app_of(answer), host="127.0.0.1", port=options.port, log_level="warning")


if __name__ == "__main__":
    main()
