"""LoRA's options."""

from __future__ import annotations

import dataclasses
import math
import warnings
from dataclasses import dataclass, field
from typing import Any, ClassVar

from manytune.errors import ConfigError, PeftWarning
from manytune.methods.config import OptionTypeError, PeftConfig, PeftType, as_name_set
from manytune.methods.lora.init import is_known, starts_from_sketch, starts_from_weight
from manytune.methods.tuners.targets import first_match


@dataclass
class LoraRuntimeConfig:
    """Options of HF PEFT for the present process; never written to a file.

    Args:
        ephemeral_gpu_offload: Compute DoRA's first norms on an accelerator where the base is on the CPU; without one
            they are computed there.
    """

    ephemeral_gpu_offload: bool = False


@dataclass
class LoraConfig(PeftConfig):
    """LoRA: y = x Wᵀ + s · x Aᵀ Bᵀ, with A (r × in) and B (out × r) trained and W frozen. arXiv 2106.09685.

    Args:
        r: The rank.
        target_modules: A regular expression for whole module paths; a list of paths or path endings;
            `"all-linear"`; or None for the architecture's attention projections.
        exclude_modules: Modules to leave out, written in the same way.
        lora_alpha: Scaling is alpha / r.
        lora_dropout: Dropout on the way into A.
        fan_in_fan_out: The weight is stored as (in, out). Known for transformers' `Conv1D`, whatever is set
            here.
        bias: Which of the base's biases train: `"none"`, `"all"`, or `"lora_only"` for those of targeted
            layers.
        use_rslora: Scale by alpha / √r instead, which keeps updates the same size at any rank (arXiv
            2312.03732).
        modules_to_save: Modules trained in full next to the adapter, such as a new head.
        init_lora_weights: True for Kaiming-uniform A and B = 0; `"gaussian"` for A from N(0, 1/r²) and B = 0;
            `"orthogonal"` for random A and B with BA = 0, which needs an even rank; `"pissa"`,
            `"pissa_niter_<number>"` and `"olora"` for the main part of the base's weight, which the weight loses
            while the adapter is in use (see `lora/init.py`); False for random A and B, which changes the model's
            output at once and is meant for tests.
        layers_to_transform: Indices of the layers to adapt.
        layers_pattern: Name of the module list that those indices count, such as `layers`.
        rank_pattern: Other ranks for some modules: path ending or expression to rank.
        alpha_pattern: Other alphas for some modules.
        target_parameters: Parameters to adapt that no linear layer holds, by their path or its ending, such as the
            grouped experts `mlp.experts.gate_up_proj` and the router `mlp.gate.weight`; see `lora/parameters.py`.
            `target_modules=[]` adapts nothing else.
        lora_bias: Train a bias in B, too.
        freeze_a: Train B alone and leave A as it was drawn (LoRA-FA, arXiv 2308.03303): half the trained
            parameters, and no layer keeps its input for the backward pass. It concerns training only, so files
            don't hold it. Not for embeddings, whose A starts at zero.
        use_dora: Train magnitude and direction of the weight apart (DoRA, arXiv 2402.09353).
        trainable_token_indices: Tokens whose rows of the input embeddings (and of a tied head) train in full, such as
            new ones; or the tokens by the path, or path ending, of their embedding.

    The remaining fields are options of HF PEFT that aren't implemented; they are here because its files
    name them, and setting one to anything but its default is an error.

    Raises:
        ConfigError: An option's value can't be used, contradicts another, or isn't implemented.
    """

    r: int = 8
    target_modules: list[str] | set[str] | str | None = None
    exclude_modules: list[str] | set[str] | str | None = None
    lora_alpha: float = 8
    lora_dropout: float = 0.0
    fan_in_fan_out: bool = False
    bias: str = "none"
    use_rslora: bool = False
    modules_to_save: list[str] | None = None
    init_lora_weights: bool | str = True
    layers_to_transform: list[int] | int | None = None
    layers_pattern: list[str] | str | None = None
    rank_pattern: dict[str, int] = field(default_factory=dict)
    alpha_pattern: dict[str, float] = field(default_factory=dict)
    target_parameters: list[str] | None = None
    lora_bias: bool = False
    use_dora: bool = False
    runtime_config: LoraRuntimeConfig = field(default_factory=LoraRuntimeConfig)
    freeze_a: bool = False
    trainable_token_indices: list[int] | dict[str, list[int]] | None = None

    alora_invocation_tokens: list[int] | None = None
    arrow_config: dict[str, Any] | None = None
    corda_config: dict[str, Any] | None = None
    ensure_weight_tying: bool = False
    eva_config: dict[str, Any] | None = None
    kasa_config: dict[str, Any] | None = None
    layer_replication: list[tuple[int, int]] | None = None
    loftq_config: dict[str, Any] = field(default_factory=dict)
    lora_ga_config: dict[str, Any] | None = None
    megatron_config: dict[str, Any] | None = None
    megatron_core: str | None = "megatron.core"
    monteclora_config: dict[str, Any] | None = None
    qalora_group_size: int = 16
    use_bdlora: dict[str, Any] | None = None
    use_qalora: bool = False
    velora_config: dict[str, Any] | None = None

    _transient: ClassVar[frozenset[str]] = frozenset({"runtime_config", "freeze_a"})
    _self_checked: ClassVar[frozenset[str]] = frozenset({"r", "target_parameters"})

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = PeftType.LORA
        self.target_modules = as_name_set(self.target_modules)
        self.exclude_modules = as_name_set(self.exclude_modules)
        if isinstance(self.target_parameters, str):
            raise OptionTypeError(
                f"`target_parameters` must be a list of strings, not a string; found {self.target_parameters!r:.100}."
            )
        _check_implemented(self)
        _check_numbers(self)
        self._check_layers()
        if self.bias not in ("none", "all", "lora_only"):
            raise UnknownBiasError(f"bias must be 'none', 'all' or 'lora_only', found {self.bias!r}.")
        if self.lora_bias and self.init_lora_weights not in (True, False):
            raise ConfigError(
                f"lora_bias=True goes with init_lora_weights=True or False, found {self.init_lora_weights!r}."
            )
        if self.use_rslora and self._has_patterns() and starts_from_weight(self.init_lora_weights):
            warnings.warn(
                "Using Rank-Stabilized LoRA with rank_pattern/alpha_pattern and post-training conversion of modified "
                "base weights: save_pretrained can't convert such an adapter into a plain one "
                "(path_initial_model_for_weight_conversion).",
                PeftWarning,
                stacklevel=3,
            )
        if self.lora_bias and self.use_dora:
            raise ConfigError("lora_bias=True doesn't go with use_dora=True. Choose one of them.")

    @property
    def loading_note(self) -> str | None:
        """See `PeftConfig.loading_note`."""
        if not starts_from_sketch(self.init_lora_weights):
            return None
        return (
            f"init_lora_weights={self.init_lora_weights!r} is a randomised start, which the file doesn't hold. "
            "manytune draws the same one every time, HF PEFT another one in each process: an adapter that HF PEFT "
            "saved so would compute something else. There, save it with path_initial_model_for_weight_conversion."
        )

    @property
    def trains_tokens(self) -> bool:
        """See `PeftConfig.trains_tokens`."""
        return bool(self.trainable_token_indices)

    @property
    def adapts_parameters(self) -> bool:
        """See `PeftConfig.adapts_parameters`."""
        return bool(self.target_parameters)

    def borrow_accelerator(self, wanted: bool) -> None:
        """See `PeftConfig.borrow_accelerator`."""
        self.runtime_config.ephemeral_gpu_offload = wanted

    def rank_at(self, path: str) -> int:
        """The rank at the layer of a path."""
        key = first_match(path, dict(self.rank_pattern or {}))
        return self.r if key is None else self.rank_pattern[key]

    def alpha_at(self, path: str) -> float:
        """Alpha at the layer of a path."""
        key = first_match(path, self.alpha_pattern or {})
        return self.lora_alpha if key is None else self.alpha_pattern[key]

    def check_trains(self) -> None:
        """See `PeftConfig.check_trains`: a scaling of 0 leaves no gradient either."""
        if self.lora_alpha == 0:
            raise ConfigError("lora_alpha 0 multiplies every update by 0, so that nothing would be learned")

    def scaling_at(self, path: str) -> float:
        """s, the factor before BA, at the layer of a path."""
        return scaling_of(self.alpha_at(path), self.rank_at(path), use_rslora=self.use_rslora)

    def _has_patterns(self) -> bool:
        return bool(self.rank_pattern or self.alpha_pattern)

    def _check_layers(self) -> None:
        if isinstance(self.target_modules, str) and self.target_modules != "all-linear":
            for option in ("layers_to_transform", "layers_pattern"):
                if getattr(self, option) is not None:
                    raise ConfigError(
                        f"`{option}` cannot be used when `target_modules` is a str: write the layers into the "
                        "expression, or give target_modules as a list."
                    )
        if self.layers_pattern and self.layers_to_transform is None:
            raise ConfigError(
                "When `layers_pattern` is specified, `layers_to_transform` must also be specified."
            )


def scaling_of(alpha: float, rank: int, *, use_rslora: bool) -> float:
    """The factor s = alpha / r, or alpha / √r with `use_rslora`."""
    return alpha / (math.sqrt(rank) if use_rslora else rank)


class UnknownBiasError(ConfigError, NotImplementedError):
    """`bias` is none of the known values."""


_UNIMPLEMENTED = (
    *(
        "alora_invocation_tokens",
        "arrow_config",
        "corda_config",
        "ensure_weight_tying",
        "eva_config",
        "kasa_config",
    ),
    *(
        "layer_replication",
        "loftq_config",
        "lora_ga_config",
        "megatron_config",
        "megatron_core",
        "monteclora_config",
    ),
    *("qalora_group_size", "use_bdlora", "use_qalora"),
    "velora_config",
)


def _check_implemented(config: LoraConfig) -> None:
    fields = {f.name: f for f in dataclasses.fields(config)}
    for name in _UNIMPLEMENTED:
        declared = fields[name]
        factory = declared.default_factory
        default = declared.default if factory is dataclasses.MISSING else factory()
        value = getattr(config, name)
        # An empty list or mapping, which HF PEFT's files may hold, asks for nothing.
        if value != default and value is not None and value not in ([], {}):
            raise ConfigError(
                f"{type(config).__name__}({name}={value!r}): manytune doesn't implement this option of HF PEFT. "
                f"Leave it at its default, {default!r}."
            )
    if not is_known(config.init_lora_weights):
        raise ConfigError(
            f"LoraConfig(init_lora_weights={config.init_lora_weights!r}): expected True, False, 'gaussian', "
            "'orthogonal', 'pissa', 'pissa_niter_<number>' or 'olora'; manytune doesn't implement HF PEFT's other "
            "initialisations."
        )


def _check_numbers(config: LoraConfig) -> None:
    ranks = {"r": config.r, **{f"rank_pattern[{key!r}]": r for key, r in (config.rank_pattern or {}).items()}}
    for name, rank in ranks.items():
        if not isinstance(rank, int) or isinstance(rank, bool) or rank <= 0:
            raise ConfigError(
                f"`{name}` should be a positive integer value but the value passed is {rank!r}."
            )
    if not 0.0 <= config.lora_dropout < 1.0:
        raise ConfigError(f"`lora_dropout` is a probability below 1, found {config.lora_dropout!r}.")
