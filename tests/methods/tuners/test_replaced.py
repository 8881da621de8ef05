"""Terms of the base's own parameters with other values: biases, norms, whole layers; and what has none."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from tests.engine.adapters import InMemory, in_memory
from tests.methods.tiny_models import BERT, GPT2, LLAMA, OPT, T5, Family, logits_of, move
from tests.reference import terms as twin
from torch import Tensor, nn
from transformers.models.gemma3.modeling_gemma3 import Gemma3RMSNorm, Gemma3TextScaledWordEmbedding
from transformers.models.llama.modeling_llama import LlamaRMSNorm
from transformers.models.t5.modeling_t5 import T5LayerNorm
from transformers.pytorch_utils import Conv1D

from manytune import BottleneckConfig, IA3Config, LoraConfig, PromptTuningConfig, get_peft_model
from manytune.methods.config import PeftConfig
from manytune.methods.full.model import FullConfig
from manytune.methods.registry import terms_of
from manytune.methods.selective import SelectiveConfig
from manytune.methods.tuners.base_layers import BaseLayers
from manytune.methods.tuners.replaced import replaced_terms
from manytune.methods.tuners.terms import Terms, TermsError


class Net(nn.Module):
    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.layer(x)
        return found


def terms_with(layer: nn.Module, values: dict[str, Tensor]) -> Terms:
    named = {f"layer.{name}": value for name, value in values.items()}
    return replaced_terms(BaseLayers(Net(layer)), named, in_place=True)


def computed(layer: nn.Module, terms: Terms, x: Tensor) -> Tensor:
    net = Net(layer)
    with twin.in_layers(net, terms), torch.no_grad():
        return net(x)


def with_values(layer: nn.Module, values: dict[str, Tensor]) -> nn.Module:
    trained = copy.deepcopy(layer)
    for name, value in values.items():
        trained.get_parameter(name).data = value
    return trained


def drawn(*shape: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return 0.5 + torch.rand(shape, generator=generator, dtype=torch.float64)


def with_drawn(layer: nn.Module) -> nn.Module:
    layer = layer.double()
    for seed, parameter in enumerate(layer.parameters()):
        parameter.data = drawn(*parameter.shape, seed=seed)
    return layer


NORMS = [
    *(nn.LayerNorm(6), nn.LayerNorm(6, bias=False), nn.RMSNorm(6)),
    *(LlamaRMSNorm(6), T5LayerNorm(6), Gemma3RMSNorm(6)),
]


@pytest.mark.parametrize("norm", NORMS, ids=lambda norm: type(norm).__name__)
@pytest.mark.parametrize("which", ["weight", "bias", "both"])
def test_a_norm_is_a_factor_and_a_shift_on_what_the_bases_gives(norm: nn.Module, which: str) -> None:
    base = with_drawn(copy.deepcopy(norm))
    names = [name for name, _ in base.named_parameters() if which in (name, "both")]
    if not names:
        names = ["weight"]
    values = {name: drawn(6, seed=9 + len(name)) for name in names}
    terms = terms_with(base, values)
    assert not terms.updates
    x = torch.randn(4, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    expected = with_values(base, values)(x)
    torch.testing.assert_close(computed(base, terms, x), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("norm", [LlamaRMSNorm(6), Gemma3RMSNorm(6)], ids=lambda norm: type(norm).__name__)
def test_what_a_norm_multiplies_by_is_known_however_little_its_weight_has_moved(norm: nn.Module) -> None:
    base = with_drawn(copy.deepcopy(norm))
    weight = base.get_parameter("weight").detach()
    moved = weight + 1e-7
    gain = terms_with(base, {"weight": moved}).factors["layer"].outputs
    assert gain is not None
    offset = 1.0 if isinstance(norm, Gemma3RMSNorm) else 0.0
    torch.testing.assert_close(gain, (moved + offset) / (weight + offset), rtol=1e-13, atol=0)


def test_a_norm_that_multiplies_by_zero_is_refused_unless_the_adapters_does_too() -> None:
    base = with_drawn(nn.LayerNorm(6))
    base.weight.data[2] = 0.0
    with pytest.raises(TermsError, match=r"layer\.weight: the base's norm multiplies 1 features by zero"):
        terms_with(base, {"weight": drawn(6, seed=9)})
    values = {"weight": drawn(6, seed=9), "bias": drawn(6, seed=8)}
    values["weight"][2] = 0.0
    x = torch.randn(4, 6, dtype=torch.float64)
    torch.testing.assert_close(computed(base, terms_with(base, values), x), with_values(base, values)(x))


@pytest.mark.parametrize("layer", [nn.Linear(6, 4), Conv1D(4, 6), nn.Linear(6, 4, bias=False)], ids=str)
@pytest.mark.parametrize("which", ["weight", "bias", "both"])
def test_a_linear_layer_is_replaced_and_a_bias_added(layer: nn.Module, which: str) -> None:
    base = with_drawn(copy.deepcopy(layer))
    names = [name for name, _ in base.named_parameters() if which in (name, "both")] or ["weight"]
    values = {name: drawn(*base.get_parameter(name).shape, seed=9) for name in names}
    terms = terms_with(base, values)
    assert set(terms.updates) == ({"layer"} if "weight" in names else set())
    x = torch.randn(2, 3, 6, dtype=torch.float64)
    torch.testing.assert_close(computed(base, terms, x), with_values(base, values)(x))
    if "weight" in names:
        assert terms.updates["layer"].up.data_ptr() == values["weight"].data_ptr()


@pytest.mark.parametrize(
    "layer",
    [
        nn.Embedding(9, 4),
        nn.Embedding(9, 4, padding_idx=8),
        Gemma3TextScaledWordEmbedding(9, 4, padding_idx=0, embed_scale=3.0),
    ],
    ids=lambda layer: f"{type(layer).__name__} {layer.padding_idx}",
)
def test_an_embedding_table_is_looked_up_in_the_bases_place(layer: nn.Module) -> None:
    base = with_drawn(copy.deepcopy(layer))
    values = {"weight": drawn(9, 4, seed=9)}
    ids = torch.tensor([[0, 8, 3], [1, 1, 2]])
    terms = terms_with(base, values)
    assert terms.updates["layer"].lookup
    torch.testing.assert_close(computed(base, terms, ids), with_values(base, values)(ids))


class Doubled(nn.Module):
    """Multiplies by the square of its weight, which isn't how a norm does."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(6))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.weight.square()


@pytest.mark.parametrize(
    ("layer", "name"),
    [
        (nn.Conv1d(6, 6, 1), "weight"),
        (nn.Conv1d(6, 6, 1), "bias"),
        (nn.GroupNorm(2, 6), "weight"),
        (nn.BatchNorm1d(3), "weight"),
        (Doubled(), "weight"),
        (nn.ParameterList([torch.ones(2)]), "0"),
        (nn.Embedding(9, 4, max_norm=1.0), "weight"),
        (nn.MultiheadAttention(6, 2), "in_proj_weight"),
        (nn.MultiheadAttention(6, 2), "out_proj.weight"),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_other_parameters_are_refused_by_name_and_left_as_they_were(layer: nn.Module, name: str) -> None:
    before = {key: tensor.clone() for key, tensor in layer.state_dict().items()}
    parameter = layer.get_parameter(name)
    with pytest.raises(TermsError, match=rf"layer\.{name}: the adapter has a trained value for it"):
        terms_with(layer, {name: parameter.detach() + 1})
    assert all(torch.equal(layer.state_dict()[key], tensor) for key, tensor in before.items())


def test_positions_that_are_counted_from_the_mask_are_refused() -> None:
    model = get_peft_model(OPT.build(), FullConfig(task_type="CAUSAL_LM"))
    with pytest.raises(TermsError, match=r"decoder\.embed_positions\.weight.*OPTLearnedPositionalEmbedding"):
        model.tuner.live_terms("default")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"weight": torch.zeros(4, 5)}, r"layer: weight has shape \(4, 5\), expected \(4, 6\)"),
        ({"scale": torch.zeros(4)}, r"a value for 'layer\.scale', and Linear has no such parameter"),
        ({"inner.weight": torch.zeros(4)}, r"weights for 'layer\.inner', and Net has no such layer"),
    ],
)
def test_values_that_do_not_fit_are_refused(values: dict[str, Tensor], message: str) -> None:
    with pytest.raises(TermsError, match=message):
        terms_with(nn.Linear(6, 4), values)


# -- methods


def trained(family: Family, config: PeftConfig) -> Any:
    model = get_peft_model(family.build().double().eval(), config)
    move(model)
    return model


EVERYTHING = [
    (BERT, SelectiveConfig(parameters="bias", task_type="SEQ_CLS")),
    (GPT2, SelectiveConfig(parameters=["bias", "layernorm", "wte.weight"], task_type="CAUSAL_LM")),
    (GPT2, FullConfig(task_type="CAUSAL_LM")),
    (T5, FullConfig(task_type="SEQ_2_SEQ_LM")),
    (BERT, LoraConfig(r=2, target_modules=["query"], modules_to_save=["classifier", "pooler"])),
    (LLAMA, LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=["lm_head", "embed_tokens", "norm"])),
    (BERT, IA3Config(task_type="SEQ_CLS")),
    (BERT, PromptTuningConfig(num_virtual_tokens=3, task_type="SEQ_CLS")),
]


@pytest.mark.parametrize(("family", "config"), EVERYTHING, ids=lambda v: getattr(v, "peft_type", str(v)))
def test_modules_and_parameters_trained_in_full_have_terms(family: Family, config: PeftConfig) -> None:
    model = trained(family, copy.deepcopy(config))
    expected, base = logits_of(model, family), family.build().double().eval()
    for terms in (model.tuner.live_terms("default"), terms_of(in_memory(model), base)):
        found = twin.logits(family.build().double().eval(), terms, family.inputs())
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)


def test_a_tied_table_is_replaced_at_both_of_its_places_by_full_fine_tuning_alone() -> None:
    full = trained(GPT2, FullConfig(task_type="CAUSAL_LM")).tuner.live_terms("default")
    assert full.updates["transformer.wte"].lookup and not full.updates["lm_head"].lookup
    copied = trained(GPT2, LoraConfig(r=2, target_modules=["c_attn"], modules_to_save=["wte"]))
    assert "lm_head" not in copied.tuner.live_terms("default").updates


def test_an_adapter_that_is_not_in_use_has_its_own_terms_against_the_same_base() -> None:
    model = trained(GPT2, SelectiveConfig(parameters="bias", task_type="CAUSAL_LM"))
    expected = logits_of(model, GPT2)
    model.add_adapter("second", SelectiveConfig(parameters=["layernorm"], task_type="CAUSAL_LM"))
    model.set_adapter("second")
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data.add_(0.3)
    terms = model.tuner.live_terms("default")
    found = twin.logits(GPT2.build().double().eval(), terms, GPT2.inputs())
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


def test_without_the_bases_weights_there_is_nothing_that_terms_could_refer_to() -> None:
    model = trained(GPT2, FullConfig(keep_base=False, task_type="CAUSAL_LM"))
    with pytest.raises(TermsError, match=r"trained with keep_base=False, so the base's weights .* are gone"):
        model.tuner.live_terms("default")
    saved = terms_of(in_memory(model), GPT2.build().double())
    expected = logits_of(model, GPT2)
    found = twin.logits(GPT2.build().double().eval(), saved, GPT2.inputs())
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


def test_a_classifier_beside_a_nonlinearity_is_refused() -> None:
    model = trained(BERT, BottleneckConfig(bottleneck_size=4, task_type="SEQ_CLS"))
    with pytest.raises(TermsError, match="updates with a nonlinearity and others without one"):
        model.tuner.live_terms("default")


def test_a_tensor_that_no_option_asks_for_is_refused() -> None:
    adapter = in_memory(trained(LLAMA, LoraConfig(r=2, target_modules=["q_proj"])))
    extra = {**adapter.tensors, "base_model.model.model.norm.weight": torch.ones(32)}
    with pytest.raises(TermsError, match=r"its file holds 'model\.norm\.weight'.*modules_to_save=\[\]"):
        terms_of(InMemory("x", adapter.config, extra), LLAMA.build())
