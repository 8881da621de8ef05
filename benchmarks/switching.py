"""Switching, loading and keeping many adapters on SmolLM2-135M-Instruct, and with HF PEFT where it can do the same.

    python benchmarks/switching.py [--part switch|attach|load|memory|scale|exact]... [--store DIR]

Terms take from half a minute to three; all of them run if none is named. `load`, `memory` and `scale` work on a store
of 10,000 adapters (9 GB), which is made in --store and kept there for the next time.
"""

from __future__ import annotations

import argparse
import copy
import gc
import os
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import torch
from machine import LoadWatch
from many_adapters import TARGETS, copies, fill
from popularity import belady_hit_rate, draws, lru_model_hit_rate, most_popular_hit_rate

from manytune.model.peft_model import PeftModel
from manytune.store.base import Base, load_base
from manytune.store.cache import AdapterCache
from manytune.store.store import AdapterStore

REGISTERED = 10_000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--part", action="append", choices=list(PARTS), help="only this; may be given several times"
    )
    parser.add_argument("--store", type=Path, help="where the 10,000 adapters are made and kept")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    base = load_base("embedded", dtype=torch.float32)
    with tempfile.TemporaryDirectory() as folder:
        for part in options.part or PARTS:
            watch = LoadWatch()
            print(f"\n{part}")
            PARTS[part](base, Path(folder), options.store or Path(folder) / "store")
            print(f"  {watch.stop()}")


def median_ms(work: Callable[[], object], rounds: int) -> float:
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return 1e3 * statistics.median(times)


def interleaved(work: dict[str, Callable[[], object]], seconds: float = 12) -> dict[str, float]:
    """The median time of each in milliseconds, run in turn for long enough to outlast a machine's bad moments."""
    for one in work.values():
        one()
    times: dict[str, list[float]] = {name: [] for name in work}
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        for name, one in work.items():
            times[name].append(median_ms(one, 1))
    return {name: statistics.median(own) for name, own in times.items()}


# -- switching


def switch(base: Base, folder: Path, store: Path) -> None:
    """A merged and a slotted switch at 1 and at 1,001 adapters, compared with one copy of the targeted weights."""
    for targets in TARGETS:
        model = copy.deepcopy(base.model)
        path, other = copies(folder, base, 2, targets)
        adapted = PeftModel.from_pretrained(model, path, "first")
        weights = [layer.weight.data for layer in adapted.tuner._layers.values()]
        room = [weight.clone() for weight in weights]
        theirs = peft.PeftModel.from_pretrained(copy.deepcopy(base.model), str(path), "first")
        adapted.load_adapter(other, "second")

        def copy_once(weights: list[Any] = weights, room: list[Any] = room) -> None:
            for weight, into in zip(weights, room, strict=True):
                into.copy_(weight)

        def merged(adapted: Any = adapted) -> None:
            with adapted.using("second", merged=True):
                pass

        def peft_merged(theirs: Any = theirs) -> None:
            theirs.merge_adapter()
            theirs.unmerge_adapter()

        found = interleaved({"copy": copy_once, "merged": merged, "peft": peft_merged})
        slotted = slotted_us(adapted)
        print(
            f"  {targets:<10} copy of the targeted weights {found['copy']:.1f} ms; merged switch "
            f"{found['merged']:.1f} ms ({found['merged'] / found['copy']:.2f}x the copy, required 2x); peft's merge and"
            f" unmerge {found['peft']:.1f} ms ({found['peft'] / found['merged']:.1f}x ours)"
        )
        del theirs
        small = copies(folder, base, 1, targets, r=1)[0]
        for number in range(999):
            adapted.load_adapter(small, f"a{number}", low_cpu_mem_usage=True)
        many = interleaved({"copy": copy_once, "merged": merged})
        print(
            f"  {targets:<10} among 1,001 adapters: copy {many['copy']:.1f} ms; merged switch {many['merged']:.1f} ms "
            f"({many['merged'] / many['copy']:.2f}x)"
        )
        print(
            f"  {targets:<10} slotted switch there and back: {slotted:.1f} µs, among 1,001 {slotted_us(adapted):.1f} µs"
        )
        del adapted
        gc.collect()


def slotted_us(adapted: Any) -> float:
    def there_and_back() -> None:
        with adapted.using("second"):
            pass

    for _ in range(100):
        there_and_back()
    return 1e3 * median_ms(there_and_back, 2000)


def exact(base: Base, folder: Path, store: Path) -> None:
    """The base's bits after 10,000 merged switches among several adapters."""
    model = copy.deepcopy(base.model)
    paths = copies(folder, base, 4, "q,v")
    adapted = PeftModel.from_pretrained(model, paths[0], "a0")
    for number, path in enumerate(paths[1:], 1):
        adapted.load_adapter(path, f"a{number}")
    for count in range(10_000):
        with adapted.using(f"a{count % 4}", merged=True):
            pass
    before, after = base.model.state_dict(), adapted.unload().state_dict()
    changed = sum(int((after[name] != before[name]).sum()) for name in before)
    print(f"  weights that differ from the base's after 10,000 merged switches: {changed}")


# -- loading


def attach(base: Base, folder: Path, store: Path) -> None:
    """Attaching one more adapter to a model with one and to a model with 1,000, and HF PEFT's 2nd and 62nd."""
    path = copies(folder, base, 1, "q,v")[0]
    few: Any = PeftModel.from_pretrained(copy.deepcopy(base.model), path, "first")
    mine: Any = PeftModel.from_pretrained(copy.deepcopy(base.model), path, "first")
    for number in range(999):
        mine.load_adapter(path, f"a{number}")
    times: dict[str, list[float]] = {"few": [], "many": []}
    for _ in range(60):
        # In turn, since how fast the machine is changes within a minute.
        for name, model in (("few", few), ("many", mine)):
            times[name].append(median_ms(lambda model=model: model.load_adapter(path, "one more"), 1))
            model.delete_adapter("one more")
    early, late = (statistics.median(times[name]) for name in ("few", "many"))
    print(
        f"  manytune: the 2nd adapter takes {early:.1f} ms, the 1,001st {late:.1f} ms "
        f"({late / early:.2f}x, required about 1x)"
    )
    del few
    names = [f"a{n}" for n in range(8)]
    ids = torch.randint(0, 1000, (8, 16))
    among_many = median_ms(lambda mine=mine: mine(input_ids=ids, adapter_names=names), 5)
    del mine
    gc.collect()
    two: Any = PeftModel.from_pretrained(copy.deepcopy(base.model), path, "a0")
    for n in range(1, 8):
        two.load_adapter(path, f"a{n}")
    alone = median_ms(lambda: two(input_ids=ids, adapter_names=names), 5)
    print(f"  one batch of 8 adapters: {alone:.0f} ms with 8 loaded, {among_many:.0f} ms with 1,001")
    theirs: Any = peft.PeftModel.from_pretrained(copy.deepcopy(base.model), str(path), "first")
    slow = []
    for number in range(61):
        start = time.perf_counter()
        theirs.load_adapter(str(path), f"a{number}")
        slow.append(1e3 * (time.perf_counter() - start))
    print(f"  peft: the 2nd takes {slow[0]:.0f} ms, the 62nd {slow[-1]:.0f} ms")


def forget(path: Path) -> None:
    """Have the system drop a file's pages, so that the next read comes from the disk."""
    for file in path.iterdir():
        descriptor = os.open(file, os.O_RDONLY)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)


def load(base: Base, folder: Path, store: Path) -> None:
    """A cold load into memory, hashes checked and every page touched, among 10 and among 10,000 registered."""
    few, many = AdapterStore(folder / "few"), AdapterStore(store)
    fill(few, base, 10, dtype=torch.float32)
    fill(many, base, REGISTERED)
    stores = (("10 in float32", few, 10), (f"{REGISTERED:,} in bfloat16", many, REGISTERED))
    for name, kept, count in stores:
        chosen = [f"a{n}" for n in range(0, count, max(1, count // 200))]
        for where, cold in (("disk", True), ("page cache", False)):
            cache = AdapterCache(kept, budget=1 << 40, fingerprint=base.fingerprint)
            times = []
            for one in chosen:
                if cold:
                    forget(kept.path(one))
                start = time.perf_counter()
                adapter = cache.get(one)
                for tensor in adapter.tensors.values():
                    tensor.sum()
                times.append(1e3 * (time.perf_counter() - start))
            times.sort()
            print(
                f"  among {name:<18} from the {where:<10}: median {statistics.median(times):.2f} ms, "
                f"p99 {times[int(0.99 * len(times))]:.2f} ms (required 10 ms)"
            )


# -- memory and scale


def memory_kb(key: str) -> int:
    line = next(
        own for own in Path("/proc/self/smaps_rollup").read_text().splitlines() if own.startswith(f"{key}:")
    )
    return int(line.split()[1])


def memory(base: Base, folder: Path, store: Path) -> None:
    """What 1,000 resident adapters take, in their own dtype, every page touched; and 10,000 loads and unloads."""
    kept = AdapterStore(store)
    fill(kept, base, REGISTERED)
    gc.collect()
    before = memory_kb("Rss")
    cache = AdapterCache(kept, budget=1 << 40)
    held = [cache.get(f"a{n}") for n in range(1000)]
    for adapter in held:
        for tensor in adapter.tensors.values():
            tensor.sum()
    gc.collect()
    grown, tensors = 1024 * (memory_kb("Rss") - before), sum(adapter.nbytes for adapter in held)
    print(
        f"  1,000 resident r=8 q,v adapters (bfloat16): {grown / 1e6:,.0f} MB for {tensors / 1e6:,.0f} MB of tensors "
        f"({grown / tensors:.3f}x, required 1.1x)"
    )
    del held, adapter, tensor
    cache.close()
    small = AdapterCache(kept, budget=50 * (tensors // 1000))
    sizes = []
    for n in range(REGISTERED):
        small.get(f"a{n}")
        if n % 1000 == 999:
            gc.collect()
            sizes.append(memory_kb("Rss") / 1024)
    counters = small.counters()
    print(
        f"  {counters.misses:,} loads and {counters.evictions:,} unloads, room for {counters.resident}: resident "
        f"memory {sizes[0]:,.0f} MB after 1,000, {sizes[-1]:,.0f} MB after 10,000"
    )


def scale(base: Base, folder: Path, store: Path) -> None:
    """20,000 requests for 10,000 adapters, Zipf, a cache for 500."""
    kept = AdapterStore(store)
    fill(kept, base, REGISTERED)
    size = kept.entry("a0").nbytes
    requests, probabilities = draws(REGISTERED, 20_000)
    cache = AdapterCache(kept, budget=500 * size)
    times = []
    began = time.perf_counter()
    for number in requests:
        start = time.perf_counter()
        cache.get(f"a{number}")
        times.append(1e3 * (time.perf_counter() - start))
    seconds = time.perf_counter() - began
    times.sort()
    counters = cache.counters()
    print(
        f"  hit rate {counters.hit_rate:.3f}; the same requests: a model of least recently used "
        f"{lru_model_hit_rate(probabilities, 500, len(requests)):.3f}, the 500 most popular kept for good "
        f"{most_popular_hit_rate(requests, 500):.3f}, Belady's optimum, which knows the future, "
        f"{belady_hit_rate(requests, 500):.3f}"
    )
    print(
        f"  {len(times) / seconds:,.0f} requests a second; median {statistics.median(times):.3f} ms, "
        f"p99 {times[int(0.99 * len(times))]:.2f} ms, largest {times[-1]:.1f} ms; {counters.resident} resident, "
        f"{counters.evictions:,} evictions"
    )


PARTS: dict[str, Callable[[Base, Path, Path], None]] = {
    "switch": switch,
    "attach": attach,
    "load": load,
    "memory": memory,
    "scale": scale,
    "exact": exact,
}

if __name__ == "__main__":
    main()
