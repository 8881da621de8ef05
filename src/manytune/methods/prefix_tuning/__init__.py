"""Prefix tuning: trained keys and values in front of every layer's (arXiv 2101.00190)."""
