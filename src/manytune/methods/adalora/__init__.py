"""AdaLoRA: low-rank updates whose ranks are given to the layers that need them most."""
