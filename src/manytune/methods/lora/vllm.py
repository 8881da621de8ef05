"""Which LoRA adapters vLLM can run: s · BA next to weights of linear layers and nothing else."""

from __future__ import annotations

from collections.abc import Iterable

from manytune.errors import ConfigError
from manytune.methods.lora.config import LoraConfig
from manytune.methods.lora.init import starts_from_weight

_FACTORS = (".lora_A.weight", ".lora_B.weight")
_EXPERTS = ".experts."


def vllm_rank(config: LoraConfig, names: Iterable[str], *, patterns: bool = False) -> int:
    """See `Tuner.vllm_rank`.

    Raises:
        ConfigError: The adapter does something else, which is named.
    """
    obstacle = _option(config) or next(filter(None, map(_tensor, names)), None)
    if obstacle is not None:
        raise ConfigError(
            f"vLLM runs plain LoRA adapters only, and {obstacle}. Merge it into its base instead."
        )
    if not patterns and (config.rank_pattern or config.alpha_pattern):
        raise ConfigError(
            "vLLM gives all layers one rank and one alpha before its release 0.32; the adapter has patterns of them."
        )
    return max([config.r, *(config.rank_pattern or {}).values()])


def _option(config: LoraConfig) -> str | None:
    if config.use_dora or config.lora_bias or config.bias != "none":
        option = (
            "use_dora" if config.use_dora else "lora_bias" if config.lora_bias else f"bias={config.bias!r}"
        )
        return f"it has {option}"
    if config.target_parameters:
        # vLLM's support depends on its version and on the model; some versions leave such tensors out in silence.
        return f"it adapts parameters (target_parameters={sorted(config.target_parameters)})"
    if config.modules_to_save:
        return f"it trains {', '.join(config.modules_to_save)} in full"
    if config.trains_tokens:
        return "it trains rows of the embeddings (trainable_token_indices)"
    if starts_from_weight(config.init_lora_weights):
        return f"it starts from the base's weights (init_lora_weights={config.init_lora_weights!r})"
    return None


def _tensor(name: str) -> str | None:
    if not name.endswith(_FACTORS):
        return f"it has {name}, which isn't a linear layer's"
    return f"it has {name}, which is an expert's" if _EXPERTS in name else None
