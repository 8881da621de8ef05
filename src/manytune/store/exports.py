"""Adapters for HF PEFT and vLLM. For llama.cpp see `export_gguf.py`, for plain models `combining.py`."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

from manytune.atomic import atomic_directory
from manytune.errors import StoreError
from manytune.methods.checkpoint.format import TENSORS_NAME
from manytune.methods.combined import CombinedConfig, export_parts
from manytune.methods.config import CONFIG_NAME, PeftConfig, PeftType
from manytune.methods.lora.config import LoraConfig
from manytune.methods.lora.init import starts_from_weight
from manytune.store.adapters import open_adapter
from manytune.store.resident import MappedTensors

#: The methods that HF PEFT has, too.
_PEFT_TYPES = {
    PeftType.LORA,
    PeftType.ADALORA,
    PeftType.VERA,
    PeftType.IA3,
    PeftType.PROMPT_TUNING,
    PeftType.P_TUNING,
    PeftType.PREFIX_TUNING,
}
#: Values that vLLM takes for --max-lora-rank.
_VLLM_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
_ARGUMENTS = "vllm-arguments.txt"


def export_peft(directory: str | Path, target: Path) -> None:
    """Write an adapter as HF PEFT's `save_pretrained` does; a combination becomes two, `weights` and `prompt`.

    Args:
        directory: The adapter's directory.
        target: The new directory, which must not exist.

    Raises:
        StoreError: HF PEFT has no such method; the adapter is damaged; or the target exists.
    """
    stored = open_adapter(directory)
    config = PeftConfig.from_pretrained(stored.path)
    with atomic_directory(target) as temporary:
        if isinstance(config, CombinedConfig):
            export_parts(stored.path, temporary)
            return
        if config.peft_type not in _PEFT_TYPES:
            raise StoreError(
                f"{stored.path}: HF PEFT has no method {config.peft_type}. Merge the adapter into its base, if it goes "
                "into the weights, or run it with manytune."
            )
        for name in (CONFIG_NAME, TENSORS_NAME):
            shutil.copyfile(stored.path / name, temporary / name)


def export_vllm(adapters: Mapping[str, str | Path], target: Path) -> str:
    """Write LoRA adapters for vLLM, and the arguments that serve them: `vllm serve BASE ARGUMENTS`.

    Args:
        adapters: Their directories, by the names that requests will use.
        target: The new directory, which must not exist. It gets a directory for each adapter, and the arguments in
            `vllm-arguments.txt`.

    Returns:
        The arguments.

    Raises:
        StoreError: vLLM can't run an adapter; one is damaged; or the target exists.
    """
    ranks = []
    for path in adapters.values():
        config = require_plain_lora(Path(path), PeftConfig.from_pretrained(path), "vLLM")
        if config.rank_pattern or config.alpha_pattern:
            raise StoreError(
                f"{path}: vLLM gives all layers one rank and one alpha; the adapter has patterns of them."
            )
        ranks.append(config.r)
    rank = next((known for known in _VLLM_RANKS if known >= max(ranks)), None)
    if rank is None:
        raise StoreError(f"vLLM runs ranks up to {_VLLM_RANKS[-1]}; found {max(ranks)}.")
    modules = " ".join(f"{name}={(target / name).resolve()}" for name in adapters)
    arguments = f"--enable-lora --max-lora-rank {rank} --lora-modules {modules}"
    with atomic_directory(target) as temporary:
        for name, path in adapters.items():
            export_peft(path, temporary / name)
        (temporary / _ARGUMENTS).write_text(arguments + "\n", encoding="utf-8")
    return arguments


def require_plain_lora(directory: Path, config: PeftConfig, program: str) -> LoraConfig:
    """The options, if the adapter adds s · BA to weights of linear layers and nothing else.

    Raises:
        StoreError: It does something else, which is named.
    """
    obstacle = None
    if type(config) is not LoraConfig:
        obstacle = f"it is of type {config.peft_type}"
    elif config.use_dora or config.lora_bias or config.bias != "none":
        option = (
            "use_dora" if config.use_dora else "lora_bias" if config.lora_bias else f"bias={config.bias!r}"
        )
        obstacle = f"it has {option}"
    elif config.modules_to_save:
        obstacle = f"it trains {', '.join(config.modules_to_save)} in full"
    elif starts_from_weight(config.init_lora_weights):
        obstacle = f"it starts from the base's weights (init_lora_weights={config.init_lora_weights!r})"
    else:
        factors = (".lora_A.weight", ".lora_B.weight")
        others = [name for name in MappedTensors(directory / TENSORS_NAME) if not name.endswith(factors)]
        obstacle = f"it has {others[0]}, which isn't a linear layer's" if others else None
    if obstacle is not None:
        raise StoreError(
            f"{directory}: {program} runs plain LoRA adapters only, and {obstacle}. Merge it into its base instead."
        )
    assert isinstance(config, LoraConfig)
    return config
