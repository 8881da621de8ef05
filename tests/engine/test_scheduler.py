"""The scheduler alone: no tensors, only who runs when."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from manytune.engine.kv_cache import rounded
from manytune.engine.scheduler import AGING, Job, Piece, Scheduler


def scheduler(**limits):
    return Scheduler(
        **{"kv_budget_tokens": 1024, "max_batch": 4, "prefill_chunk": 8, "max_adapters": 4, **limits}
    )


def job(name, *, prompt=4, room=10, **options):
    return Job(name, prompt, room, **options)


class Run:
    """Steps a scheduler as the engine does; each request generates as many tokens as its room leaves."""

    def __init__(self, book):
        self.book = book
        self.left = {}
        self.admitted = []
        self.steps = 0
        self.read = {}

    def add(self, *jobs):
        for one in jobs:
            self.book.add(one)
            self.left[one.id] = one.room - one.prompt
            self.read[one.id] = 0

    def cancel(self, name):
        if self.left.pop(name, None) is not None:
            self.book.remove(name)

    def step(self):
        self.admitted += self.book.admit()
        plan = self.book.plan()
        self.book.check_integrity()
        self.steps += 1
        assert sum(piece.count for piece in plan.pieces) <= self.book.prefill_chunk
        assert not set(plan.decode) & {piece.id for piece in plan.pieces}
        for piece in plan.pieces:
            assert piece.start == self.read[piece.id] and piece.count >= 1
            self.read[piece.id] += piece.count
        for name in (*plan.decode, *plan.ready):
            self.left[name] -= 1
            if self.left[name] <= 0:
                del self.left[name]
                self.book.remove(name)
        self.book.check_integrity()
        return plan

    def finish(self, limit=100_000):
        while self.left:
            plan = self.step()
            assert plan.decode or plan.pieces, "work is left and nothing runs"
            assert self.steps < limit
        return self.admitted


def test_prompts_are_read_in_pieces_while_others_decode():
    run = Run(scheduler(prefill_chunk=5))
    run.add(job("a", prompt=3), job("b", prompt=6))
    first = run.step()
    assert first.pieces == (Piece("a", 0, 3), Piece("b", 0, 2)) and first.ready == ("a",)
    second = run.step()
    assert second.decode == ("a",) and second.pieces == (Piece("b", 2, 4),) and second.ready == ("b",)
    assert run.step().decode == ("a", "b")


def test_a_cached_beginning_is_not_read():
    book = scheduler()
    book.add(job("a", prompt=7))
    assert book.admit() == ["a"]
    book.skip("a", 5, 1)
    assert book.plan().pieces == (Piece("a", 5, 2),)


def test_who_begins_with_what_another_reads_waits_to_share_it():
    run = Run(scheduler(prefill_chunk=4))
    run.add(
        job("first", prompt=8, room=12, beginning=(b"1", b"2")),
        job("same", prompt=8, room=12, beginning=(b"1", b"2", b"3")),
        job("other", beginning=(b"9",)),
        job("short"),
    )
    run.step()
    assert run.admitted == ["first", "other", "short"]
    run.step()
    run.step()
    assert "same" in run.admitted
    run.finish()


def test_nobody_waits_for_a_beginning_that_is_shared_already():
    book = scheduler(prefill_chunk=1)
    book.add(job("first", prompt=8, room=12, beginning=(b"1", b"2")))
    assert book.admit() == ["first"]
    book.skip("first", 4, 1)
    book.add(job("same block", beginning=(b"1",)))
    book.add(job("more", beginning=(b"1", b"2")))
    assert book.admit() == ["same block"]


def test_rows_are_as_wide_as_the_widest_needs():
    run = Run(scheduler(kv_budget_tokens=4 * 64, max_batch=9))
    run.add(*(job(f"short{i}", room=60) for i in range(3)), job("long", room=100), job("late", room=60))
    run.step()
    # Four short rows would fit; a long one beside three short ones takes twice as much for each of them.
    assert run.admitted == ["short0", "short1", "short2"]
    assert run.finish() == ["short0", "short1", "short2", "long", "late"]


def test_tenants_get_equal_shares_however_much_one_asks_for():
    run = Run(scheduler(max_batch=1))
    run.add(*(job(f"a{i}", tenant="a") for i in range(6)), *(job(f"b{i}", tenant="b") for i in range(3)))
    assert run.finish()[:6] == ["a0", "b0", "a1", "b1", "a2", "b2"]


def test_adapters_of_one_tenant_take_turns():
    run = Run(scheduler(max_batch=1))
    run.add(*(job(f"x{i}", adapter="x") for i in range(4)), job("y0", adapter="y"), job("y1", adapter="y"))
    assert run.finish()[:4] == ["x0", "y0", "x1", "y1"]


def test_who_was_away_has_saved_no_claim():
    run = Run(scheduler(max_batch=1))
    run.add(*(job(f"a{i}", tenant="a") for i in range(6)))
    for _ in range(20):
        run.step()
    begun = len(run.admitted)
    run.add(*(job(f"b{i}", tenant="b") for i in range(3)))
    # A saved claim of what "a" has had so far would let all three go first.
    assert "".join(name[0] for name in run.finish()[begun:]).startswith(("baba", "abab"))


def test_higher_priority_goes_first_and_waiting_raises_it():
    run = Run(scheduler(max_batch=1))
    run.add(job("running", room=4 + AGING + 8))
    run.step()
    run.add(job("low"))
    for _ in range(AGING):
        run.step()
    run.add(job("high", priority=1), job("higher", priority=2))
    assert run.finish() == ["running", "higher", "low", "high"]


def test_no_request_starves_under_a_stream_of_important_ones():
    run = Run(scheduler(max_batch=1))
    run.add(job("patient"))
    for number in range(40):
        run.add(job(f"vip{number}", priority=3, tenant="b"))
        for _ in range(10):
            run.step()
    assert "patient" in run.admitted


def test_only_so_many_adapters_run_at_once():
    run = Run(scheduler(max_adapters=2))
    run.add(*(job(name, adapter=name) for name in "abc"), job("base"))
    run.step()
    assert set(run.admitted) <= {"a", "b", "base"} and "c" not in run.admitted
    assert sorted(run.finish()) == ["a", "b", "base", "c"]


def test_a_request_larger_than_the_budget_could_never_run():
    assert scheduler(kv_budget_tokens=128).holds(job("a", room=128))
    assert not scheduler(kv_budget_tokens=128).holds(job("a", room=129))


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_everything_ends_within_the_limits_whatever_comes_and_goes(data):
    book = scheduler(
        kv_budget_tokens=data.draw(st.integers(64, 1024)),
        max_batch=data.draw(st.integers(1, 6)),
        prefill_chunk=data.draw(st.integers(1, 20)),
        max_adapters=data.draw(st.integers(1, 3)),
    )
    run = Run(book)
    names = []
    for number in range(data.draw(st.integers(1, 25))):
        match data.draw(st.sampled_from(["add", "add", "step", "cancel"])):
            case "add":
                prompt = data.draw(st.integers(1, 100))
                one = Job(
                    str(number),
                    prompt,
                    prompt + data.draw(st.integers(1, 60)),
                    data.draw(st.sampled_from("ab")),
                    data.draw(st.sampled_from([None, "x", "y", "z"])),
                    data.draw(st.integers(-1, 2)),
                )
                if book.holds(one):
                    run.add(one)
                    names.append(one.id)
                else:
                    assert rounded(one.room) > book.kv_budget_tokens
            case "step":
                run.step()
            case "cancel" if names:
                run.cancel(data.draw(st.sampled_from(names)))
        book.check_integrity()
    run.finish()
    assert book.waiting == book.running == 0


def test_the_integrity_check_can_fail():
    book = scheduler()
    book.add(job("a"))
    book.admit()
    book.max_batch = 0
    with pytest.raises(AssertionError):
        book.check_integrity()
