"""Hidden states in float32 over a base in half precision: what adapters add is neither rounded away nor changed."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from types import MethodType
from typing import Any

import peft
import pytest
import torch
from tests.methods import tiny_models, tiny_moe
from tests.methods.test_registry_contract import Case, disturb, each_case
from torch import Tensor, nn
from torch.nn import functional

import manytune
from manytune import float32_activations
from manytune.layer_forwards import replaced_forwards

pytestmark = pytest.mark.filterwarnings(
    "ignore:`is_gradient_checkpointing` is deprecated:FutureWarning",
    "ignore:target_modules='all-linear' leaves:manytune.PeftWarning",
)

HALF = torch.bfloat16
SMALL = 1e-6  # of an update, compared with outputs of about 1: half a unit in bfloat16's last place is 2e-3


def lora(base: nn.Module, **options: Any) -> manytune.PeftModel:
    torch.manual_seed(1)
    usual = {"r": 4, "target_modules": "all-linear", "task_type": "CAUSAL_LM"}
    return manytune.get_peft_model(base, manytune.LoraConfig(**{**usual, **options}))


def one_layer(kind: Callable[[], nn.Module]) -> tuple[manytune.PeftModel, Any, Tensor]:
    """A layer in bfloat16 with a young adapter, and an input."""
    torch.manual_seed(0)
    base = nn.Sequential(kind()).to(HALF)
    model = manytune.get_peft_model(base, manytune.LoraConfig(r=4, target_modules=["0"]))
    layer: Any = base[0]
    for name, parameter in layer.named_parameters():
        if parameter.requires_grad:
            nn.init.normal_(parameter, std=SMALL if "lora_B" in name or "embedding_A" in name else 1.0)
    return model, layer, torch.randn(5, 8)


LAYERS: dict[str, Callable[[], nn.Module]] = {
    "linear": lambda: nn.Linear(8, 8),
    "linear without bias": lambda: nn.Linear(8, 8, bias=False),
    "transposed": lambda: tiny_models.GPT2.build().transformer.h[0].attn.c_proj,  # type: ignore[operator,union-attr]
    "embedding": lambda: nn.Embedding(8, 8),
    "convolution": lambda: nn.Conv1d(8, 8, 1),
}


@pytest.mark.parametrize("dropout", [0.0, 0.5])
@pytest.mark.parametrize("kind", LAYERS)
def test_a_layers_output_holds_all_of_a_young_adapters_update(kind: str, dropout: float) -> None:
    if dropout and kind != "linear":
        return
    model, layer, x = one_layer(LAYERS[kind])
    if kind == "transposed":
        x = torch.randn(5, layer.in_features)
    if kind == "embedding":
        x = torch.arange(5)
    if kind == "convolution":
        x = x.t()[None]
    if dropout:
        layer.lora_dropout["default"] = nn.Dropout(dropout)
        model.train()
    with float32_activations(model), torch.no_grad():
        torch.manual_seed(2)
        found = layer(x)
        base = layer.base_layer(x)
        # In float64, from the formula: s · B A D(x).
        torch.manual_seed(2)
        dropped = functional.dropout(x, dropout) if dropout else x
        delta = layer.get_delta_weight("default").double()
    expected = {
        "transposed": lambda: dropped.double() @ delta,
        "embedding": lambda: delta[x],
        "convolution": lambda: functional.conv1d(x.double(), delta),
    }.get(kind, lambda: dropped.double() @ delta.t())()
    assert found.dtype == base.dtype == torch.float32
    assert expected.abs().max() < 1e-4
    # What float32 resolves next to numbers of about 1.
    torch.testing.assert_close(found.double() - base.double(), expected, rtol=0, atol=5e-7)
    with torch.no_grad():
        half = x if x.dtype == torch.int64 else x.to(HALF)
        kept = (layer(half) != layer.base_layer(half)).float().mean()
        assert kept < 0.1, "outside, HF PEFT's way rounds it away"


def test_gradients_of_a_layer_are_float32_and_those_of_float32_arithmetic() -> None:
    model, layer, x = one_layer(lambda: nn.Linear(8, 8))
    wide = copy.deepcopy(layer).to(torch.float32)
    x = x.to(HALF).float()  # so that products with W differ by the rounding of their results alone
    with float32_activations(model):
        (layer(x.requires_grad_()) ** 2).sum().backward()
    other = x.detach().clone().requires_grad_()
    (wide(other) ** 2).sum().backward()
    for name, parameter in layer.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None and parameter.grad.dtype == torch.float32
            expected = wide.get_parameter(name).grad
            assert (parameter.grad - expected).norm() <= 5e-3 * expected.norm(), name
    assert x.grad is not None and other.grad is not None
    assert (x.grad - other.grad).norm() <= 5e-3 * other.grad.norm()


def test_fused_and_separate_operations_agree() -> None:
    model, layer, x = one_layer(lambda: nn.Linear(8, 8))
    with float32_activations(model):
        fused = layer(x)
        handle = layer.base_layer.register_forward_hook(lambda *call: None)
        apart = layer(x)
        handle.remove()
    torch.testing.assert_close(fused, apart, rtol=1e-6, atol=1e-6)


@each_case(11)
def test_every_method_computes_what_it_computes_in_float32(case: Case) -> None:
    """A base whose weights are bfloat16 numbers: but for the products' rounding it is the same model."""
    warnings.simplefilter("ignore", manytune.PeftWarning)
    rounded = case.base(HALF)
    expected_model = case.attach(copy.deepcopy(rounded).to(torch.float32))
    model = case.attach(rounded)
    model.tuner.hold_float32()
    disturb(expected_model)
    disturb(model)
    expected = expected_model(**case.family.inputs())
    expected.loss.backward()
    before = {name: parameter.dtype for name, parameter in model.named_parameters()}
    with float32_activations(model, bfloat16_products=True):
        found = model(**case.family.inputs())
        found.loss.backward()
    assert found.logits.dtype == torch.float32
    scale = expected.logits.abs().max()
    assert (found.logits - expected.logits).abs().max() <= 0.05 * scale
    grads = {name: p.grad for name, p in expected_model.named_parameters() if p.grad is not None}
    trained = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    assert grads and grads.keys() == trained.keys()
    assert {grad.dtype for grad in trained.values()} == {torch.float32}
    one, other = (torch.cat([grad.flatten() for grad in found.values()]) for found in (grads, trained))
    assert functional.cosine_similarity(one, other, dim=0) > 0.99
    assert {name: parameter.dtype for name, parameter in model.named_parameters()} == before


@pytest.mark.parametrize(
    "family", [tiny_models.LLAMA, tiny_models.GPT2, tiny_models.T5, tiny_models.OPT], ids=str
)
def test_hidden_states_are_float32_between_all_layers(family: tiny_models.Family) -> None:
    model = family.build().to(HALF).eval()
    inputs = family.inputs()
    with float32_activations(model), torch.no_grad():
        found = model(**inputs, output_hidden_states=True)
    states = found.get("hidden_states") or (*found.encoder_hidden_states, *found.decoder_hidden_states)
    assert len(states) > 2 and {state.dtype for state in states} == {torch.float32}


@pytest.mark.parametrize("mixture", tiny_moe.MIXTURES, ids=str)
def test_experts_and_routers_take_part(mixture: tiny_moe.Mixture) -> None:
    rounded = mixture.build().to(HALF).eval()
    wide = lora(copy.deepcopy(rounded).to(torch.float32))
    model = lora(rounded)
    disturb(wide)
    disturb(model)
    with float32_activations(model), torch.no_grad():
        found = tiny_moe.logits(model)
    assert found.dtype == torch.float32
    # A router's choice may differ where two experts are as good, so most tokens decide, not the worst.
    errors = (found - tiny_moe.logits(wide)).norm(dim=-1) / tiny_moe.logits(wide).norm(dim=-1)
    assert errors.median() < 0.03


def test_experts_outputs_hold_all_of_a_young_adapters_update() -> None:
    model = lora(tiny_moe.QWEN3.build().to(HALF).eval())
    wrapper = next(m for n, m in model.named_modules() if n.endswith("experts") and hasattr(m, "lora_A"))
    for name, parameter in wrapper.named_parameters():
        if parameter.requires_grad:
            nn.init.normal_(parameter, std=SMALL if "lora_B" in name else 1.0)
    size = model.config.hidden_size
    torch.manual_seed(0)
    tokens = (torch.randn(3, size), torch.tensor([[0, 1]] * 3), torch.full((3, 2), 0.5))
    with float32_activations(model), torch.no_grad():
        young = wrapper(*tokens)
        with model.disable_adapter():
            base = wrapper(*tokens)
    assert 0 < (young - base).abs().max() < 1e-3
    assert ((young - base) != 0).float().mean() > 0.9


def test_afterwards_everything_is_as_it_was() -> None:
    model = lora(tiny_models.GPT2.build().to(HALF).eval())
    inputs = tiny_models.GPT2.inputs()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    forwards = {module: module.__dict__.get("forward") for module in model.modules()}
    with torch.no_grad():
        expected = model(**inputs).logits
        with pytest.raises(RuntimeError, match="stop"), float32_activations(model):
            model(**inputs)
            raise RuntimeError("stop")
        assert torch.equal(model(**inputs).logits, expected)
    after = model.state_dict()
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        assert after[name].dtype == tensor.dtype and torch.equal(after[name], tensor), name
    assert {module: module.__dict__.get("forward") for module in model.modules()} == forwards


def test_blocks_may_be_nested_and_others_forwards_are_kept() -> None:
    model = lora(tiny_models.LLAMA.build().to(HALF).eval())
    layer = next(m for n, m in model.named_modules() if n.endswith("q_proj.base_layer"))
    seen = []

    def watched(self: nn.Linear, x: Tensor) -> Tensor:
        seen.append(x.dtype)
        return nn.Linear.forward(self, x)

    inputs = tiny_models.LLAMA.inputs()
    with torch.no_grad(), float32_activations(model):
        expected = model(**inputs).logits
        with float32_activations(model):
            torch.testing.assert_close(model(**inputs).logits, expected)
        assert torch.equal(model(**inputs).logits, expected)
    with (
        torch.no_grad(),
        replaced_forwards({layer: MethodType(watched, layer)}),
        float32_activations(model),
    ):
        torch.testing.assert_close(model(**inputs).logits, expected)
    assert seen == [HALF]


def test_a_model_in_float32_isnt_touched() -> None:
    model = lora(tiny_models.LLAMA.build().eval())
    with float32_activations(model):
        assert not any("forward" in module.__dict__ for module in model.modules())


def test_a_module_trained_in_full_isnt_rounded_on_its_way_out() -> None:
    model = lora(tiny_models.LLAMA.build().to(HALF).eval(), modules_to_save=["lm_head"])
    head: Any = model.get_submodule("base_model.model.lm_head")
    x = torch.randn(3, model.config.hidden_size)
    with torch.no_grad(), float32_activations(model):
        found = head(x)
        assert found.dtype == torch.float32
        assert torch.equal(found, functional.linear(x, head.modules_to_save["default"].weight))
        with model.disable_adapter():
            original = head(x)
        rounded = functional.linear(x.to(HALF), head.original_module.weight)
        assert torch.equal(original, rounded.float())


@pytest.mark.parametrize("method", ["lora", "ia3"])
def test_outside_the_block_losses_are_hf_pefts(method: str) -> None:
    """The library's default, for code that is to give HF PEFT's numbers."""
    name = {"lora": "LoraConfig", "ia3": "IA3Config"}[method]
    options: dict[str, Any] = {
        "lora": {"r": 4, "target_modules": ["q_proj", "v_proj", "down_proj"]},
        "ia3": {"target_modules": ["k_proj", "down_proj"], "feedforward_modules": ["down_proj"]},
    }[method]
    inputs = tiny_models.LLAMA.inputs()

    def losses(library: Any) -> list[float]:
        torch.manual_seed(1)
        base = tiny_models.LLAMA.build().to(HALF)
        torch.manual_seed(1)
        model = library.get_peft_model(base, getattr(library, name)(task_type="CAUSAL_LM", **options))
        optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
        found = []
        for _ in range(5):
            loss = model(**inputs).loss
            found.append(loss.item())
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        return found

    # Bits differ where operations are fused; float32 hidden states give losses that differ in the fourth digit.
    assert losses(manytune) == pytest.approx(losses(peft), rel=1e-4)
