"""What makes a training step fast, and what says how fast it is."""
