"""Which LoRA adapters vLLM can run: s · BA next to weights of linear layers and nothing else, of one rank and alpha."""

from __future__ import annotations

from collections.abc import Iterable

from manytune.errors import ConfigError
from manytune.methods.lora.config import LoraConfig
from manytune.methods.lora.init import starts_from_weight

_FACTORS = (".lora_A.weight", ".lora_B.weight")


def vllm_rank(config: LoraConfig, names: Iterable[str]) -> int:
    """See `Tuner.vllm_rank`.

    Raises:
        ConfigError: The adapter does something else, which is named.
    """
    obstacle = None
    if config.use_dora or config.lora_bias or config.bias != "none":
        option = (
            "use_dora" if config.use_dora else "lora_bias" if config.lora_bias else f"bias={config.bias!r}"
        )
        obstacle = f"it has {option}"
    elif config.target_parameters:
        # vLLM's support depends on its version and on the model; some versions leave such tensors out in silence.
        obstacle = f"it adapts parameters (target_parameters={sorted(config.target_parameters)})"
    elif config.modules_to_save:
        obstacle = f"it trains {', '.join(config.modules_to_save)} in full"
    elif starts_from_weight(config.init_lora_weights):
        obstacle = f"it starts from the base's weights (init_lora_weights={config.init_lora_weights!r})"
    else:
        other = next((name for name in names if not name.endswith(_FACTORS)), None)
        obstacle = f"it has {other}, which isn't a linear layer's" if other is not None else None
    if obstacle is not None:
        raise ConfigError(
            f"vLLM runs plain LoRA adapters only, and {obstacle}. Merge it into its base instead."
        )
    if config.rank_pattern or config.alpha_pattern:
        raise ConfigError("vLLM gives all layers one rank and one alpha; the adapter has patterns of them.")
    return config.r
