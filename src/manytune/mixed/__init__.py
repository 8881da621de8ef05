"""The mixed forward: one batch whose tokens have different adapters, from their terms alone. Knows no requests."""
