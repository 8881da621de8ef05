"""Trials as the tasks of a Slurm job array, between jobs that say what is to be run and that write the report."""
