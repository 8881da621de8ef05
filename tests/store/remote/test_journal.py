from __future__ import annotations

import dataclasses
import threading
from typing import Any

import pytest
from tests.store.remote.changes import entering, numbers_in

from manytune.errors import StoreError, UnreachableError
from manytune.store.remote.index import Index, index_name
from manytune.store.remote.journal import Journal
from manytune.store.remote.location import location_of
from manytune.store.remote.objects import Objects


@pytest.fixture
def objects(url: str) -> Objects:
    found = Objects(location_of(url))
    found.pauses = ()
    return found


def test_a_store_that_nobody_has_written_to_has_the_empty_index(objects: Objects) -> None:
    assert Journal(objects).newest() == Index()


def test_no_change_of_writers_at_once_is_lost(objects: Objects) -> None:
    def write(first: int) -> None:
        journal = Journal(objects)
        for number in range(first, first + 25):
            journal.change(entering(number))

    writers = [threading.Thread(target=write, args=(100 * one,)) for one in range(4)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    found = Journal(objects).newest()
    assert found.number == 100
    assert numbers_in(found) == [100 * one + number for one in range(4) for number in range(25)]


def test_former_indexes_are_removed_and_the_last_ones_stay(objects: Objects) -> None:
    journal, index = Journal(objects), Index()
    for number in range(70):
        index = journal.change(entering(number), known=index)
    left = sorted(objects.list("index"))
    assert 20 <= len(left) <= 60 and left[-1] == index_name(70)


@pytest.mark.parametrize("answer", ["an error", "a refusal of the driver's second try"])
def test_a_change_whose_answer_was_lost_is_made_once(
    answer: str, objects: Objects, monkeypatch: pytest.MonkeyPatch
) -> None:
    create = objects.create

    def create_and_lose_the_answer(name: str, content: bytes) -> bool:
        monkeypatch.setattr(objects, "create", create)
        assert create(name, content)
        if answer == "an error":
            raise UnreachableError("the connection was reset")
        return False

    monkeypatch.setattr(objects, "create", create_and_lose_the_answer)
    index = Journal(objects).change(entering(7))
    assert (index.number, numbers_in(index)) == (1, [7])
    assert Journal(objects).newest() == index


def test_a_change_that_never_arrived_is_made_again(objects: Objects, monkeypatch: pytest.MonkeyPatch) -> None:
    create = objects.create

    def lose_the_request(*_: Any) -> bool:
        monkeypatch.setattr(objects, "create", create)
        raise UnreachableError("the connection was reset")

    monkeypatch.setattr(objects, "create", lose_the_request)
    assert numbers_in(Journal(objects).change(entering(7))) == [7]


def test_a_storage_that_is_read_and_takes_no_writes_is_an_outage(
    objects: Objects, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> bool:
        raise UnreachableError("503 SlowDown")

    monkeypatch.setattr(objects, "create", fail)
    with pytest.raises(UnreachableError, match="SlowDown"):
        Journal(objects).change(entering(7))


def test_an_index_whose_number_was_passed_long_ago_does_not_count(objects: Objects) -> None:
    """A writer was held up for so long that the number it is about to write was used, passed and removed."""
    journal = Journal(objects)
    journal.change(entering(1))
    is_late = True

    def held_up(index: Index) -> Index:
        nonlocal is_late
        if is_late:
            is_late = False
            for number in range(100, 170):
                Journal(objects).change(entering(number))
            assert index_name(2) not in objects.list("index")
        return entering(2)(index)

    late = journal.change(held_up)
    assert late.number == 72 and numbers_in(late) == [1, 2, *range(100, 170)]
    assert Journal(objects).newest() == late
    assert index_name(2) not in objects.list("index")


def test_a_change_that_changes_nothing_writes_nothing(objects: Objects) -> None:
    journal = Journal(objects)
    index = journal.change(entering(1))
    assert journal.change(lambda present: present) == index
    assert list(objects.list("index")) == [index_name(1)]


def test_storage_that_may_overwrite_is_read_and_never_written(objects: Objects) -> None:
    Journal(objects).change(entering(1))
    objects.location = dataclasses.replace(objects.location, protocol="sftp")
    assert numbers_in(Journal(objects).newest()) == [1]
    with pytest.raises(
        StoreError, match=r"'sftp' can be read, but not written.*Use s3, gs, az or a directory"
    ):
        Journal(objects).change(entering(2))
