"""Bottleneck adapters: a small network next to or behind a transformer's sublayers (arXiv 1902.00751)."""
