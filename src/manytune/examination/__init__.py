"""Adapters of others are read here first, in a process with limits, and only then by the server.

examiner.py    the server's side: starts the process, asks it, ends it at a limit
worker.py      the process: reads one directory after another, without a model library
directory.py   what it reads of each
limits.py      what it may take; messages.py: what is said between the two
"""
