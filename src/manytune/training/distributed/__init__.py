"""Training on several processes: one plan, one loss and one run directory, whatever their number."""
