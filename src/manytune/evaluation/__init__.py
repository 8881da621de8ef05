"""Scores, intervals, tests and the report."""
