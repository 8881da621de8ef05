"""HF PEFT's path to IA3's classes."""

from manytune.methods.ia3.model import Conv2d, Conv3d, IA3Config, IA3Model, Linear
from manytune.methods.ia3.model import Layer as IA3Layer

__all__ = ["Conv2d", "Conv3d", "IA3Config", "IA3Layer", "IA3Model", "Linear"]
