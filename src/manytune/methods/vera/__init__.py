"""VeRA: one pair of frozen random matrices for all layers, and trained vectors for each (arXiv 2310.11454)."""
