"""Serving the store's adapters with engines of others: which of them can, and how these engines are kept in step."""
