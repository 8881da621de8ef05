"""Changes of a store's index that can be told apart afterwards."""

from collections.abc import Callable

from manytune.store.remote.index import Index, Kept


def entering(number: int) -> Callable[[Index], Index]:
    """A change of its own for each number, that refuses to be made twice."""
    digest = f"{number:064x}"

    def change(index: Index) -> Index:
        assert digest not in index.adapters
        return index.with_adapter(digest, Kept("20261130T041300Z-0123456789abcdef", {}, {}))

    return change


def numbers_in(index: Index) -> list[int]:
    return sorted(int(digest, 16) for digest in index.adapters)
