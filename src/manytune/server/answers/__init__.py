"""The engine's outputs in the shapes that clients get."""
