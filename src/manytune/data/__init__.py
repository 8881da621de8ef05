"""Raw rows to token ids: readers, templates, encoding, splits."""
