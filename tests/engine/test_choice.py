"""Which form and runtime are taken where nobody says. Times are given here, so that nothing depends on the machine."""

import importlib.util
import logging
import re

import pytest
import torch
from tests.engine.adapters import llama
from transformers import LlamaConfig, LlamaForCausalLM, T5Config, T5ForConditionalGeneration

from manytune.engine.choice import Choice, choose
from manytune.engine.product_times import product_seconds
from manytune.engine.quantized import GROUP


def whole_groups():
    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=48, hidden_size=64, intermediate_size=96, num_hidden_layers=1, num_attention_heads=2
        )
    ).eval()


@torch.no_grad()
def with_four_bits(model):
    """A model as out of a file of Q4_1: in each group of 32, d · q + m with q from 0 to 15, d and m in float16."""
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear) and name != "lm_head":
            groups = module.weight.unflatten(1, (-1, GROUP))
            codes = torch.randint(0, 16, groups.shape)
            codes[..., 0], codes[..., 1] = 0, 15
            step, least = (torch.randn(2, *groups.shape[:2], 1) / 50).half().float()
            module.weight.copy_((step.abs() * codes + least).flatten(1))
    return model


def taking(**seconds):
    return lambda model, runtime, forms: {form: seconds[form] for form in forms}


def never(model, runtime, forms):
    raise AssertionError("nothing is to be measured")


@pytest.mark.parametrize(("seconds", "expected"), [(0.4, "int4"), (0.97, "reordered"), (3.0, "reordered")])
def test_a_base_whose_file_had_four_bits_gets_them_again_where_they_are_faster(seconds, expected, caplog):
    with caplog.at_level(logging.INFO):
        found = choose(
            with_four_bits(whole_groups()), runtime="torch", measure=taking(int4=seconds, reordered=1)
        )
    assert found == Choice(expected, "torch")
    (record,) = caplog.records
    assert f"runtime='torch' and weights='{expected}'" in record.getMessage()
    assert f"products take {seconds:.2f} of the time" in record.getMessage()


def test_without_a_measurement_the_weights_alone_decide():
    assert choose(with_four_bits(whole_groups()), runtime="torch", measure=None) == Choice("int4", "torch")


def test_other_bases_keep_their_own_precision_and_the_log_says_why(caplog):
    with caplog.at_level(logging.INFO):
        found = choose(whole_groups(), runtime="torch", measure=never)
    assert found == Choice("reordered", "torch")
    assert re.search(r"4 bits would change model\.layers\.0\.self_attn\.q_proj by \d+\.\d%", caplog.text)


def test_one_layer_that_never_had_four_bits_is_enough_to_keep_them_all(caplog):
    model = with_four_bits(whole_groups())
    torch.nn.init.normal_(model.model.layers[0].mlp.down_proj.weight, std=0.02)
    with caplog.at_level(logging.INFO):
        assert choose(model, runtime="torch", measure=never).weights == "reordered"
    assert "4 bits would change model.layers.0.mlp.down_proj" in caplog.text


def test_layers_without_whole_groups_keep_their_own_precision(caplog):
    with caplog.at_level(logging.INFO):
        assert choose(llama(), runtime="torch", measure=never).weights == "reordered"
    assert "mlp.down_proj don't divide into groups of 32" in caplog.text


def test_what_is_named_is_taken_without_a_look_at_the_model(caplog):
    with caplog.at_level(logging.INFO):
        assert choose(None, "int8", "torch", measure=never) == Choice("int8", "torch")
    assert not caplog.records


def test_the_runtime_is_openvino_where_it_can_run_the_base_and_else_torch_with_the_reason(
    monkeypatch, caplog
):
    pytest.importorskip("openvino", reason="OpenVINO isn't installed; the extra `openvino` brings it")
    assert choose(whole_groups(), "plain") == Choice("plain", "openvino")
    t5 = T5ForConditionalGeneration(
        T5Config(vocab_size=48, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2)
    )
    with caplog.at_level(logging.INFO):
        caplog.clear()  # another test may have left the level so
        assert choose(t5, "plain").runtime == "torch"
        assert choose(whole_groups().double(), "plain").runtime == "torch"
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
        assert choose(whole_groups(), "plain").runtime == "torch"
    said = [record.getMessage() for record in caplog.records]
    assert "the model has an encoder" in said[0] and "the model is in torch.float64" in said[1]
    assert re.search(r"OpenVINO isn't installed; pip install .*\[openvino\]' brings it", said[2])


@pytest.mark.parametrize(
    ("runtime", "multiplies", "expected"),
    [("openvino", True, "bf16"), ("openvino", False, "reordered"), ("torch", True, "reordered")],
)
def test_a_base_in_bfloat16_is_multiplied_in_it_where_the_processor_can(
    monkeypatch, caplog, runtime, multiplies, expected
):
    monkeypatch.setattr("manytune.engine.choice.multiplies_bfloat16", lambda: multiplies)
    with caplog.at_level(logging.INFO):
        found = choose(whole_groups().bfloat16(), runtime=runtime, measure=never)
    assert found == Choice(expected, runtime)
    assert "its weights keep their own precision" in caplog.text


def copies(model, weights, runtime):
    """By hand: numbers of all linear layers, times bytes of one."""
    numbers = sum(one.weight.numel() for one in model.modules() if isinstance(one, torch.nn.Linear))
    return (
        numbers
        * {("reordered", "openvino"): 8, ("bf16", "openvino"): 4, ("reordered", "torch"): 4}[weights, runtime]
    )


@pytest.mark.parametrize("runtime", ["openvino", "torch"])
def test_copies_that_the_memory_has_no_room_for_are_not_made(monkeypatch, caplog, runtime):
    if runtime == "openvino":
        pytest.importorskip("openvino", reason="OpenVINO isn't installed; the extra `openvino` brings it")
    model = whole_groups()
    needed, smaller = copies(model, "reordered", runtime), "reordered" if runtime == "openvino" else "plain"
    found = {}
    for free in (2 * needed, 2 * needed - 1):
        monkeypatch.setattr("manytune.engine.choice.free_memory", lambda free=free: free)
        with caplog.at_level(logging.INFO):
            caplog.clear()
            found[free] = choose(model, runtime="auto" if runtime == "openvino" else runtime, measure=never)
    assert list(found.values()) == [Choice("reordered", runtime), Choice(smaller, "torch")]
    assert re.search(
        r"copies of the weights would take \d MiB with weights='reordered', and \d MiB are free", caplog.text
    )


def test_with_hardly_any_memory_a_base_runs_as_it_is(monkeypatch, caplog):
    monkeypatch.setattr("manytune.engine.choice.free_memory", lambda: 1000)
    assert choose(whole_groups(), measure=never) == Choice("plain", "torch")
    assert choose(with_four_bits(whole_groups()), measure=None) == Choice("plain", "torch")
    assert choose(whole_groups(), "reordered", measure=never) == Choice(
        "reordered", "torch"
    )  # as it was asked for
    assert choose(whole_groups(), runtime="openvino", measure=never) == Choice("reordered", "openvino")
    assert choose(whole_groups(), measure=never, by_memory=False).weights == "reordered"


@pytest.mark.parametrize("runtime", ["torch", "openvino"])
def test_products_are_timed_in_each_form(runtime):
    if runtime == "openvino":
        pytest.importorskip("openvino", reason="OpenVINO isn't installed; the extra `openvino` brings it")
    forms = ("plain", "reordered", "int8", "int4")
    found = product_seconds(whole_groups(), runtime, forms)
    assert tuple(found) == forms and all(0 < seconds < 60 for seconds in found.values())
