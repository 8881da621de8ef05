"""What vLLM is started with."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from manytune.errors import ServeError
from manytune.handover.vllm_options import VllmOptions, check_options, number_of, value_of

OPTIONS = VllmOptions(
    location="/models/tiny",
    base_name="tiny",
    socket=Path("/run/socket"),
    adapters=Path("/cache/adapters"),
    rank=16,
    in_batch=8,
    in_memory=64,
    answer_tokens=100,
    more=("--max-loras", "3"),
)


def test_the_command_has_what_manytune_decides_and_then_the_users_options():
    command = OPTIONS.command(Path("/bin/vllm"))
    assert command[:3] == ["/bin/vllm", "serve", "/models/tiny"] and command[-2:] == ["--max-loras", "3"]
    values = {name: value_of(command, name) for name in ("--served-model-name", "--uds", "--max-cpu-loras")}
    assert values == {"--served-model-name": "tiny", "--uds": "/run/socket", "--max-cpu-loras": "64"}
    assert value_of(command, "--max-loras") == "3"  # the last holds
    defaults = json.loads(value_of(command, "--override-generation-config") or "")
    assert (defaults["temperature"], defaults["top_p"], defaults["max_new_tokens"]) == (1.0, 1.0, 100)


@pytest.mark.parametrize(
    ("plugins", "expected"),
    [
        (None, None),
        ("mine", "mine,lora_filesystem_resolver"),
        ("lora_filesystem_resolver,mine", "lora_filesystem_resolver,mine"),
        ("", "lora_filesystem_resolver"),
    ],
)
def test_the_resolver_is_on_next_to_the_plugins_that_the_user_has_chosen(plugins, expected):
    ours = {"PATH": "/bin"} if plugins is None else {"PATH": "/bin", "VLLM_PLUGINS": plugins}
    found = OPTIONS.environment(ours)
    assert found.get("VLLM_PLUGINS") == expected
    assert found["PATH"] == "/bin" and found["VLLM_LORA_RESOLVER_CACHE_DIR"] == "/cache/adapters"
    assert found["VLLM_ALLOW_RUNTIME_LORA_UPDATING"] == "1"


@pytest.mark.parametrize(
    "options", [["--max-loras=4"], ["--max_loras", "4"], ["--max-loras", "2", "--max-loras", "4"]]
)
def test_an_option_is_read_however_it_is_written(options):
    assert number_of(options, "--max-loras", 8) == 4
    assert number_of([], "--max-loras", 8) == 8


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--port", "1"], "--port after --: manytune gives vLLM its address"),
        (["--lora_modules=a=b"], "--lora_modules=a=b after --"),
        (["model"], "expected vLLM's options after --, found 'model'"),
    ],
)
def test_what_manytune_decides_cannot_be_given_again(options, message):
    with pytest.raises(ServeError, match=message):
        check_options(options)


@pytest.mark.parametrize("value", ["0", "many", "-1", ""])
def test_a_number_that_is_none_is_refused(value):
    with pytest.raises(ServeError, match="expected a whole number above 0"):
        number_of(["--max-loras", value], "--max-loras", 8)
