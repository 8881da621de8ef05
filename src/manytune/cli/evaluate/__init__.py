"""`manytune evaluate`: systems that answer here, answers that were made elsewhere, and what is asked of classifiers."""
