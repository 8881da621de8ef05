"""The server's routes, one file for each group of paths."""
