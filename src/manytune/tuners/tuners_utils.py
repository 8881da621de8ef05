"""HF PEFT's path to the class of all layers that carry adapters."""

from manytune.methods.tuners.adapter_layer import AdapterLayer as BaseTunerLayer
from manytune.methods.tuners.base import Tuner as BaseTuner

__all__ = ["BaseTuner", "BaseTunerLayer"]
