"""HF PEFT's module paths to the classes of layers: code may import `tuners.lora.LoraLayer` from here."""

from manytune.tuners import ia3 as ia3
from manytune.tuners import lora as lora
from manytune.tuners import tuners_utils as tuners_utils
