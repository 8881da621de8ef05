"""Attention of packed batches."""
