"""The scheduler alone: no tensors, only who runs when."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.random_cases import cases

from manytune.engine.kv_cache import row_width
from manytune.engine.scheduler import AGING, Job, ScheduledChunk, Scheduler


def make_scheduler(**limits):
    return Scheduler(
        **{"kv_budget_tokens": 1024, "max_batch": 4, "prefill_chunk": 8, "max_adapters": 4, **limits}
    )


def job(name, *, prompt=4, max_tokens=10, **options):
    return Job(name, prompt, max_tokens, **options)


class Run:
    """Steps a scheduler as the engine does; each request generates as many tokens as it may."""

    def __init__(self, scheduler):
        self.scheduler = scheduler
        self.left = {}
        self.admitted = []
        self.steps = 0
        self.read = {}

    def add(self, *jobs):
        for one in jobs:
            self.scheduler.add(one)
            self.left[one.id] = one.max_tokens - one.prompt_tokens
            self.read[one.id] = 0

    def cancel(self, name):
        if self.left.pop(name, None) is not None:
            self.scheduler.remove(name)

    def step(self):
        self.admitted += self.scheduler.admit()
        plan = self.scheduler.plan()
        self.scheduler.check_integrity()
        self.steps += 1
        assert sum(chunk.count for chunk in plan.chunks) <= self.scheduler.prefill_chunk
        assert not set(plan.decode) & {chunk.id for chunk in plan.chunks}
        for chunk in plan.chunks:
            assert chunk.start == self.read[chunk.id] and chunk.count >= 1
            self.read[chunk.id] += chunk.count
        for name in (*plan.decode, *plan.ready):
            self.left[name] -= 1
            if self.left[name] <= 0:
                del self.left[name]
                self.scheduler.remove(name)
        self.scheduler.check_integrity()
        return plan

    def finish(self, limit=100_000):
        while self.left:
            plan = self.step()
            assert plan.decode or plan.chunks, "work is left and nothing runs"
            assert self.steps < limit
        return self.admitted


def test_prompts_are_read_in_chunks_while_others_decode():
    run = Run(make_scheduler(prefill_chunk=5))
    run.add(job("a", prompt=3), job("b", prompt=6))
    first = run.step()
    assert first.chunks == (ScheduledChunk("a", 0, 3), ScheduledChunk("b", 0, 2)) and first.ready == ("a",)
    second = run.step()
    assert (
        second.decode == ("a",) and second.chunks == (ScheduledChunk("b", 2, 4),) and second.ready == ("b",)
    )
    assert run.step().decode == ("a", "b")


def test_a_cached_prefix_is_not_read():
    scheduler = make_scheduler()
    scheduler.add(job("a", prompt=7))
    assert scheduler.admit() == ["a"]
    scheduler.skip("a", 5, 1)
    assert scheduler.plan().chunks == (ScheduledChunk("a", 5, 2),)


def test_a_request_waits_to_share_a_prefix_that_is_being_read():
    run = Run(make_scheduler(prefill_chunk=4))
    run.add(
        job("first", prompt=8, max_tokens=12, prefix_keys=(b"1", b"2")),
        job("same", prompt=8, max_tokens=12, prefix_keys=(b"1", b"2", b"3")),
        job("other", prefix_keys=(b"9",)),
        job("short"),
    )
    run.step()
    assert run.admitted == ["first", "other", "short"]
    run.step()
    run.step()
    assert "same" in run.admitted
    run.finish()


def test_no_request_waits_for_a_prefix_that_is_cached_already():
    scheduler = make_scheduler(prefill_chunk=1)
    scheduler.add(job("first", prompt=8, max_tokens=12, prefix_keys=(b"1", b"2")))
    assert scheduler.admit() == ["first"]
    scheduler.skip("first", 4, 1)
    scheduler.add(job("same block", prefix_keys=(b"1",)))
    scheduler.add(job("more", prefix_keys=(b"1", b"2")))
    assert scheduler.admit() == ["same block"]


def test_rows_are_as_wide_as_the_widest_needs():
    run = Run(make_scheduler(kv_budget_tokens=4 * 64, max_batch=9))
    run.add(
        *(job(f"short{i}", max_tokens=60) for i in range(3)),
        job("long", max_tokens=100),
        job("late", max_tokens=60),
    )
    run.step()
    # Four short rows would fit; a long one next to three short ones takes twice as much for each of them.
    assert run.admitted == ["short0", "short1", "short2"]
    assert run.finish() == ["short0", "short1", "short2", "long", "late"]


def test_tenants_get_equal_shares_however_much_one_asks_for():
    run = Run(make_scheduler(max_batch=1))
    run.add(*(job(f"a{i}", tenant="a") for i in range(6)), *(job(f"b{i}", tenant="b") for i in range(3)))
    assert run.finish()[:6] == ["a0", "b0", "a1", "b1", "a2", "b2"]


def test_adapters_of_one_tenant_take_turns():
    run = Run(make_scheduler(max_batch=1))
    run.add(*(job(f"x{i}", adapter="x") for i in range(4)), job("y0", adapter="y"), job("y1", adapter="y"))
    assert run.finish()[:4] == ["x0", "y0", "x1", "y1"]


def test_drafted_tokens_count_for_their_tenant():
    run = Run(make_scheduler(max_batch=2))
    run.add(job("a", tenant="a", max_tokens=20), job("b", tenant="b", max_tokens=5))
    run.step()
    run.scheduler.charge("a", 10)
    run.add(job("more a", tenant="a"), job("more b", tenant="b"))
    run.finish()
    assert run.admitted[2] == "more b"


def test_a_tenant_that_was_away_gains_no_advantage():
    run = Run(make_scheduler(max_batch=1))
    run.add(*(job(f"a{i}", tenant="a") for i in range(6)))
    for _ in range(20):
        run.step()
    begun = len(run.admitted)
    run.add(*(job(f"b{i}", tenant="b") for i in range(3)))
    # Counted from zero, all three of "b" would go first, as "a" has had more so far.
    assert "".join(name[0] for name in run.finish()[begun:]).startswith(("baba", "abab"))


def test_higher_priority_goes_first_and_waiting_raises_it():
    run = Run(make_scheduler(max_batch=1))
    run.add(job("running", max_tokens=4 + AGING + 8))
    run.step()
    run.add(job("low"))
    for _ in range(AGING):
        run.step()
    run.add(job("high", priority=1), job("higher", priority=2))
    assert run.finish() == ["running", "higher", "low", "high"]


def test_no_request_starves_under_a_stream_of_important_ones():
    run = Run(make_scheduler(max_batch=1))
    run.add(job("patient"))
    for number in range(40):
        run.add(job(f"vip{number}", priority=3, tenant="b"))
        for _ in range(10):
            run.step()
    assert "patient" in run.admitted


def test_only_so_many_adapters_run_at_once():
    run = Run(make_scheduler(max_adapters=2))
    run.add(*(job(name, adapter=name) for name in "abc"), job("base"))
    run.step()
    assert set(run.admitted) <= {"a", "b", "base"} and "c" not in run.admitted
    assert sorted(run.finish()) == ["a", "b", "base", "c"]


def test_a_request_larger_than_the_budget_could_never_run():
    assert make_scheduler(kv_budget_tokens=128).fits(job("a", max_tokens=128))
    assert not make_scheduler(kv_budget_tokens=128).fits(job("a", max_tokens=129))


@settings(max_examples=cases(60), deadline=None)
@given(data=st.data())
def test_everything_ends_within_the_limits_whatever_comes_and_goes(data):
    scheduler = make_scheduler(
        kv_budget_tokens=data.draw(st.integers(64, 1024)),
        max_batch=data.draw(st.integers(1, 6)),
        prefill_chunk=data.draw(st.integers(1, 20)),
        max_adapters=data.draw(st.integers(1, 3)),
    )
    run = Run(scheduler)
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
                    source_tokens=data.draw(st.sampled_from([0, 0, 3, 30])),
                    source_key=data.draw(st.sampled_from([b"", b"k"])),
                )
                if scheduler.fits(one):
                    run.add(one)
                    names.append(one.id)
                else:
                    longest = max(one.max_tokens, one.source_tokens)
                    assert row_width(longest) > scheduler.kv_budget_tokens
            case "step":
                run.step()
            case "cancel" if names:
                run.cancel(data.draw(st.sampled_from(names)))
        scheduler.check_integrity()
    run.finish()
    assert scheduler.waiting == scheduler.running == 0


def source(name, tokens, *, key=None, **options):
    """A request whose encoder reads so many tokens; its decoder begins with one."""
    return job(name, prompt=1, source_tokens=tokens, source_key=(key or name).encode(), **options)


def test_an_encoder_reads_inputs_whole_within_the_tokens_of_a_step():
    run = Run(make_scheduler(prefill_chunk=8))
    run.add(source("a", 5), source("b", 4), source("c", 2))
    first = run.step()
    assert first.encode == ("a", "c") and first.ready == ("a", "c"), "b would take more than 8"
    assert run.step().encode == ("b",)


def test_the_oldest_input_is_read_even_if_it_is_longer_than_a_step():
    run = Run(make_scheduler(prefill_chunk=8))
    run.add(source("a", 5), source("long", 30), source("b", 4))
    assert run.step().encode == ("a",)
    assert run.step().encode == ("long",)
    assert run.step().encode == ("b",)


def test_equal_inputs_count_once_and_known_ones_not_at_all():
    scheduler = make_scheduler(prefill_chunk=8)
    for one in (source("a", 6, key="k"), source("b", 6, key="k"), source("c", 6)):
        scheduler.add(one)
    assert scheduler.admit() == ["a", "b", "c"]
    scheduler.skip_source("c")
    assert scheduler.plan().encode == ("a", "b")
    assert scheduler.plan().encode == ()


def test_both_caches_bound_what_runs_at_once():
    scheduler = make_scheduler(kv_budget_tokens=256)
    assert scheduler.fits(source("a", 256)) and not scheduler.fits(source("a", 257))
    scheduler.add(source("long input", 128))
    scheduler.add(job("long answer", max_tokens=128, source_tokens=3))
    scheduler.add(source("third", 3))
    assert scheduler.admit() == ["long input", "long answer"], "three rows of 128 don't fit into 256"


def test_the_integrity_check_can_fail():
    scheduler = make_scheduler()
    scheduler.add(job("a"))
    scheduler.admit()
    scheduler.max_batch = 0
    with pytest.raises(AssertionError):
        scheduler.check_integrity()
