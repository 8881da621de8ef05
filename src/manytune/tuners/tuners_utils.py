"""HF PEFT's path to the class of all layers that carry adapters."""

from manytune.methods.base import Tuner as BaseTuner
from manytune.methods.layer import AdapterLayer as BaseTunerLayer

__all__ = ["BaseTuner", "BaseTunerLayer"]
