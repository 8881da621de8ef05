"""A base model with adapters, as users hold it."""
