"""P-tuning: virtual tokens computed by a small network while they train (arXiv 2103.10385)."""
