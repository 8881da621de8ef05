"""From examples to token ids: chat templates, special tokens, lengths, and what is kept for the next run."""
