"""Rows for classifiers: from labels, numbers and tags of words to what batches are made of."""
