"""The training loop: transformers' Trainer with this project's batches and loss."""
