"""LoRA: a frozen weight with a trained low-rank update beside it, W + s·BA (Hu et al., arXiv 2106.09685)."""
