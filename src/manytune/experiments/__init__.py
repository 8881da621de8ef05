"""Many trainings as one question: comparisons of methods, rank sweeps, and what was forgotten on the way."""
