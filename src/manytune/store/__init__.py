"""Bases and adapters on disk."""
