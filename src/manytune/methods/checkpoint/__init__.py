"""Adapters as files in HF PEFT's format."""
