"""What `--ray-config` writes, served by Ray Serve's LLM application on a cluster of this machine.

    python -m tests.handover.ray_llm_check PYTHON [--only-read]

PYTHON is that of an environment with `ray[serve]` and vLLM, which need not be this one. The adapters go to moto's S3
server. Ray's own classes have to read the configuration, and each adapter's greedy tokens have to be those of
manytune's engine. The configuration gets what a user without GPUs would write into it: `accelerator_config`, and a type
that a CPU computes. It ends with an error at the first thing that isn't as it should be.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import fsspec
import torch
import yaml
from tests.experiments.ray_head_check import free_port, running_head
from tests.store.remote.s3_server import environment, s3_server

from manytune.data.encoding.encode import Encoder
from manytune.data.templates import Segment
from manytune.engine.engine import Engine
from manytune.engine.options import EngineOptions
from manytune.engine.request import Request, SamplingParams
from manytune.methods.lora.config import LoraConfig
from manytune.model.attach import get_peft_model
from manytune.store.adapters import save_adapter
from manytune.store.base import Base, load_base
from manytune.store.manifest import Description
from manytune.store.resident import read_resident
from manytune.store.store import AdapterStore

NAMES = ("one", "two", "three", "four")
REMOTE = "s3://bucket/adapters"
PROMPT = "The three largest rivers of Europe are"
MOST = 16
SCALE = 0.08  # of the values of matrices B: every answer changes
PATIENCE = 1200.0  # seconds, on a machine that is busy
READ = """
import sys, yaml
from ray.serve.llm import LLMConfig, LLMServingArgs
(application,) = yaml.safe_load(open(sys.argv[1]))["applications"]
read = LLMServingArgs.model_validate(application["args"])
(config,) = read.llm_configs
engine = config.get_engine_config()
print(config.model_id, config.lora_config.dynamic_lora_loading_path, sorted(engine.engine_kwargs))
"""


def filled(directory: Path, base: Base) -> AdapterStore:
    """A store of adapters that change the base's answers, by as much as training does.

    Much larger ones make a model whose answers hang on the last bits of float32.
    """
    store = AdapterStore(directory / "store")
    for seed, name in enumerate(NAMES):
        torch.manual_seed(seed)
        options = LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM")
        model = get_peft_model(base.model, options)
        for parameter_name, parameter in model.named_parameters():
            if "lora_B" in parameter_name:
                torch.nn.init.normal_(parameter, std=SCALE)
        about = Description(method="lora", base=base.name, fingerprint=base.fingerprint)
        save_adapter(model, directory / name, about)
        model.unload()
        store.add(directory / name, name=name)
    return store


def own_tokens(base: Base, store: AdapterStore) -> dict[str, list[int]]:
    """The tokens of manytune's engine; the base's are called `base`."""
    engine = Engine(base.model, base.tokenizer, EngineOptions(max_batch=8))
    for name in NAMES:
        engine.add_adapter(name, read_resident(store.path(name)))
    encoder = Encoder(base.tokenizer, max_length=None, chat=False, special_tokens_in_text=True)
    ids = encoder.prompt_ids([Segment("user", PROMPT)])
    params = SamplingParams(max_new_tokens=MOST, ignore_eos=True)
    asked = [Request(name, ids, params, None if name == "base" else name) for name in ("base", *NAMES)]
    return {
        request.id: list(one.token_ids) for request, one in zip(asked, engine.generate(asked), strict=True)
    }


def written(directory: Path, store: AdapterStore) -> Path:
    """The configuration, by the command that writes it."""
    command = [sys.executable, "-m", "manytune", "serve", "--engine", "vllm", "--base", "embedded"]
    command += ["--base-name", "base", "--adapters", str(store.root)]
    command += ["--ray-config", str(directory / "ray"), "--ray-adapters", REMOTE]
    print(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.strip())
    return directory / "ray"


def on_cpus(file: Path, port: int) -> None:
    """Add what a machine without GPUs needs, and where to listen."""
    content: dict[str, Any] = yaml.safe_load(file.read_text())
    (config,) = content["applications"][0]["args"]["llm_configs"]
    config["accelerator_config"] = {"kind": "cpu"}
    config["placement_group_config"] = {"bundles": [{"CPU": 1}]}
    config["engine_kwargs"] |= {"dtype": "float32", "max_model_len": 512, "max_num_seqs": 8}
    content["http_options"] = {"host": "127.0.0.1", "port": port}
    file.write_text(yaml.safe_dump(content, sort_keys=False))


def ask(port: int, model: str) -> list[int]:
    """The greedy tokens of a model, once it answers."""
    body = {"model": model, "prompt": PROMPT, "max_tokens": MOST, "temperature": 0}
    body |= {"ignore_eos": True, "return_token_ids": True}
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/v1/completions",
        data=json.dumps(body).encode(),
        headers={"content-type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=PATIENCE) as answer:  # noqa: S310
        tokens: list[int] = json.loads(answer.read())["choices"][0]["token_ids"]
    return tokens


def until_it_answers(port: int, started: subprocess.Popen[bytes], log: Path) -> None:
    end = time.monotonic() + PATIENCE
    while True:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/v1/models", timeout=10) as answer:
                if "base" in answer.read().decode():
                    return
        except (OSError, urllib.error.HTTPError):
            pass
        assert started.poll() is None and time.monotonic() < end, log.read_text()[-4000:]
        time.sleep(1)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("python", help="of an environment with ray[serve] and vLLM")
    parser.add_argument(
        "--only-read", action="store_true", help="only have Ray's classes read what is written"
    )
    chosen = parser.parse_args()
    base = load_base("embedded", dtype=torch.float32)
    with tempfile.TemporaryDirectory() as scratch, s3_server() as address:
        directory = Path(scratch)
        store = filled(directory, base)
        ray_directory = written(directory, store)
        run = subprocess.run(
            [chosen.python, "-c", READ, ray_directory / "serve.yaml"], stdout=subprocess.PIPE
        )
        assert run.returncode == 0, "Ray's LLMConfig refuses the configuration; its reason is above"
        print("Ray's LLMServingArgs reads:", run.stdout.decode().strip())
        if chosen.only_read:
            return 0
        os.environ.update(environment(address))
        storage = fsspec.filesystem("s3")
        storage.mkdir("bucket")
        storage.put(str(ray_directory / "adapters"), "bucket/", recursive=True)
        on_cpus(ray_directory / "serve.yaml", port := free_port())
        os.environ |= {"VLLM_CPU_KVCACHE_SPACE": "1", "HF_HUB_OFFLINE": "1", "DO_NOT_TRACK": "1"}
        os.environ |= {"RAY_AUTH_MODE": "disabled", "RAY_ADDRESS": f"127.0.0.1:{(head := free_port())}"}
        # More than there are: its application asks for a core for the ingress, and for two more.
        with running_head(directory / "ray-head", head, python=chosen.python, cores=8):
            serve_and_compare(chosen.python, ray_directory / "serve.yaml", port, base, store)
    return 0


def serve_and_compare(python: str, file: Path, port: int, base: Base, store: AdapterStore) -> None:
    """`serve run` of the configuration, and the tokens of its answers."""
    log = file.with_name("log")
    with log.open("wb") as output:
        command = [python, "-m", "ray.serve.scripts", "run", str(file)]
        started = subprocess.Popen(command, stdout=output, stderr=output)
    try:
        until_it_answers(port, started, log)
        expected = own_tokens(base, store)
        for name, tokens in expected.items():
            found = ask(port, "base" if name == "base" else f"base:{name}")
            assert found == tokens, (name, found, tokens)
        changed = sum(tokens != expected["base"] for tokens in expected.values())
        print(f"{len(expected)} answers are manytune's, token by token; {changed} aren't the base's")
    finally:
        started.terminate()
        started.wait(120)


if __name__ == "__main__":
    sys.exit(main())
