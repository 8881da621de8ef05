"""What methods are made of: layers with adapters, tuners that attach them, targets, merging, terms."""
