"""Tool calls: how families of models write them, and reading them while they are written."""
