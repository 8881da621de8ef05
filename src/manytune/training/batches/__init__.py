"""Ways to lay sequences out for one forward pass; all give the same loss and gradients."""
