"""Full fine-tuning as a method: every weight trains."""
