"""Routers and grouped experts in a mixed batch: every token has its own experts, each with the token's own adapter."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.methods.tiny_moe import DEEPSEEK, GPT_OSS, MIXTRAL, MIXTURES, QWEN3
from tests.random_cases import cases
from tests.reference import mixed_experts

from manytune.methods.tuners.terms import ParameterUpdate, Terms
from manytune.mixed.layers import MixedLayers
from manytune.mixed.owners import Owners
from manytune.mixed.stacks import AdapterStacks, snapshot_of

CPU = torch.device("cpu")
LAYER = "model.layers.1.mlp"


@cache
def model_of(mixture):
    model = mixture.build().double()
    model.set_experts_implementation("eager")  # transformers' other ones don't take float64
    return model


def places(mixture):
    """The parameters of one layer's experts and router, by path."""
    block = model_of(mixture).get_submodule(LAYER)
    return {
        f"{LAYER}.{name}": parameter
        for name, parameter in block.named_parameters()
        if name.startswith(("experts.gate_up_proj", "experts.down_proj", mixture.router))
        and parameter.dim() > 1
        if "bias" not in name
    }


def update(parameter, experts, rank, draw, scaling):
    """Of random values that move the layer's results visibly."""
    out, inputs = parameter.shape[-2:]
    if parameter.dim() == 3 and getattr(experts, "is_transposed", False):
        out, inputs = inputs, out
    head = parameter.shape[:-2]
    return ParameterUpdate(draw(*head, rank, inputs), draw(*head, out, rank), scaling)


def adapter(mixture, seed, *, which=None):
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return 0.3 * torch.randn(shape, generator=generator, dtype=torch.float64)

    experts = model_of(mixture).get_submodule(f"{LAYER}.experts")
    chosen = list(places(mixture).items())[slice(*which) if which else slice(None)]
    return Terms(
        parameters={path: update(one, experts, 1 + seed % 3, draw, 0.5 + seed) for path, one in chosen}
    )


def arguments(mixture, path, tokens, seed):
    """What the block gives its router, or its experts."""
    generator = torch.Generator().manual_seed(seed)
    block, size = model_of(mixture).get_submodule(LAYER), model_of(mixture).config.hidden_size
    hidden = torch.randn(tokens, size, generator=generator, dtype=torch.float64)
    if not path.endswith("experts"):
        return (hidden,)
    count = block.experts.num_experts
    chosen = torch.stack([torch.randperm(count, generator=generator)[:2] for _ in range(tokens)])
    return hidden, chosen, torch.rand(tokens, 2, generator=generator, dtype=torch.float64)


def check(mixture, stacks, adapters, owners, rows):
    """Both layers give what each row's own adapter makes of them."""
    model = model_of(mixture)
    layers = MixedLayers(dict(model.named_modules()), {})
    for path in (f"{LAYER}.experts", f"{LAYER}.{mixture.router.removesuffix('.weight')}"):
        given_to = arguments(mixture, path, len(rows), seed=len(rows))
        layer = model.get_submodule(path)
        with torch.no_grad(), layers.applied(stacks.choose(owners)):
            found = layer(*given_to)
        own = [{} if name is None else adapters[name].parameters for name in rows]
        each = [tuple(one[row : row + 1] for one in given_to) for row in range(len(rows))]
        with torch.no_grad():
            expected = mixed_experts.mixed(layer, path, each, own)
        # DeepSeek's router computes in float32 whatever it is given.
        tolerance = 1e-5 if mixture is DEEPSEEK and path.endswith("gate") else 1e-9
        torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("mixture", MIXTURES, ids=str)
@settings(max_examples=cases(12), deadline=None)
@given(data=st.data())
def test_every_token_gets_its_own_adapter_at_its_own_experts(mixture, data):
    parts = [(0, 1), (1, 2), (2, 3), (0, 2), (0, 3)]  # adapters differ in what they adapt, too
    kinds = data.draw(st.lists(st.sampled_from(parts), min_size=1, max_size=4))
    adapters = {f"{n}": adapter(mixture, n, which=which) for n, which in enumerate(kinds)}
    stacks = AdapterStacks(CPU)
    for name, terms in adapters.items():
        stacks.acquire(snapshot_of(name, terms, torch.float64))
    names = st.sampled_from([None, *adapters])
    single = data.draw(st.lists(names, min_size=1, max_size=5))
    chunks, rows = [], list(single)
    for name, count in data.draw(st.lists(st.tuples(names, st.integers(1, 3)), max_size=2)):
        chunks.append((name, slice(len(rows), len(rows) + count)))
        rows += [name] * count
    times = data.draw(st.sampled_from([1, 1, 2]))
    rows = [name for name in rows for _ in range(times)]
    check(mixture, stacks, adapters, Owners(tuple(single), tuple(chunks)), rows)


def test_released_adapters_and_their_memory_are_gone():
    stacks, kept = AdapterStacks(CPU), adapter(QWEN3, 1)
    snapshots = [
        snapshot_of(name, terms, torch.float64) for name, terms in (("a", adapter(QWEN3, 0)), ("b", kept))
    ]
    for snapshot in snapshots:
        stacks.acquire(snapshot)
    both = stacks.nbytes
    stacks.release(snapshots[0])
    check(QWEN3, stacks, {"b": kept}, Owners(("b", None)), ["b", None])
    # D is the adapter's own memory, and s U is made for the slots: 8 bytes a number.
    assert stacks.nbytes == sum(8 * one.up.numel() for one in kept.parameters.values()) < both
    stacks.release(snapshots[1])
    assert stacks.nbytes == 0 and not stacks.choose(Owners((None,)))


def test_slots_in_another_dtype_count_both_factors():
    stacks, terms = AdapterStacks(CPU), adapter(QWEN3, 1)
    stacks.acquire(snapshot_of("a", terms, torch.float32))
    numbers = sum(one.up.numel() + one.down.numel() for one in terms.parameters.values())
    assert stacks.nbytes == 4 * numbers


def test_float32_adapters_on_half_precision_experts_are_rounded_once():
    model = QWEN3.build().bfloat16()
    path, terms = f"{LAYER}.experts", adapter(QWEN3, 2, which=(1, 2))
    ((name, own),) = terms.parameters.items()
    assert name.endswith("down_proj")
    stacks, layer = AdapterStacks(CPU), model.get_submodule(path)
    stacks.acquire(snapshot_of("a", terms, torch.float32))
    x = torch.randn(1, 16).bfloat16()
    chosen, shares = torch.tensor([[3]]), torch.ones(1, 1).bfloat16()
    with torch.no_grad(), MixedLayers(dict(model.named_modules()), {}).applied(stacks.choose(Owners(("a",)))):
        found = layer(x, chosen, shares)
    with torch.no_grad():
        inner = layer._apply_gate(x @ layer.gate_up_proj[3].T)
        plain = inner @ layer.down_proj[3].T
        added = own.scaling * inner.float() @ own.down[3].float().T @ own.up[3].float().T
    torch.testing.assert_close(found, (plain.float() + added).bfloat16(), rtol=0, atol=0)


def test_a_layer_that_mixes_its_rows_is_refused_rather_than_wrong():
    class PoolingRouter(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.ones(4, 3))

        def forward(self, x):
            return (x @ self.weight.T).mean(0, keepdim=True)

    from manytune.errors import AdapterError

    stacks = AdapterStacks(CPU)
    own = ParameterUpdate(torch.ones(2, 3), torch.ones(4, 2))
    stacks.acquire(snapshot_of("a", Terms(parameters={"gate.weight": own}), torch.float32))
    base = torch.nn.ModuleDict({"gate": PoolingRouter()})
    layers = MixedLayers(dict(base.named_modules()), {})
    with (
        torch.no_grad(),
        layers.applied(stacks.choose(Owners(("a", None)))),
        pytest.raises(AdapterError, match="PoolingRouter gives 2 rows for 4 tokens"),
    ):
        base["gate"](torch.ones(4, 3))


def test_experts_of_every_kind_are_covered():
    assert {DEEPSEEK, GPT_OSS, MIXTRAL, QWEN3} == set(MIXTURES)
    assert all(len(places(mixture)) == 3 for mixture in MIXTURES)
