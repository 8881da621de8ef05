"""Prompt tuning: trained embeddings in front of the input's (arXiv 2104.08691)."""
