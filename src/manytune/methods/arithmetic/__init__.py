"""Sums of adapters."""
