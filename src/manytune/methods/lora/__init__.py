"""LoRA: a frozen weight with a trained low-rank update next to it, W + s·BA (Hu et al., arXiv 2106.09685)."""
