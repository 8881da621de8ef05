from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from tests.store.adapters_made import make_adapter
from tests.store.tiny import tiny_model

from manytune.errors import StoreError, TargetExistsError
from manytune.model.peft_model import PeftModel
from manytune.store.base import Base
from manytune.store.exports import export_peft, export_vllm

IDS = torch.tensor([[3, 4, 5, 9, 12]])
METHODS: dict[str, dict[str, Any]] = {
    "lora": {},
    "lora-dora": {"use_dora": True},
    "lora-rslora": {"use_rslora": True, "rank_pattern": {"q_proj": 3}},
    "ia3": {},
    "prompt-tuning": {"num_virtual_tokens": 3},
    "prefix-tuning": {"num_virtual_tokens": 3},
}


@pytest.mark.filterwarnings("ignore::FutureWarning")  # peft's
@pytest.mark.parametrize("method", METHODS)
def test_an_exported_adapter_gives_equal_logits_in_peft(method: str, tmp_path: Path, tiny_base: Base) -> None:
    adapter = make_adapter(
        tmp_path / "a",
        tiny_base,
        method=method.removesuffix("-dora").removesuffix("-rslora"),
        **METHODS[method],
    )
    export_peft(adapter, tmp_path / "out")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "README.md",
        "adapter_config.json",
        "adapter_model.safetensors",
    ]
    theirs = peft.PeftModel.from_pretrained(tiny_model().eval(), str(tmp_path / "out"))
    mine = PeftModel.from_pretrained(tiny_model().eval(), adapter)
    with torch.no_grad():
        expected = mine(input_ids=IDS).logits[:, -1]
        torch.testing.assert_close(theirs(input_ids=IDS).logits[:, -1], expected, rtol=1e-4, atol=1e-5)
        assert not torch.allclose(tiny_model().eval()(input_ids=IDS).logits[:, -1], expected)


def test_a_combination_of_methods_becomes_two_adapters_for_peft(tmp_path: Path, tiny_base: Base) -> None:
    parts = {
        "weights": {"name": "lora", "r": 2, "target_modules": ["q_proj"]},
        "prompt": {"name": "prompt-tuning", "num_virtual_tokens": 3},
    }
    adapter = make_adapter(tmp_path / "a", tiny_base, method="combined", **parts)
    export_peft(adapter, tmp_path / "out")
    kinds = {
        part: json.loads((tmp_path / "out" / part / "adapter_config.json").read_text())["peft_type"]
        for part in parts
    }
    assert kinds == {"weights": "LORA", "prompt": "PROMPT_TUNING"}


def test_a_combination_with_a_part_that_peft_lacks_is_not_exported(tmp_path: Path, tiny_base: Base) -> None:
    parts = {
        "weights": {"name": "bottleneck", "bottleneck_size": 4},
        "prompt": {"name": "prompt-tuning", "num_virtual_tokens": 3},
    }
    adapter = make_adapter(tmp_path / "a", tiny_base, method="combined", **parts)
    with pytest.raises(StoreError, match="HF PEFT has no method BOTTLENECK"):
        export_peft(adapter, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_method_that_peft_lacks_is_named(tmp_path: Path, tiny_base: Base) -> None:
    adapter = make_adapter(tmp_path / "a", tiny_base, method="bottleneck", bottleneck_size=4)
    with pytest.raises(StoreError, match="HF PEFT has no method BOTTLENECK"):
        export_peft(adapter, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_vllm_gets_the_adapters_and_the_arguments_that_serve_them(tmp_path: Path, tiny_base: Base) -> None:
    adapters = {f"a{r}": make_adapter(tmp_path / str(r), tiny_base, r=r) for r in (2, 12)}
    arguments = export_vllm(adapters, tmp_path / "out")
    folder = (tmp_path / "out").resolve()
    assert arguments == f"--enable-lora --max-lora-rank 16 --lora-modules a2={folder}/a2 a12={folder}/a12"
    assert (folder / "vllm-arguments.txt").read_text() == arguments + "\n"
    for name, path in adapters.items():
        for file in ("adapter_config.json", "adapter_model.safetensors"):
            assert (folder / name / file).read_bytes() == (path / file).read_bytes()
    with pytest.raises(TargetExistsError, match="out exists already"):
        export_vllm(adapters, tmp_path / "out")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "ia3"}, "vLLM runs plain LoRA adapters only, and it is of type IA3"),
        (
            {"method": "adalora", "total_step": 10},
            "vLLM runs plain LoRA adapters only, and it is of type ADALORA",
        ),
        ({"use_dora": True}, "it has use_dora"),
        ({"modules_to_save": ["lm_head"]}, "it trains lm_head in full"),
        ({"init_lora_weights": "pissa"}, r"starts from the base's weights \(init_lora_weights='pissa'\)"),
        ({"rank_pattern": {"q_proj": 3}}, "vLLM gives all layers one rank and one alpha"),
        ({"target_modules": ["embed_tokens"]}, r"and it has base_model\S+, which isn't a linear layer's"),
        ({"r": 600}, "vLLM runs ranks up to 512; found 600"),
    ],
)
@pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers`")
def test_what_vllm_cannot_run_is_named(
    options: dict[str, Any], message: str, tmp_path: Path, tiny_base: Base
) -> None:
    adapter = make_adapter(tmp_path / "a", tiny_base, **options)
    with pytest.raises(StoreError, match=message):
        export_vllm({"a": adapter}, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("place", ["my adapters", "it's", 'a "b"', "$HOME;*"])
def test_vllms_arguments_come_through_xargs_and_a_shell_whatever_the_path(
    place: str, tmp_path: Path, tiny_base: Base
) -> None:
    adapter = make_adapter(tmp_path / "a", tiny_base)
    target = tmp_path / place / "out"
    arguments = export_vllm({"an adapter": adapter}, target)
    expected = ["--enable-lora", "--max-lora-rank", "8", "--lora-modules"]
    expected.append(f"an adapter={target.resolve()}/an adapter")
    shown = "import json, sys; print(json.dumps(sys.argv[1:]))"
    with (target / "vllm-arguments.txt").open() as file:
        by_xargs = subprocess.run(["xargs", sys.executable, "-c", shown], stdin=file, capture_output=True)
    by_shell = subprocess.run(
        ["sh", "-c", f"'{sys.executable}' -c '{shown}' {arguments}"], capture_output=True
    )
    assert json.loads(by_xargs.stdout) == json.loads(by_shell.stdout) == expected


@pytest.mark.parametrize("name", ["a=b", "{a", "-a", "", "a\nb", "a/b/c", "/a", "a/..", "../a", "a/"])
def test_a_name_that_vllm_takes_for_something_else_is_refused(
    name: str, tmp_path: Path, tiny_base: Base
) -> None:
    with pytest.raises(StoreError, match="can't be an adapter's name in vLLM's arguments"):
        export_vllm({name: make_adapter(tmp_path / "a", tiny_base)}, tmp_path / "out")


def test_what_is_exported_names_its_base_in_its_card(tmp_path: Path, tiny_base: Base) -> None:
    adapter = make_adapter(tmp_path / "a", tiny_base)
    export_peft(adapter, tmp_path / "out")
    assert (tmp_path / "out" / "README.md").read_text() == (adapter / "README.md").read_text()
