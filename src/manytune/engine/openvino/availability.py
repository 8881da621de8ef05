"""Whether OpenVINO can run a model here, before it is imported."""

from __future__ import annotations

import importlib.util

import torch
from transformers import PreTrainedModel

from manytune.extras import install_command
from manytune.methods.tuners.quantized_layers import packed_parameters
from manytune.methods.tuners.targets import adapter_layers
from manytune.own_dtype import HALF, runs_in_own_dtype

#: Kinds of rotary positions whose formula depends on a sequence's length, which a traced graph can't know.
_CHANGING = ("dynamic", "longrope")


def openvino_obstacle(model: PreTrainedModel) -> str | None:
    """Why OpenVINO can't run a decoder, as a clause that follows "since"; None if it may."""
    if importlib.util.find_spec("openvino") is None:
        return f"OpenVINO isn't installed; {install_command('openvino')} brings it"
    if model.device.type != "cpu":
        return f"the model is on {model.device}, and OpenVINO runs on the CPU here"
    if model.dtype not in (torch.float32, *HALF):
        return f"the model is in {model.dtype}; load it in float32, bfloat16 or float16"
    if any(map(runs_in_own_dtype, model.modules())):
        return "its layers run within `float32_activations`; make the engine outside of it"
    packed = packed_parameters(model)
    if packed:
        return f"its weights are packed by {next(iter(packed.values()))}"
    carrying = next((path for path, _ in adapter_layers(model)), None)
    if carrying is not None:
        return f"{carrying} has adapters attached to it; merge or unload them first"
    rope = getattr(model.config.get_text_config(), "rope_parameters", None) or {}
    kind = rope.get("rope_type", "default")
    return f"its positions are of the kind {kind}" if kind in _CHANGING else None
