"""HF PEFT's path to LoRA's classes."""

from manytune.methods.lora.config import LoraConfig, LoraRuntimeConfig
from manytune.methods.lora.conv import Conv2d, Conv3d
from manytune.methods.lora.embedding import Embedding
from manytune.methods.lora.layer import LoraLayer
from manytune.methods.lora.linear import Linear
from manytune.methods.lora.model import LoraModel
from manytune.methods.lora.parameters import ParamWrapper

__all__ = [
    "Conv2d",
    "Conv3d",
    "Embedding",
    "Linear",
    "LoraConfig",
    "LoraLayer",
    "LoraModel",
    "LoraRuntimeConfig",
    "ParamWrapper",
]
