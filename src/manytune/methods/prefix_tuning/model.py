"""Prefix tuning: trained keys and values in front of every layer's. arXiv 2101.00190."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedModel
from transformers.cache_utils import DynamicCache, DynamicLayer, EncoderDecoderCache

from manytune.cache_argument import cache_argument, cache_in, put_cache
from manytune.errors import ConfigError
from manytune.methods.config import PeftType, PromptLearningConfig
from manytune.methods.registry import Method, register
from manytune.methods.tuners.base_layers import require_shape
from manytune.methods.tuners.soft_prompt import PROMPT, SoftPrompt, in_this_thread
from manytune.methods.tuners.soft_prompt_tuner import PromptTuner
from manytune.methods.tuners.terms import Terms
from manytune.methods.tuners.virtual_tokens import bound, is_fresh, prepend_columns, shifted_positions
from manytune.own_dtype import runs_in_own_dtype


@dataclass
class PrefixTuningConfig(PromptLearningConfig):
    """Prefix tuning: in each layer, attention over [P_K; K] and [P_V; V], and only P trains. arXiv 2101.00190.

    P is (virtual tokens, layers * 2 * heads of keys * size of a head); in an encoder-decoder it comes before
    the decoder's self-attention. `num_attention_heads` and `token_dim` hold the heads of keys and values and
    their total size, which is inferred from the model.

    Args:
        prefix_projection: While it trains, compute P = W2 tanh(W1 E) from E (virtual tokens, `token_dim`). A
            checkpoint holds P.
        encoder_hidden_size: Hidden size of that network; by default `token_dim`.
        init_weights: None for random values; `"zero"` for P = 0. That changes the output all the same: a zero
            key gets some attention.

    Raises:
        ConfigError: `init_weights` is neither, or `encoder_hidden_size` isn't positive.
    """

    encoder_hidden_size: int | None = None
    prefix_projection: bool = False
    init_weights: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = PeftType.PREFIX_TUNING
        if self.encoder_hidden_size is not None and self.encoder_hidden_size < 1:
            raise ConfigError(
                f"encoder_hidden_size should be a positive integer, found {self.encoder_hidden_size!r}."
            )
        if self.init_weights not in (None, "zero"):
            raise ConfigError(f"init_weights should be None or 'zero', found {self.init_weights!r}.")


class ProjectedPrefix(SoftPrompt):
    """A prefix from a network; see `PrefixTuningConfig`."""

    computed: ClassVar[bool] = True

    def __init__(self, tokens: int, width: int, config: PrefixTuningConfig) -> None:
        assert config.token_dim and config.encoder_hidden_size
        super().__init__(tokens, config.token_dim)
        hidden = config.encoder_hidden_size
        self.transform = nn.Sequential(
            nn.Linear(config.token_dim, hidden), nn.Tanh(), nn.Linear(hidden, width)
        )

    def forward(self) -> Tensor:
        """See `SoftPrompt.forward`."""
        values: Tensor = self.transform(self.embedding.weight)
        return values


#: Options of models whose layers differ in their keys and values, share them, or keep them compressed.
_UNEVEN = ("num_kv_shared_layers", "global_head_dim", "per_layer_config", "kv_lora_rank")


_NONE_NEEDED = "Prompt tuning and P-tuning need none."


class PrefixTuningModel(PromptTuner):
    """Prefix tuning attached to a model; see `PrefixTuningConfig`."""

    def infer_sizes(self, config: PrefixTuningConfig) -> None:
        """See `PromptTuner.infer_sizes`: heads and sizes are those of the model's keys and values."""
        reader = _reader(self.model)
        self.refuse_checkpointing()
        _require_plain(DynamicCache(config=reader.config))
        needed, heads, size = _sizes(self.model)
        text = self.model.config.get_text_config()
        # HF PEFT, too, takes the attention's sizes as given by a user and replaces them by the keys'.
        for option, allowed, found in (
            ("num_attention_heads", {text.num_attention_heads, heads}, config.num_attention_heads),
            ("token_dim", {None, text.hidden_size, heads * size}, config.token_dim),
        ):
            if found not in allowed:
                raise ConfigError(
                    f"{option}={found}: {type(self.model).__name__} has {heads} x {size} for keys."
                )
        config.num_attention_heads, config.token_dim = heads, heads * size
        if config.num_layers is None or config.num_layers < needed:
            raise ConfigError(
                f"num_layers={config.num_layers}: the model has {needed} layers with a prefix each."
            )
        if config.encoder_hidden_size is None:
            config.encoder_hidden_size = config.token_dim

    def refuse_checkpointing(self, *, planned: bool = False) -> None:
        """See `Tuner.refuse_checkpointing`: recomputed layers run without a cache, and the prefix is in the cache."""
        refuse_checkpointing(self.model, planned=planned)

    def shape(self, config: PrefixTuningConfig) -> tuple[int, int]:
        """See `PromptTuner.shape`."""
        assert config.num_virtual_tokens and config.num_layers and config.token_dim
        return config.num_virtual_tokens, config.num_layers * 2 * config.token_dim

    def build(self, config: PrefixTuningConfig) -> SoftPrompt:
        """See `PromptTuner.build`."""
        prompt: SoftPrompt
        if config.prefix_projection:
            prompt = ProjectedPrefix(*self.shape(config), config)
            last: list[Tensor] = [prompt.transform.get_parameter(f"2.{name}") for name in ("weight", "bias")]
        else:
            prompt = SoftPrompt(*self.shape(config))
            last = [prompt.embedding.weight]
        for parameter in last if config.init_weights == "zero" else ():
            nn.init.zeros_(parameter)
        return prompt

    @classmethod
    def prompt_terms(cls, config: PrefixTuningConfig, values: Tensor, model: PreTrainedModel) -> Terms:
        """See `PromptTuner.prompt_terms`: the prefix as the cache holds it."""
        needed, heads, size = _sizes(model)
        tokens, written = config.num_virtual_tokens or len(values), config.num_layers or needed
        require_shape("prefix", PROMPT, values, (tokens, written * 2 * heads * size))
        parts = config.num_transformer_submodules or (2 if model.config.is_encoder_decoder else 1)
        return Terms(prefix=_by_layer(values, written, heads, parts)[:needed])

    def hooks(self, model: PreTrainedModel, prompt: SoftPrompt, config: Any) -> list[RemovableHandle]:
        """See `PromptTuner.hooks`."""
        tokens = config.num_virtual_tokens
        reader = _reader(model)
        named = cache_argument(reader) or ""
        of_decoder = "decoder_" if reader.config.is_encoder_decoder else ""

        def before(module: Any, args: Any, kwargs: Any) -> Any:
            inputs = {name: value for name, value in bound(module, args, kwargs).items() if value is not None}
            if module.training:
                refuse_checkpointing(module)
            if is_fresh(cache_in(inputs)):
                put_cache(module, inputs, _filled(module, inputs, prompt, config))
            mask, positions = f"{of_decoder}attention_mask", f"{of_decoder}position_ids"
            if mask in inputs:
                inputs[mask] = prepend_columns(inputs[mask], tokens)
            if positions in inputs:
                inputs[positions] = shifted_positions(inputs[positions], tokens, prepend=False)
            return (), inputs

        def after(module: Any, args: Any, kwargs: Any, output: Any) -> Any:
            # A caller that wants no cache must not go on with the one that brought the prefix. A field that is set to
            # None would stay among the output's items, from which generation takes it.
            if kwargs.get("use_cache") is False and getattr(output, named, None) is not None:
                return type(output)(**{name: value for name, value in output.items() if name != named})
            return None

        return [
            reader.register_forward_pre_hook(in_this_thread(before), with_kwargs=True),
            reader.register_forward_hook(in_this_thread(after), with_kwargs=True),
        ]


def _sizes(model: PreTrainedModel) -> tuple[int, int, int]:
    """Layers with a prefix, heads of keys and values, and a head's size.

    Raises:
        ConfigError: They aren't the same in each layer.
    """
    text = model.config.get_text_config()
    uneven = {name: value for name in _UNEVEN if (value := text.to_dict().get(name))}
    if uneven:
        raise ConfigError(
            f"Prefix tuning needs keys and values of one size in each layer; {type(model).__name__} has "
            f"{', '.join(f'{name}={value}' for name, value in uneven.items())}. {_NONE_NEEDED}"
        )
    queries = getattr(text, "num_attention_heads", None)
    if queries is None:
        raise ConfigError(
            f"Prefix tuning needs attention to put a prefix before, and {type(model).__name__} has none. {_NONE_NEEDED}"
        )
    heads = getattr(text, "num_key_value_heads", None) or queries
    size = getattr(text, "head_dim", None) or getattr(text, "d_kv", None) or text.hidden_size // queries
    layers = getattr(text, "num_decoder_layers", None) or getattr(text, "decoder_layers", None)
    return (layers if layers and text.is_encoder_decoder else text.num_hidden_layers), heads, size


def _by_layer(values: Tensor, layers: int, heads: int, parts: int) -> Tensor:
    """A prefix as a checkpoint holds it, (tokens, layers * 2 * heads * size), as (layers, 2, heads, tokens, size).

    In HF PEFT's layout an encoder-decoder has four parts a layer: the last two, for cross-attention, are not used, and
    the parts repeat after the first half of the layers. A checkpoint means this.
    """
    halves = values.view(len(values), layers, 2, heads, -1).permute(1, 2, 3, 0, 4)
    return halves if parts == 1 else halves[[parts * layer % layers for layer in range(layers)]]


def refuse_checkpointing(model: nn.Module, *, planned: bool = False) -> None:
    """Checkpointed layers run without a cache, and the prefix is in the cache.

    Args:
        model: The model.
        planned: Whether gradient checkpointing is about to be turned on.

    Raises:
        ConfigError: Gradient checkpointing is on, or will be.
    """
    if planned or any(getattr(module, "gradient_checkpointing", False) for module in model.modules()):
        raise ConfigError(
            f"{PeftType.PREFIX_TUNING} does not work with gradient checkpointing: layers that are recomputed run "
            "without the cache that the prefix is in. Turn it off (gradient_checkpointing=False in a recipe or in "
            "TrainingArguments, model.activation_checkpointing_disable()), or use prompt tuning or P-tuning."
        )


def _reader(model: PreTrainedModel) -> Any:
    """The outermost module that takes keys and values from outside: the model, or what is below its head."""
    for module in (model, *(child for child in model.children() if isinstance(child, PreTrainedModel))):
        if cache_argument(module) is not None:
            return module
    raise ConfigError(
        f"{type(model).__name__} does not support past key values, which are required for prefix tuning. {_NONE_NEEDED}"
    )


def _require_plain(cache: Any) -> None:
    """Refuse a model of which some layers keep other things than keys and values, as state-space layers do."""
    odd = [type(layer).__name__ for layer in cache.layers if not isinstance(layer, DynamicLayer)]
    if odd:
        raise ConfigError(
            f"Prefix tuning needs keys and values in each layer, found a layer with {odd[0]}. {_NONE_NEEDED}"
        )


def _filled(reader: Any, inputs: dict[str, Any], prompt: SoftPrompt, config: PrefixTuningConfig) -> Any:
    """A cache with the prefix in each layer: the caller's, or a new one."""
    cache = cache_in(inputs)
    if cache is None:
        own = DynamicCache(config=reader.config)
        cache = EncoderDecoderCache(own, DynamicCache()) if reader.config.is_encoder_decoder else own
    own = cache.self_attention_cache if isinstance(cache, EncoderDecoderCache) else cache
    _require_plain(own)
    rows = ("decoder_input_ids", "decoder_inputs_embeds", "input_ids", "inputs_embeds", "labels")
    batch = next(inputs[name].shape[0] for name in rows if name in inputs)
    heads = config.num_attention_heads
    assert heads and config.num_layers and config.num_transformer_submodules
    is_wide = runs_in_own_dtype(reader.get_input_embeddings())
    dtype = torch.float32 if is_wide else reader.dtype  # that of the layers' own keys and values
    values = prompt().to(reader.device, dtype)
    layers = _by_layer(values, config.num_layers, heads, config.num_transformer_submodules)
    for number, (keys, own_values) in enumerate(layers):
        own.update(keys.expand(batch, -1, -1, -1), own_values.expand(batch, -1, -1, -1), number)
    return cache


register(
    Method(
        "prefix-tuning",
        PeftType.PREFIX_TUNING,
        PrefixTuningConfig,
        PrefixTuningModel,
        in_peft=True,
        learning_rate=1e-2,
    )
)
