"""The embedded default: which base, which data, which recipe."""
