"""IA3: activations rescaled by learned vectors (Liu et al., arXiv 2205.05638)."""
