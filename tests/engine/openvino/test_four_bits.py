"""The operations in C++ that multiply with weights of 4 bits give what the formula gives, each row as it is alone."""

import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.engine.adapters import attached, configs_for, in_memory, llama
from tests.kernels.machine import needs_compiler
from tests.random_cases import cases
from tests.reference import four_bits as slow

pytest.importorskip("openvino", reason="OpenVINO isn't installed; the extra `openvino` brings it")

from manytune.engine.engine import Engine
from manytune.engine.openvino import four_bits, program
from manytune.engine.openvino.compression import multiply
from manytune.engine.openvino.four_bits import FourBits, applied, has_four_bits, rounded
from manytune.engine.openvino.gates import put_gates
from manytune.engine.openvino.library import core, ops, ov
from manytune.engine.openvino.program import settings
from manytune.engine.options import EngineOptions
from manytune.engine.request import Request, SamplingParams

has_vnni = torch.cpu._is_vnni_supported() and torch.cpu._is_avx512_supported()
needs_vnni = pytest.mark.skipif(not has_vnni, reason="the operations are for processors with avx512_vnni")
pytestmark = [needs_compiler, needs_vnni]


@pytest.fixture(scope="module")
def operations():
    """A machine that should have them and hasn't fails."""
    found = four_bits.four_bits()
    assert found is not None
    return found


def drawn(seed, *shape, size=1.0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * size


def numbers(weight):
    return [one.numpy() for one in rounded(weight)]


def run(outputs, x):
    """What a graph with one input makes of x."""
    [given] = {one for out in outputs for one in parameters(out.get_node())}
    request = core().compile_model(ov.Model(outputs, [given]), "CPU", settings(4)).create_infer_request()
    request.set_input_tensor(0, ov.Tensor(x.numpy(), shared_memory=True))
    request.start_async()
    request.wait()
    return [torch.from_numpy(request.get_output_tensor(place).data.copy()) for place in range(len(outputs))]


def parameters(node):
    if node.get_type_name() == "Parameter":
        return [node]
    return [one for source in node.input_values() for one in parameters(source.get_node())]


def given(inputs):
    return ops.parameter([-1, -1, inputs], ov.Type.f32)


# -- products


@pytest.mark.parametrize("seed", range(cases(12)))
def test_it_computes_the_formula_to_the_last_bit(operations, seed):
    rows = [1, 2, 3, 5, 7, 8, 9, 17, 40][seed % 9]
    inputs, outputs = [32, 64, 576, 1536][seed % 4], [16, 41, 96][seed % 3]
    x, weight = drawn(seed, rows, inputs, size=3), drawn(seed + 1, outputs, inputs, size=0.1)
    x[rows // 2, :32] = 0  # a group without a scale
    found = applied(operations, x, weight)[0]
    np.testing.assert_array_equal(found.numpy(), slow.product(x.numpy(), *numbers(weight)))


@pytest.mark.parametrize("rows", [1, 8, 40])
def test_it_is_what_openvino_makes_of_a_byte_a_weight(operations, rows):
    # As long as OpenVINO sums in one piece, which it does with up to 1024 inputs.
    x, weight = drawn(1, 1, rows, 576), drawn(2, 96, 576, size=0.05)
    codes, step, offset = rounded(weight)
    assert offset.max() <= 0 and offset.min() >= -255
    x_given = given(576)
    parts = [17 * codes.view(96, -1, 32), -offset[..., None].to(torch.uint8)]
    whole = ops.subtract(*(ops.convert(ops.constant(one.to(torch.uint8).numpy()), "f32") for one in parts))
    scale = step.float()[..., None] * torch.tensor(1 / 17)
    shape = ops.constant(np.array([96, 576], dtype=np.int64))
    theirs = ops.matmul(
        x_given, ops.reshape(ops.multiply(whole, ops.constant(scale.numpy())), shape, False), False, True
    )
    ours = operations.product(x_given.output(0), weight)
    found = run([theirs.output(0), ours.output(0)], x)
    assert torch.equal(*found)


def test_a_row_is_the_same_among_any_others(operations):
    x, weight = drawn(3, 41, 576), drawn(4, 96, 576)
    alone = [torch.cat([applied(operations, one[None], weight)[place] for one in x]) for place in range(3)]
    for rows in (2, 3, 4, 5, 6, 7, 8, 9, 16, 41):
        for together, one in zip(applied(operations, x[:rows], weight), alone, strict=True):
            assert torch.equal(together, one[:rows])


def test_weights_of_a_file_of_four_bits_stay_as_they_are():
    codes = torch.randint(0, 16, (40, 3, 32), generator=torch.Generator().manual_seed(5))
    codes[..., 0], codes[..., 1] = 0, 15
    step, low = drawn(6, 40, 3, 1).abs().add(0.01).half(), drawn(7, 40, 3, 1).half()
    found, h, z = rounded((codes * step.float() + low.float()).flatten(1))
    assert torch.equal(found.view_as(codes), codes.to(torch.uint8)) and torch.equal(h, step[..., 0])
    assert ((z / 17 * h.float() - low[..., 0].float()).abs() <= h.float() / 33.9).all()


@pytest.mark.parametrize(
    ("low", "high"),
    [(0.0, 0.0), (0.5, 0.5), (-0.5, -0.5), (0.5, 0.501), (0.2, 0.4), (-3.0, -1.0), (-1e-6, 1e-6)],
)
def test_groups_of_any_values_are_rounded_well(low, high):
    weight = torch.cat((torch.linspace(low, high, 32), torch.linspace(-1, 1, 32)))[None]
    codes, step, offset = rounded(weight)
    found = step.float()[..., None] / 17 * (17.0 * codes.view(1, 2, 32) + offset[..., None])
    most = max((high - low) / 15, max(abs(low), abs(high)) / 240) * 0.55 + 2**-22
    assert float((found[0, 0] - weight[0, :32]).abs().max()) <= most


@pytest.mark.parametrize(
    ("weight", "has"),
    [(drawn(8, 16, 64), True), (drawn(8, 16, 48), False), (drawn(8, 16, 64, size=1e-5), False)]
    + [(torch.full((16, 64), value), False) for value in (0.0, torch.nan, torch.inf, 1e6)],
)
def test_what_half_precision_cant_scale_takes_a_byte_a_weight(operations, weight, has):
    assert has_four_bits(weight) == has
    if weight.shape[1] == 64:
        node = multiply(given(64).output(0), weight, 4, operations)
        assert (node.get_type_name() == four_bits.PRODUCT) == has


def test_inputs_of_another_size_are_an_error(operations):
    weight = drawn(9, 16, 64)
    x = ops.parameter([-1, -1], ov.Type.f32)
    with pytest.raises(RuntimeError, match="another size than the inputs"):
        run([operations.product(x.output(0), weight).output(0)], drawn(10, 2, 96))


# -- gates


def test_gates_are_the_formula_and_the_same_in_every_way(operations):
    x, weight = drawn(11, 9, 64, size=4), drawn(12, 96, 64)
    product, joined, apart = applied(operations, x, weight)
    expected = slow.gate(product[:, :48].numpy(), product[:, 48:].numpy())
    assert torch.equal(joined, apart)
    np.testing.assert_allclose(joined.numpy(), expected, rtol=1e-6, atol=1e-30)


def test_gates_of_extreme_values(operations):
    a = torch.tensor([[-1000.0, -100.0, -88.0, -1e-20, 0.0, 1e-20, 88.0, 1000.0, torch.nan, 1.0]])
    x = torch.cat((a, torch.ones_like(a)), 1)[None]
    [found] = run([operations.gate([given(20).output(0)]).output(0)], x)
    np.testing.assert_allclose(found[0].numpy(), torch.nn.functional.silu(a).numpy(), rtol=1e-6, atol=1e-30)


def gate_graph(operations, between=None, reads_twice=False):
    x = given(64)
    product = operations.product(x.output(0), drawn(13, 96, 64))
    sizes = ops.constant(np.array([48, 48], dtype=np.int64))
    a, b = ops.variadic_split(product, ops.constant(np.int64(-1)), sizes).outputs()
    a = a if between is None else ops.multiply(a, ops.constant(np.float32(between))).output(0)
    gates = ops.multiply(b, ops.swish(a))
    results = [gates.output(0), *([b] if reads_twice else [])]
    return ov.Model([ops.relu(one) for one in results], [x])


@pytest.mark.parametrize(
    ("between", "reads_twice", "kinds"),
    [
        (None, False, [four_bits.PRODUCT]),
        (None, True, ["ManytuneGate", four_bits.PRODUCT, "VariadicSplit"]),
        (1.0, False, ["ManytuneGate", "Multiply", four_bits.PRODUCT, "VariadicSplit"]),
    ],
)
def test_a_gate_is_computed_with_its_product_where_nothing_is_between(
    operations, between, reads_twice, kinds
):
    x = drawn(14, 1, 5, 64)
    graph, plain = (gate_graph(operations, between, reads_twice) for _ in range(2))
    put_gates(graph, operations)
    rest = {"Parameter", "Constant", "Result", "Relu"}
    assert sorted({one.get_type_name() for one in graph.get_ordered_ops()} - rest) == sorted(kinds)
    ours, alone, theirs = (run([one.input_value(0) for one in it.get_results()][:1], x)[0]
                           for it in (graph, gates_alone(operations), plain))  # fmt: skip
    assert torch.equal(ours, alone)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


def gates_alone(operations):
    graph = gate_graph(operations)
    put_gates(graph, operations)
    return graph


# -- in an engine


def answers(engine, asked):
    return [(one.token_ids, one.logprobs) for one in engine.generate(asked)]


@pytest.mark.parametrize("name", ["lora all", "lora one layer", "ia3"])
def test_the_base_answers_the_same_next_to_adapters_on_gates(tokenizer, name):
    configs = configs_for(llama())
    engine = Engine(llama(), tokenizer, EngineOptions(runtime="openvino", weights="int4", speculation="off"))
    params = SamplingParams(12, logprobs=2, ignore_eos=True)
    asked = [Request(str(one), tuple(range(3 + one, 9 + one)), params) for one in range(3)]
    expected = [answers(engine, [one])[0] for one in asked]
    engine.add_adapter("other", in_memory(attached(llama(), configs[name], seed=1)))
    other = [Request(f"other {one}", (5, 6, 7, one), params, "other") for one in range(9)]
    assert answers(engine, [*asked, *other])[:3] == expected
    assert not any(one.obstacle for one in engine._runner._known.values())


def test_an_engine_without_the_operations_answers_alike(tokenizer, monkeypatch):
    params = SamplingParams(max_new_tokens=0, prompt_logprobs=0)
    asked = [Request("one", tuple(range(3, 40)), params)]
    found = []
    for operations in (four_bits.four_bits, lambda: None):
        monkeypatch.setattr(program, "four_bits", operations)
        engine = Engine(llama(), tokenizer, EngineOptions(runtime="openvino", weights="int4"))
        [answer] = engine.generate(asked)
        found.append(torch.tensor([one.logprob for one in answer.prompt_logprobs]))
    assert not torch.equal(*found)  # or both would be the same computation
    assert float((found[0] - found[1]).abs().max()) < 0.1


# -- where they can't be had


def unfound(caplog, *said):
    with caplog.at_level(logging.INFO):
        assert four_bits._factory.__wrapped__() is None
    for part in ("a weight takes a byte", *said):
        assert part in caplog.text


def test_other_processors_take_a_byte_a_weight(caplog, monkeypatch):
    monkeypatch.setattr(torch.cpu, "_is_vnni_supported", lambda: False)
    unfound(caplog, "no avx512_vnni")
    assert caplog.records[-1].levelno == logging.INFO


def test_they_can_be_switched_off(caplog, monkeypatch):
    monkeypatch.setenv("MANYTUNE_KERNELS", "torch")
    unfound(caplog, "MANYTUNE_KERNELS=torch")


def test_what_doesnt_compile_is_said(caplog, monkeypatch, tmp_path):
    (tmp_path / "wrong.cpp").write_text("#error no such thing")
    monkeypatch.setattr(four_bits, "_SOURCES", tmp_path)
    unfound(caplog, "no such thing")


def test_a_library_that_is_none_of_openvinos_is_said(caplog, monkeypatch, tmp_path):
    (tmp_path / "other.cpp").write_text("int other() { return 0; }")
    monkeypatch.setattr(four_bits, "_SOURCES", tmp_path)
    unfound(caplog)


def test_a_result_that_is_wrong_is_found(caplog, monkeypatch):
    class Doubled(FourBits):
        def product(self, x, weight):
            return super().product(x, 2 * weight)

    monkeypatch.setattr(four_bits, "FourBits", Doubled)
    unfound(caplog, "of the largest value away from torch's result")


def test_the_sources_are_in_the_package():
    sources = Path(four_bits.__file__).parent / "sources" / "four_bits"
    assert {one.name for one in sources.iterdir()} == {"added.h", "operations.cpp", "product.h"}
