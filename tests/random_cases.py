"""How many random cases tests draw: few in `make test`, ten times as many in `make test-deep`."""

import os

DEPTH = int(os.environ.get("MANYTUNE_DEPTH", "1"))


def cases(few: int) -> int:
    """So many, or as many times as many as MANYTUNE_DEPTH says."""
    return few * DEPTH
