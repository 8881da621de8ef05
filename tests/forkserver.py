"""Processes of tests that need to be others: forked from one that has paid for the imports, one a worker."""

import multiprocessing

# Python has one such server in a process, which imports what was named last; so all name the same.
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["tests.imported"])
