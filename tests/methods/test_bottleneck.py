"""Bottleneck adapters against the papers' drawings, and where they are put."""

from __future__ import annotations

import pytest
import torch
from tests.methods.tiny_models import BERT, FAMILIES, GPT2, LLAMA, OPT, T5, Family
from tests.reference.bottleneck import bottleneck
from torch import Tensor, nn

from manytune import (
    AdapterError,
    BottleneckConfig,
    ConfigError,
    NoMatchingPeftModuleError,
    PeftModel,
    get_peft_model,
)
from manytune.methods.bottleneck.model import Layer, Source

ENDINGS = {
    LLAMA: ("self_attn.o_proj", "mlp.down_proj"),
    GPT2: ("attn.c_proj", "mlp.c_proj"),
    BERT: ("attention.output.dense", "output.dense"),
    OPT: ("self_attn.out_proj", "fc2"),
}


def attached(family: Family, **options: object) -> PeftModel:
    model = get_peft_model(family.build().eval(), BottleneckConfig(bottleneck_size=4, **options))  # type: ignore[arg-type]
    generator = torch.Generator().manual_seed(3)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = 0.3 * torch.randn(parameter.shape, generator=generator)
    return model


def places(model: PeftModel) -> list[str]:
    return [name for name, module in model.base_model.model.named_modules() if isinstance(module, Layer)]


@pytest.mark.parametrize("family", ENDINGS, ids=str)
def test_houlsby_is_behind_attention_and_mlp_of_every_layer(family: Family) -> None:
    found = places(attached(family))
    attention, mlp = ENDINGS[family]
    assert len(found) == 4
    assert all(name.endswith((attention, mlp)) for name in found)
    assert sum(name.endswith(attention) for name in found) == 2


@pytest.mark.parametrize("style", ["pfeiffer", "parallel"])
@pytest.mark.parametrize("family", ENDINGS, ids=str)
def test_pfeiffer_and_parallel_are_at_the_mlp_of_every_layer(family: Family, style: str) -> None:
    found = places(attached(family, style=style))
    assert len(found) == 2
    assert all(name.endswith(ENDINGS[family][1]) and "attention" not in name for name in found)


def test_an_encoder_decoder_has_them_behind_cross_attention_too() -> None:
    found = places(attached(T5))
    assert sum("EncDecAttention.o" in name for name in found) == 2
    assert len(found) == 2 * 2 + 2 * 3


class Block(nn.Module):
    """One MLP as it stands in a transformer layer."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last = nn.Linear(5, 7), nn.Linear(7, 5)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.last(torch.tanh(self.first(x)))
        return result


@pytest.mark.parametrize("style", ["pfeiffer", "parallel"])
def test_the_output_is_the_papers(style: str) -> None:
    x = torch.randn(6, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    y = Block().double()(x).detach()
    other = "first" if style == "parallel" else None
    config = BottleneckConfig(
        style=style, bottleneck_size=3, scaling=4.0, mlp_modules="last", mlp_input_modules=other
    )
    model = get_peft_model(Block().double(), config)
    layer = model.base_model.model.last
    down, up = layer.bottleneck_down["default"], layer.bottleneck_up["default"]
    for parameter in (down.bias, up.weight, up.bias):
        parameter.data.uniform_(-1, 1)
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    expected = bottleneck(
        y, x if style == "parallel" else y, (down.weight, down.bias), (up.weight, up.bias), 4.0
    )
    torch.testing.assert_close(model(x), expected, rtol=1e-12, atol=1e-12)


def test_two_adapters_in_use_add_up() -> None:
    x = torch.randn(6, 5, dtype=torch.float64)
    options = {"bottleneck_size": 3, "mlp_modules": "last"}
    parallel = BottleneckConfig(style="parallel", mlp_input_modules="first", **options)  # type: ignore[arg-type]
    model = get_peft_model(Block().double(), parallel)
    model.add_adapter("b", BottleneckConfig(style="pfeiffer", **options))  # type: ignore[arg-type]
    layer = model.base_model.model.last
    outputs = []
    for name in ("default", "b"):
        layer.bottleneck_up[name].weight.data.uniform_(-1, 1)
        model.set_adapter(name)
        outputs.append(model(x))
    model.base_model.set_adapter(["default", "b"])
    torch.testing.assert_close(
        model(x), outputs[0] + outputs[1] - Block().double()(x), rtol=1e-10, atol=1e-10
    )


def test_a_parallel_adapter_holds_no_activations_afterwards() -> None:
    model = attached(LLAMA, style="parallel")
    model(**LLAMA.inputs())
    sources = [module for module in model.modules() if isinstance(module, Source)]
    assert len(sources) == 2
    assert all(source.seen is None for source in sources)


@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing_enable:FutureWarning")
@pytest.mark.parametrize("reentrant", [False, True])
def test_a_parallel_adapter_has_the_same_gradients_with_checkpointing(reentrant: bool) -> None:
    gradients = []
    for checkpointing in (False, True):
        model = attached(LLAMA, style="parallel").train()
        if checkpointing:
            model.enable_input_require_grads()
            model.gradient_checkpointing_enable({"use_reentrant": reentrant})
        model(**LLAMA.inputs(), use_cache=False).loss.backward()
        gradients.append({n: p.grad for n, p in model.named_parameters() if p.requires_grad})
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient)


def test_layers_can_be_chosen() -> None:
    assert places(attached(LLAMA, style="pfeiffer", layers_to_transform=1)) == [
        "model.layers.1.mlp.down_proj"
    ]


def test_a_task_adds_its_head() -> None:
    model = attached(BERT, task_type="SEQ_CLS")
    assert {n for n, p in model.named_parameters() if p.requires_grad and "classifier" in n}


def test_merging_is_refused_and_changes_nothing() -> None:
    model = attached(LLAMA)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    for merge in (model.merge_adapter, model.merge_and_unload):
        with pytest.raises(AdapterError, match="nonlinearity"):
            merge()
    assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in before.items())


def test_an_unknown_architecture_asks_where_the_sublayers_are() -> None:
    with pytest.raises(ConfigError, match=r"model type None are\. Give attention_modules and mlp_modules"):
        get_peft_model(Block(), BottleneckConfig())


def test_a_place_that_is_no_linear_layer_is_refused() -> None:
    net = nn.Sequential(nn.ReLU())
    with pytest.raises(ConfigError, match=r"Target module 0 \(ReLU\) is not a linear layer"):
        get_peft_model(net, BottleneckConfig(style="pfeiffer", mlp_modules="0"))


def test_a_parallel_adapter_needs_as_many_inputs_as_outputs() -> None:
    with pytest.raises(NoMatchingPeftModuleError, match="names 1 modules and mlp_input_modules 2"):
        get_peft_model(
            Block(), BottleneckConfig(style="parallel", mlp_modules="last", mlp_input_modules="first|last")
        )


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"style": "serial"}, "style='serial'.*houlsby, pfeiffer, parallel"),
        ({"non_linearity": "step"}, "non_linearity='step'.*relu, gelu"),
        ({"bottleneck_size": 0}, "`bottleneck_size` is a positive integer, found 0"),
        ({"dropout": 1.0}, "`dropout` is a probability below 1, found 1.0"),
    ],
)
def test_an_unusable_option_is_named(option: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        BottleneckConfig(**option)  # type: ignore[arg-type]


def test_every_family_has_a_place() -> None:
    for family in FAMILIES:
        assert places(attached(family))
