import threading
import time

import pytest
import torch

from manytune.engine.masks import MaskThread


def test_masks_are_computed_in_another_thread_in_the_order_of_the_answers() -> None:
    seen: list[str] = []

    def mask(number: int):
        def compute() -> torch.Tensor:
            seen.append(threading.current_thread().name)
            return torch.tensor([number == 0, number == 1])

        return compute

    found = MaskThread().begin([mask(0), None, mask(1)])()
    assert [None if one is None else one.tolist() for one in found] == [[True, False], None, [False, True]]
    assert len(seen) == 2 and threading.current_thread().name not in seen


def test_beginning_does_not_wait() -> None:
    go_on = threading.Event()

    def mask() -> torch.Tensor:
        assert go_on.wait(20)
        return torch.ones(2, dtype=torch.bool)

    wait = MaskThread().begin([mask])
    go_on.set()  # only now can the mask be computed, so `begin` has returned before it was
    assert wait()[0] is not None


def test_without_constraints_no_thread_is_started() -> None:
    before = threading.active_count()
    assert MaskThread().begin([None, None])() == [None, None]
    assert threading.active_count() == before


def test_an_error_reaches_the_one_who_waits() -> None:
    def mask() -> torch.Tensor:
        raise ZeroDivisionError

    wait = MaskThread().begin([mask])
    time.sleep(0)
    with pytest.raises(ZeroDivisionError):
        wait()
