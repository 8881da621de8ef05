"""One frozen base model, many small fine-tunes."""
