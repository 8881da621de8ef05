"""Products with weights of 4 bits add adapters' updates as the operation for updates does, to the last bit."""

import numpy as np
import pytest
import torch
from tests.engine.adapters import attached, configs_for, in_memory, llama
from tests.kernels.machine import needs_compiler
from tests.random_cases import cases

pytest.importorskip("openvino", reason="OpenVINO isn't installed; the extra `openvino` brings it")

from manytune.engine.engine import Engine
from manytune.engine.openvino import four_bits, native, program
from manytune.engine.openvino.four_bits import applied
from manytune.engine.openvino.graph import build
from manytune.engine.openvino.native import NOTHING, Part, Weights, plan_of
from manytune.engine.options import EngineOptions
from manytune.engine.request import Request, SamplingParams

has_vnni = torch.cpu._is_vnni_supported() and torch.cpu._is_avx512_supported()
needs_vnni = pytest.mark.skipif(not has_vnni, reason="the operations are for processors with avx512_vnni")
pytestmark = [needs_compiler, needs_vnni]

#: Two layers of a product with 96 outputs, of which the second has two kinds of updates.
PARTS = [Part(0, 0, 0, 48, 96, ""), Part(1, 0, 64, 32, 96, "silu"), Part(2, 0, 64, 32, 96, "")]


@pytest.fixture(scope="module")
def operations():
    found = four_bits.four_bits(), native.operation()
    assert None not in found
    return found


def drawn_weights(generator, rank, outputs, dtype, has_bias):
    down, up, bias = (
        torch.randn(*shape, generator=generator) for shape in ((rank, 96), (rank, outputs), (rank,))
    )
    return Weights(down.to(dtype), up.to(dtype), bias if has_bias else None)


def case(seed, rows, dtype):
    """Weights that have to be kept, and the plan's; the last adapter has no update."""
    generator = torch.Generator().manual_seed(seed)
    own = [
        [drawn_weights(generator, rank, part.outputs, dtype, part.number == 1) for part in PARTS[:2]]
        for rank in (8, 3, 40)
    ] + [[drawn_weights(generator, 8, 48, dtype, False), None]]
    entries = np.array(
        [
            [NOTHING if one[place] is None else one[place].entry for one in own] + [NOTHING]
            for place in range(2)
        ]
        + [[NOTHING] * 5],
        np.int64,
    )
    tokens = torch.randint(0, 5, (rows,), generator=generator).repeat_interleave(3)[:rows].tolist()
    x = torch.randn(rows, 96, generator=generator)
    return own, entries, tokens, x


def product(operations, entries, tokens, x, dtype):
    weight = torch.randn(96, 96, generator=torch.Generator().manual_seed(100))
    return applied(operations[0], x, weight, plan_of(tokens, entries, dtype), PARTS)


@pytest.mark.parametrize("seed", range(cases(8)))
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_it_is_what_the_operation_for_updates_makes_of_the_product(operations, seed, dtype):
    rows = [1, 2, 5, 8, 9, 17, 33, 70][seed % 8]
    _own, entries, tokens, x = case(seed, rows, dtype)
    found = product(operations, entries, tokens, x, dtype)
    weight = torch.randn(96, 96, generator=torch.Generator().manual_seed(100))
    plain = applied(operations[0], x, weight)[0]
    [expected] = native.applied(operations[1], PARTS, plan_of(tokens, entries, dtype), x, [plain])
    assert torch.equal(found[0], expected)
    assert torch.equal(found[1], found[2])  # the gate with the product, and apart
    has_nothing = torch.tensor(tokens) == 4
    assert torch.equal(found[0][has_nothing], plain[has_nothing])
    assert not torch.equal(expected, plain) or has_nothing.all()


def test_a_row_is_the_same_bits_in_any_mixture(operations):
    _own, entries, tokens, x = case(3, 45, torch.bfloat16)
    together = product(operations, entries, tokens, x, torch.bfloat16)
    for row, adapter in enumerate(tokens):
        alone = product(operations, entries, [adapter], x[row : row + 1], torch.bfloat16)
        for one, all_rows in zip(alone, together, strict=True):
            assert torch.equal(one[0], all_rows[row])


def test_infinite_weights_stay_in_their_rows(operations):
    own, entries, _tokens, x = case(4, 9, torch.float32)
    own[0][0].down.fill_(torch.inf)
    own[0][0].up.fill_(torch.nan)
    tokens = [0, 1, 1, 0, 2, 4, 3, 0, 1]
    found = product(operations, entries, tokens, x, torch.float32)[0]
    assert [bool(one.isfinite().all()) for one in found] == [one != 0 for one in tokens]


@pytest.mark.parametrize(
    ("part", "tokens"),
    [
        (Part(0, 0, 0, 48, 64, ""), 3),
        (Part(0, 0, 64, 48, 96, ""), 3),
        (Part(0, 0, 8, 48, 96, ""), 3),
        (Part(3, 0, 0, 48, 96, ""), 3),
        (Part(0, 0, 0, 48, 96, ""), 2),
    ],
)
def test_sizes_that_dont_fit_are_errors(operations, part, tokens):
    _own, entries, _tokens, x = case(5, 3, torch.float32)
    with pytest.raises(RuntimeError, match=r"another size than its layer|expected \d tokens"):
        applied(operations[0], x, torch.randn(96, 96), plan_of([0] * tokens, entries), [part])


# -- in an engine


def test_products_of_4_bits_add_all_updates(tokenizer, monkeypatch):
    graphs = []
    monkeypatch.setattr(
        program, "build", lambda *args, **options: graphs.append(build(*args, **options)) or graphs[-1]
    )
    engine = Engine(llama(), tokenizer, EngineOptions(runtime="openvino", weights="int4"))
    engine.add_adapter("lora", in_memory(attached(llama(), configs_for(llama())["lora all"], seed=1)))
    engine.generate([Request("one", (5, 6, 7), SamplingParams(2), "lora")])
    plain, joint = ([one.get_type_name() for one in graph.get_ordered_ops()] for graph in graphs)
    added = {kind: joint.count(kind) - plain.count(kind) for kind in {*joint, *plain}}
    # One for each down_proj, whose 48 inputs take 8 bits.
    assert {kind: count for kind, count in added.items() if count} == {"Parameter": 1, "ManytuneUpdates": 2}


def test_an_adapter_answers_the_same_whoever_computes_its_updates(tokenizer):
    """Next to an adapter with factors its updates can't be added by the product."""
    configs = configs_for(llama())
    params = SamplingParams(12, logprobs=2, ignore_eos=True)
    asked = [Request(str(one), tuple(range(3 + one, 9 + one)), params, "lora") for one in range(3)]
    engine = Engine(llama(), tokenizer, EngineOptions(runtime="openvino", weights="int4", speculation="off"))
    engine.add_adapter("lora", in_memory(attached(llama(), configs["lora all"], seed=1)))
    alone = [(one.token_ids, one.logprobs) for one in engine.generate(asked)]
    engine.add_adapter("factors", in_memory(attached(llama(), configs["ia3"], seed=1)))
    other = [Request(f"other {one}", (5, 6, 7, one), params, "factors") for one in range(5)]
    assert [(one.token_ids, one.logprobs) for one in engine.generate([*asked, *other])][:3] == alone
