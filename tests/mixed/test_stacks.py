"""What adapters add to each layer of a mixed batch is what each token's own adapter says."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.random_cases import cases
from tests.reference.mixed_batch import mixed
from torch import nn

from manytune.methods.tuners.terms import Factors, Terms, Update
from manytune.mixed.layers import MixedLayers
from manytune.mixed.owners import Owners
from manytune.mixed.stacks import AdapterStacks, snapshot_of

CPU = torch.device("cpu")
IN, OUT, BLOCKS, VOCABULARY = 6, 5, (0, 2), 7
PATHS = [f"layers.{block}.self_attn.{name}" for block in BLOCKS for name in ("q_proj", "k_proj", "v_proj")]


class Base(nn.Module):
    """Layers of the kinds that adapters have terms at."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Embedding(VOCABULARY, IN)
        blocks = []
        for _ in range(3):
            block = nn.Module()
            block.self_attn = nn.ModuleDict(
                {name: nn.Linear(IN, OUT) for name in ("q_proj", "k_proj", "v_proj")}
            )
            blocks.append(block)
        self.layers = nn.ModuleList(blocks)
        self.norm = nn.LayerNorm(IN)
        self.head = nn.Linear(IN, VOCABULARY, bias=False)
        self.double()


def values(seed):
    generator = torch.Generator().manual_seed(seed)
    return lambda *shape: torch.randn(shape, generator=generator, dtype=torch.float64)


def low_rank(seed, rank, *, biases=False):
    draw = values(seed)
    return {
        path: Update(
            draw(rank, IN),
            draw(OUT, rank),
            0.5 + seed,
            draw(rank) if biases else None,
            draw(OUT) if biases else None,
        )
        for path in PATHS
    }


def of_kind(kind, seed):
    """Terms of one adapter."""
    draw = values(seed)
    if kind == "low rank":
        return Terms(updates=low_rank(seed, 5 + seed % 4))
    if kind == "with biases":
        return Terms(updates=low_rank(seed, 3, biases=True), activation="gelu")
    if kind == "factors":
        return Terms(factors={path: Factors(draw(IN), draw(OUT), draw(OUT)) for path in PATHS})
    if kind == "biases":
        return Terms(factors={path: Factors(shift=draw(OUT)) for path in [*PATHS[:3]]})
    if kind == "norm":
        return Terms(factors={"norm": Factors(outputs=draw(IN), shift=draw(IN))})
    if kind == "embedding":
        return Terms(updates={"embed": Update(draw(2, VOCABULARY), draw(IN, 2), 1.5, lookup=True)})
    if kind == "table":
        zeros = Factors(outputs=torch.zeros(IN, dtype=torch.float64))
        return Terms(
            updates={"embed": Update(None, draw(IN, VOCABULARY), lookup=True)}, factors={"embed": zeros}
        )
    if kind == "head":
        return Terms(updates={"head": Update(draw(3, IN), draw(VOCABULARY, 3), 2.0), **low_rank(seed, 4)})
    zeros = Factors(outputs=torch.zeros(VOCABULARY, dtype=torch.float64))
    whole = Update(None, draw(VOCABULARY, IN), up_bias=draw(VOCABULARY))
    return Terms(updates={"head": whole, **low_rank(seed, 4)}, factors={"head": zeros})


KINDS = [
    *("low rank", "with biases", "factors", "biases", "norm", "embedding", "table", "head", "whole head"),
]


def inputs(path, rows):
    generator = torch.Generator().manual_seed(rows)
    if path == "embed":
        return torch.randint(VOCABULARY, (rows,), generator=generator)
    return torch.randn(rows, IN, generator=generator, dtype=torch.float64)


def check(base, stacks, layers, adapters, owners, rows_of):
    """Each layer sees `rows_of(path)`: the owner of each of its rows."""
    phi = {None: nn.Identity(), "gelu": nn.GELU()}
    terms = stacks.choose(owners)
    with torch.no_grad(), layers.applied(terms):
        found = {}
        for path in ["embed", "norm", "head", *PATHS]:
            x = inputs(path, len(rows_of(path)))
            found[path] = base.get_submodule(path)(x[None])[0]
    stacks.end_forward()
    for path, result in found.items():
        rows = rows_of(path)
        for activation in (None, "gelu"):
            mine = [
                i for i, name in enumerate(rows) if name is None or adapters[name].activation == activation
            ]
            own = [
                (None, None)
                if rows[i] is None
                else (adapters[rows[i]].updates.get(path), adapters[rows[i]].factors.get(path))
                for i in mine
            ]
            if mine:
                expected = mixed(
                    inputs(path, len(rows))[mine], base.get_submodule(path), own, phi[activation]
                )
                torch.testing.assert_close(result[mine], expected)


@settings(max_examples=cases(40), deadline=None)
@given(data=st.data())
def test_every_token_gets_its_own_adapters_terms_at_every_layer(data):
    kinds = data.draw(st.lists(st.sampled_from(KINDS), min_size=1, max_size=7))
    adapters = {f"{kind} {seed}": of_kind(kind, seed) for seed, kind in enumerate(kinds)}
    base = Base()
    stacks = AdapterStacks(CPU)
    snapshots = {name: snapshot_of(name, terms, torch.float64) for name, terms in adapters.items()}
    for snapshot in snapshots.values():
        stacks.acquire(snapshot)
    gone = data.draw(st.lists(st.sampled_from(sorted(adapters)), unique=True, max_size=len(adapters) - 1))
    for name in gone:
        stacks.release(snapshots[name])
        del adapters[name]
    layers = MixedLayers(dict(base.named_modules()), {})
    names = st.sampled_from([None, *adapters])
    for _ in range(2):
        single = data.draw(st.one_of(st.just(list(adapters)), st.lists(names, max_size=12)))
        chunks, rows = [], list(single)
        for name, count in data.draw(st.lists(st.tuples(names, st.integers(1, 4)), max_size=3)):
            chunks.append((name, slice(len(rows), len(rows) + count)))
            rows += [name] * count
        if not rows:
            continue
        kept = None
        if data.draw(st.booleans()):
            kept = tuple(sorted(data.draw(st.sets(st.integers(0, len(rows) - 1), min_size=1))))
        times = data.draw(st.sampled_from([1, 1, 2, 3]))

        def rows_of(path, rows=rows, kept=kept, times=times):
            if path == "head" and kept is not None:
                return [rows[token] for token in kept]
            return [name for name in rows for _ in range(times)]

        if kept is not None and times > 1 and len(kept) == len(rows) * times:
            continue
        check(base, stacks, layers, adapters, Owners(tuple(single), tuple(chunks), kept), rows_of)


def test_more_adapters_than_there_is_room_for_at_first_keep_their_weights():
    base, stacks = Base(), AdapterStacks(CPU)
    kinds = ("low rank", "factors", "whole head")
    adapters = {f"{kind} {n}": of_kind(kind, 4 * n) for n in range(24) for kind in kinds}
    for name, terms in adapters.items():
        stacks.acquire(snapshot_of(name, terms, torch.float64))
    layers = MixedLayers(dict(base.named_modules()), {})
    owners = tuple(adapters)
    check(base, stacks, layers, adapters, Owners(owners), lambda path: list(owners))


def test_weights_that_no_forward_reads_are_not_copied_and_those_behind_them_stay_right():
    base, stacks = Base(), AdapterStacks(CPU)
    adapters = {str(seed): Terms(updates=low_rank(seed, 2)) for seed in range(3)}
    held = {name: snapshot_of(name, terms, torch.float64) for name, terms in adapters.items()}
    for one in held.values():
        stacks.acquire(one)
    (stack,) = stacks._updates.values()
    assert list(stack._unwritten) == ["0", "1", "2"]
    stacks.release(held["0"])  # the last one takes its place before any was copied
    layers, owners = MixedLayers(dict(base.named_modules()), {}), ("2", None, "1")
    check(base, stacks, layers, adapters, Owners(owners), lambda path: list(owners))
    assert not stack._unwritten


def test_equal_owners_give_the_same_terms_so_that_nothing_is_looked_up_again():
    stacks = AdapterStacks(CPU)
    stacks.acquire(snapshot_of("a", of_kind("low rank", 0), torch.float64))
    first = stacks.choose(Owners(("a", None)))
    assert stacks.choose(Owners(("a", None))) is first
    assert stacks.choose(Owners((None, "a"))) is not first


def test_no_token_of_a_stack_means_that_no_layer_is_touched():
    stacks = AdapterStacks(CPU)
    stacks.acquire(snapshot_of("a", of_kind("low rank", 0), torch.float64))
    assert not stacks.choose(Owners((None, None)))


def test_layers_that_read_one_tensor_share_its_product():
    stacks = AdapterStacks(CPU)
    stacks.acquire(snapshot_of("a", of_kind("low rank", 0), torch.float64))
    terms = stacks.choose(Owners(("a",)))
    lows = [id(terms[path].products[0].low) for path in PATHS]
    assert lows == [lows[0]] * 3 + [lows[3]] * 3 and lows[0] != lows[3]


def test_float32_adapters_on_a_half_precision_base_are_rounded_once():
    own = {path: Update(u.down.float(), u.up.float(), 0.5) for path, u in low_rank(1, 4).items()}
    stacks, base = AdapterStacks(CPU), Base().bfloat16()
    stacks.acquire(snapshot_of("a", Terms(updates=own), torch.float32))
    layers = MixedLayers(dict(base.named_modules()), {})
    x, layer = torch.randn(1, 2, IN).bfloat16(), base.get_submodule(PATHS[0])
    with torch.no_grad():
        plain = layer(x)[0]
        with layers.applied(stacks.choose(Owners(("a", None)))):
            found = layer(x)[0]
    expected = (plain[0].float() + 0.5 * own[PATHS[0]].up @ (own[PATHS[0]].down @ x[0, 0].float())).bfloat16()
    assert torch.equal(found[0], expected) and torch.equal(found[1], plain[1])


def test_a_layers_own_forward_comes_back_afterwards():
    base, stacks = Base(), AdapterStacks(CPU)
    stacks.acquire(snapshot_of("a", of_kind("low rank", 0), torch.float64))
    layer = base.get_submodule(PATHS[0])
    hooked = layer.forward
    layer.forward = hooked  # as libraries do that move inputs between devices
    layers = MixedLayers(dict(base.named_modules()), {})
    with pytest.raises(KeyError, match="stopped"), layers.applied(stacks.choose(Owners(("a",)))):
        raise KeyError("stopped")
    assert layer.__dict__["forward"] is hooked
    assert "forward" not in base.get_submodule(PATHS[1]).__dict__


def test_a_layer_that_sees_rows_of_no_known_number_is_an_error():
    with pytest.raises(ValueError, match="3 rows in a forward of 2 tokens"):
        Owners((None, "a")).of(3)
