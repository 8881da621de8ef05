"""Small products and factors of a mixed batch are those of each token with its own adapter."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.reference.mixed_batch import mixed

from manytune.methods.tuners.terms import Factors, Terms, Update
from manytune.mixed.products import UpdateStack, shape_of
from manytune.mixed.rescaling import FactorStack, outline_of
from manytune.mixed.selection import select_tokens

CPU = torch.device("cpu")
IN, OUT, BLOCKS = 6, 5, (0, 2)
PATHS = [
    f"model.layers.{block}.self_attn.{name}" for block in BLOCKS for name in ("q_proj", "k_proj", "v_proj")
]


def updates(seed, rank, *, biases=False):
    generator = torch.Generator().manual_seed(seed)

    def values(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    return {
        path: Update(
            values(rank, IN),
            values(OUT, rank),
            0.5 + seed,
            values(rank) if biases else None,
            values(OUT) if biases else None,
        )
        for path in PATHS
    }


def layer():
    torch.manual_seed(0)
    return torch.nn.Linear(IN, OUT, dtype=torch.float64)


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_every_token_gets_its_own_adapters_product(data):
    biases = data.draw(st.booleans())
    activation = data.draw(st.sampled_from([None, "gelu"]))
    ranks = data.draw(st.lists(st.integers(5, 8), min_size=1, max_size=7))
    adapters = {
        str(n): Terms(updates=updates(n, rank, biases=biases), activation=activation)
        for n, rank in enumerate(ranks)
    }
    shape = shape_of(adapters["0"], torch.float64)
    assert all(shape_of(terms, torch.float64) == shape for terms in adapters.values())
    stack = UpdateStack(shape, CPU)
    for name, terms in adapters.items():
        stack.add(name, terms.updates)
    for name in data.draw(
        st.lists(st.sampled_from(sorted(adapters)), unique=True, max_size=len(adapters) - 1)
    ):
        stack.remove(name)
        del adapters[name]
    names = st.sampled_from([None, *adapters])
    decoding = data.draw(st.one_of(st.just(list(adapters)), st.lists(names, max_size=12)))
    stretches = data.draw(st.lists(st.tuples(names, st.integers(1, 4)), max_size=3))
    owners, spans = list(decoding), []
    for name, count in stretches:
        if name is not None:
            spans.append((stack.slot(name), slice(len(owners), len(owners) + count)))
        owners += [name] * count
    if not owners:
        return
    stack.selection = select_tokens(
        [-1 if name is None else stack.slot(name) for name in decoding],
        spans,
        device=CPU,
    )
    base, phi = layer(), torch.nn.GELU() if activation else torch.nn.Identity()
    x = torch.randn(1, len(owners), IN, dtype=torch.float64)
    with torch.no_grad():
        for path in PATHS:
            y = base(x)
            if stack.selection is not None:
                stack.products[path].add(x, y)
            own = [(None if name is None else adapters[name].updates[path], None) for name in owners]
            torch.testing.assert_close(y[0], mixed(x[0], base, own, phi))


def test_more_adapters_than_there_is_room_for_at_first_keep_their_weights():
    adapters = {str(n): updates(n, 4) for n in range(70)}
    stack = UpdateStack(shape_of(Terms(updates=adapters["0"]), torch.float64), CPU)
    for name, own in adapters.items():
        stack.add(name, own)
    stack.selection = select_tokens(list(range(len(adapters))), [], device=CPU)
    x = torch.randn(1, len(adapters), IN, dtype=torch.float64)
    for path in PATHS:
        y = torch.zeros(1, len(adapters), OUT, dtype=torch.float64)
        stack.products[path].add(x, y)
        for row, own in enumerate(adapters.values()):
            expected = own[path].scaling * (x[0, row] @ own[path].down.t() @ own[path].up.t())
            torch.testing.assert_close(y[0, row], expected)


def test_no_token_of_a_stack_means_no_selection():
    assert select_tokens([-1, -1], [], device=CPU) is None


def test_layers_that_read_one_tensor_share_its_product():
    stack = UpdateStack(shape_of(Terms(updates=updates(0, 4)), torch.float64), CPU)
    stack.add("a", updates(0, 4))
    groups = [id(stack.products[path].group) for path in PATHS]
    assert groups == [groups[0]] * 3 + [groups[3]] * 3 and groups[0] != groups[3]


def test_a_layer_that_reads_something_else_gets_its_own_product():
    own = updates(3, 4)
    stack = UpdateStack(shape_of(Terms(updates=own), torch.float64), CPU)
    stack.add("a", own)
    stack.selection = select_tokens([0], [], device=CPU)
    for path in PATHS[:2]:
        x = torch.randn(1, 1, IN, dtype=torch.float64)
        y = torch.zeros(1, 1, OUT, dtype=torch.float64)
        stack.products[path].add(x, y)
        torch.testing.assert_close(y[0], own[path].scaling * (x[0] @ own[path].down.t() @ own[path].up.t()))


def test_float32_adapters_on_a_half_precision_base_are_rounded_once():
    own = {
        path: Update(update.down.float(), update.up.float(), 0.5) for path, update in updates(1, 4).items()
    }
    stack = UpdateStack(shape_of(Terms(updates=own), torch.float32), CPU)
    stack.add("a", own)
    stack.selection = select_tokens([0, -1], [], device=CPU)
    x, y = torch.randn(1, 2, IN).bfloat16(), torch.randn(1, 2, OUT).bfloat16()
    expected = (y[0, 0].float() + 0.5 * own[PATHS[0]].up @ (own[PATHS[0]].down @ x[0, 0].float())).bfloat16()
    untouched = y[0, 1].clone()
    stack.products[PATHS[0]].add(x, y)
    assert torch.equal(y[0, 0], expected) and torch.equal(y[0, 1], untouched)


@pytest.mark.parametrize(
    "names", [("inputs",), ("outputs",), ("outputs", "shift"), ("inputs", "outputs", "shift")]
)
def test_every_token_gets_its_own_adapters_factors(names):
    sizes = dict.fromkeys(PATHS, (IN, OUT))

    def factors(seed):
        generator = torch.Generator().manual_seed(seed)
        return {
            path: Factors(
                **{
                    name: torch.randn(
                        IN if name == "inputs" else OUT, generator=generator, dtype=torch.float64
                    )
                    for name in names
                }
            )
            for path in PATHS
        }

    adapters = {str(seed): factors(seed) for seed in range(5)}
    stack = FactorStack(outline_of(adapters["0"], sizes), torch.float64, CPU)
    for name, own in adapters.items():
        stack.add(name, own)
    for name in ("0", "3"):
        stack.remove(name)
    owners = ["1", None, "4", "2", "4", None]
    stack.slots = torch.tensor([0 if name is None else stack.slot(name) for name in owners])
    base, x = layer(), torch.randn(1, len(owners), IN, dtype=torch.float64)
    with torch.no_grad():
        for path in PATHS:
            rescaling = stack.rescalings[path]
            y = base(rescaling.before(x))
            rescaling.after(y)
            own = [(None, None if name is None else adapters[name][path]) for name in owners]
            torch.testing.assert_close(y[0], mixed(x[0], base, own, torch.nn.Identity()))
