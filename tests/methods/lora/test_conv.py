"""LoRA next to convolutions and torch's attention, against HF PEFT's."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import peft
import pytest
import torch
from tests.methods.oracle import assert_same, pair
from torch import Tensor, nn

from manytune import AdapterError, ConfigError, LoraConfig, PeftWarning, get_peft_model


class ConvNet(nn.Module):
    """Convolutions in one to three dimensions, one of them in groups."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.c3 = nn.Conv3d(2, 4, 2, stride=(1, 2, 1))
        self.c2 = nn.Conv2d(8, 6, (3, 2), padding=1, bias=False)
        self.grouped = nn.Conv2d(6, 8, 3, groups=2, padding=1)
        self.c1 = nn.Conv1d(8, 5, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.tanh(self.c3(x)).flatten(1, 2)  # (batch, 4 · 2, 2, 3)
        y = torch.tanh(self.grouped(torch.tanh(self.c2(y))))
        result: Tensor = self.c1(y.flatten(2))
        return result


def volume(model: nn.Module) -> Tensor:
    x = torch.randn(3, 2, 3, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    result: Tensor = model(x)
    return result


PLAIN = ["c3", "c2", "c1"]


@pytest.mark.parametrize(
    "options", [{}, {"use_rslora": True}, {"use_dora": True}, {"init_lora_weights": "gaussian"}]
)
def test_convolutions_agree_with_peft(options: dict[str, object]) -> None:
    options = {"r": 4, "lora_alpha": 6, "target_modules": PLAIN, **options}
    mine, oracle = pair(ConvNet, LoraConfig(**options), peft.LoraConfig(**options))  # type: ignore[arg-type]
    assert_same(mine, oracle, volume)


@pytest.mark.parametrize("init", [True, "gaussian", False])
def test_convolutions_start_from_the_same_draws_as_in_peft(init: bool | str) -> None:
    options = {"r": 4, "target_modules": PLAIN, "init_lora_weights": init}
    torch.manual_seed(9)
    mine = get_peft_model(ConvNet(), LoraConfig(**options))  # type: ignore[arg-type]
    torch.manual_seed(9)
    oracle = peft.get_peft_model(ConvNet(), peft.LoraConfig(**options))
    theirs = dict(oracle.named_parameters())
    for name, parameter in mine.named_parameters():
        assert torch.equal(parameter, theirs[name]), name


def test_a_grouped_convolution_agrees_with_peft() -> None:
    options = {"r": 4, "target_modules": ["grouped"]}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        mine, oracle = pair(ConvNet, LoraConfig(**options), peft.LoraConfig(**options))  # type: ignore[arg-type]
    assert_same(mine, oracle, volume)


def test_a_grouped_convolution_says_at_once_that_it_cannot_be_merged() -> None:
    with pytest.warns(PeftWarning, match="groups > 1. Merging is not supported"):
        model = get_peft_model(ConvNet(), LoraConfig(r=4, target_modules=["c2", "grouped"]))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(AdapterError, match=r"Can't merge 'default' into a Conv2d with groups=2"):
        model.merge_adapter()
    assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in before.items())


def test_a_rank_that_the_groups_do_not_divide_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"groups=2 and rank 3\. The rank must be divisible"):
        get_peft_model(ConvNet(), LoraConfig(r=3, target_modules=["grouped"]))


GROUPED: dict[str, tuple[type[nn.Module], tuple[int, ...]]] = {
    "two dimensions": (nn.Conv2d, (3, 2)),
    "one dimension": (nn.Conv1d, (3,)),
    "three dimensions": (nn.Conv3d, (2, 1, 2)),
}


@pytest.mark.parametrize("kind", GROUPED)
@pytest.mark.parametrize("groups", [2, 4])
@pytest.mark.filterwarnings("ignore:LoRA adapter added to a")
def test_dora_at_a_grouped_convolution_is_dora_at_the_same_one_without_groups(kind: str, groups: int) -> None:
    """A convolution with groups is one without, whose weight is zero from group to group."""
    factory, kernel = GROUPED[kind]
    torch.manual_seed(2)
    base: nn.Module = factory(4, 8, kernel, groups=groups).double()  # type: ignore[call-arg]
    with pytest.warns(PeftWarning, match="HF PEFT 0.21 divides by the norm of other numbers there"):
        model = get_peft_model(
            nn.Sequential(base), LoraConfig(r=4, lora_alpha=6, target_modules=["0"], use_dora=True)
        )
    layer = model.base_model.model[0]
    x = torch.randn(3, 4, *(5 for _ in kernel), dtype=torch.float64)
    torch.testing.assert_close(model(x), base(x), rtol=1e-12, atol=1e-12)
    for parameter in layer.tensors("default").values():
        parameter.data = torch.randn_like(parameter) + 2
    a, b, m = (
        layer.tensors("default")[key] for key in ("lora_A.weight", "lora_B.weight", "lora_magnitude_vector")
    )
    whole = torch.zeros(8, 4, *kernel, dtype=torch.float64)
    for out in range(8):
        group = out * groups // 8
        whole[out, group * 4 // groups : (group + 1) * 4 // groups] += base.get_parameter("weight")[out]
        for direction in range(4 // groups):
            whole[out] += 1.5 * b[out, direction].squeeze() * a[group * 4 // groups + direction]
    norm = whole.flatten(1).norm(dim=1).view(-1, *(1 for _ in range(whole.dim() - 1)))
    plain: nn.Module = factory(4, 8, kernel).double()  # type: ignore[call-arg]
    plain.load_state_dict({"weight": m.view_as(norm) * whole / norm, "bias": base.get_parameter("bias")})
    torch.testing.assert_close(model(x), plain(x), rtol=1e-10, atol=1e-10)
    model(x).square().sum().backward()
    assert all(parameter.grad.abs().min() > 0 for parameter in (a, b, m))


def test_dora_at_a_grouped_convolution_starts_as_in_peft() -> None:
    options = {"r": 4, "target_modules": ["grouped"], "use_dora": True}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        mine, oracle = pair(ConvNet, LoraConfig(**options), peft.LoraConfig(**options), fill=False)  # type: ignore[arg-type]
    magnitude = "base_model.model.grouped.lora_magnitude_vector.default.weight"
    torch.testing.assert_close(
        mine.get_parameter(magnitude), oracle.get_parameter(magnitude), rtol=1e-12, atol=0
    )
    torch.testing.assert_close(volume(mine), volume(oracle), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("init", ["pissa", "olora", "orthogonal"])
def test_starts_that_are_for_linear_layers_are_refused_at_convolutions(init: str) -> None:
    with pytest.raises(ConfigError, match=f"init_lora_weights='{init}'.*found a target that is a Conv3d"):
        get_peft_model(ConvNet(), LoraConfig(r=4, target_modules=PLAIN, init_lora_weights=init))


@pytest.mark.parametrize("dora", [False, True])
@pytest.mark.parametrize(
    "layer",
    [
        lambda: nn.Conv1d(4, 6, 3, dilation=2, padding=2, padding_mode="circular"),
        lambda: nn.Conv2d(4, 6, 3, stride=2, padding="valid"),
        lambda: nn.Conv2d(4, 6, (1, 3), padding="same", padding_mode="reflect", dilation=(1, 2)),
        lambda: nn.Conv3d(4, 6, 2, bias=False),
    ],
)
def test_merging_is_exact_whatever_the_stride_padding_and_dilation(
    layer: Callable[[], nn.Module], dora: bool
) -> None:
    net = nn.Sequential(layer()).double()
    dims = net[0].weight.dim() - 2  # type: ignore[union-attr,operator]
    x = torch.randn(2, 4, *(7,) * dims, dtype=torch.float64)
    plain, before = net(x), net[0].weight.detach().clone()  # type: ignore[union-attr,operator]
    model = get_peft_model(net, LoraConfig(r=3, target_modules=["0"], use_dora=dora))
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += 0.3 * torch.rand_like(parameter)
    unmerged = model(x)
    assert not torch.allclose(unmerged, plain)
    model.merge_adapter()
    torch.testing.assert_close(model(x), unmerged, rtol=1e-10, atol=1e-10)
    assert torch.equal(model.unload()[0].weight, before)  # type: ignore[index]


class Attending(nn.Module):
    """torch's attention alone, and within a transformer layer, which has a fast path of its own in inference."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.mha = nn.MultiheadAttention(8, 2, batch_first=True)
        self.encoder = nn.TransformerEncoder(
            nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True), 2, enable_nested_tensor=False
        )

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.encoder(self.mha(x, x, x, need_weights=False)[0])
        return result


def sequence(model: nn.Module) -> Tensor:
    x = torch.randn(3, 5, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    result: Tensor = model(x)
    return result


def attention(**options: object) -> LoraConfig:
    return LoraConfig(r=4, target_modules=["mha", "self_attn"], **options)  # type: ignore[arg-type]


def test_attention_agrees_with_peft_but_for_its_double_output_update() -> None:
    # HF PEFT 0.21.2 adds the output projection's update twice (its pull request 3774), so its B is halved here.
    config = {"r": 4, "target_modules": ["mha"]}
    mine, oracle = pair(Attending, LoraConfig(**config), peft.LoraConfig(**config))  # type: ignore[arg-type]
    halved = oracle.base_model.model.mha.base_layer.out_proj.lora_B["default"]
    halved.weight.data /= 2
    for model in (mine, oracle):
        sequence(model).square().sum().backward()
    torch.testing.assert_close(sequence(mine), sequence(oracle), rtol=1e-9, atol=1e-10)
    expected = {name: p.grad for name, p in oracle.named_parameters() if p.requires_grad}
    for name, parameter in mine.named_parameters():
        if parameter.requires_grad and "out_proj" not in name:
            torch.testing.assert_close(parameter.grad, expected[name], rtol=1e-8, atol=1e-9)


def test_attention_is_attention_with_the_updated_weights() -> None:
    model = get_peft_model(Attending().double(), attention(init_lora_weights=False, lora_alpha=12))
    layer = model.base_model.model.mha
    twin = Attending().double().mha
    output = layer.base_layer.out_proj
    pairs = [(twin.in_proj_weight, layer), (twin.out_proj.weight, output)]
    for weight, adapted in pairs:
        weight.data += 3.0 * adapted.lora_B["default"].weight @ adapted.lora_A["default"].weight
    x = torch.randn(2, 5, 8, dtype=torch.float64)
    torch.testing.assert_close(layer(x, x, x)[0], twin(x, x, x)[0], rtol=1e-12, atol=1e-12)


def test_inference_through_torchs_fast_path_has_the_adapter_in_it() -> None:
    model = get_peft_model(Attending().double(), attention(init_lora_weights=False))
    trained = sequence(model.train()).detach()
    with torch.no_grad():
        torch.testing.assert_close(sequence(model.eval()), trained, rtol=1e-10, atol=1e-10)
        with model.disable_adapter():
            torch.testing.assert_close(sequence(model), sequence(Attending().double().eval()))


def test_attention_merges_exactly_and_detaches_without_a_trace() -> None:
    net = Attending().double().eval()
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    kinds = [type(module) for module in net.modules()]
    model = get_peft_model(net, attention(init_lora_weights=False))
    model.add_adapter("b", attention(init_lora_weights=False))
    model.base_model.set_adapter(["default", "b"])
    unmerged = sequence(model)
    model.merge_adapter()
    torch.testing.assert_close(sequence(model), unmerged, rtol=1e-10, atol=1e-10)
    model.unmerge_adapter()
    assert torch.equal(sequence(model), unmerged)
    model.delete_adapter("b")
    assert not [name for name, _ in model.named_parameters() if ".b." in name]
    model.unload()
    assert net.state_dict().keys() == before.keys()
    assert [type(module) for module in net.modules()] == kinds
    assert all(torch.equal(net.state_dict()[name], tensor) for name, tensor in before.items())


def test_the_output_projection_alone_is_refused_since_attention_never_calls_it() -> None:
    with pytest.raises(ConfigError, match=r"mha\.out_proj: torch\.nn\.MultiheadAttention never calls it"):
        get_peft_model(Attending(), LoraConfig(target_modules=["mha.out_proj"]))


def test_all_linear_leaves_attentions_output_projections_out() -> None:
    config = LoraConfig(target_modules="all-linear")
    with pytest.warns(
        PeftWarning, match=r"leaves 3 weights frozen .*mha\.in_proj_weight, self_attn\.in_proj_weight\."
    ):
        get_peft_model(Attending(), config)
    assert config.target_modules == {"linear1", "linear2"}


@pytest.mark.parametrize("option", [{"lora_dropout": 0.1}, {"lora_bias": True}, {"use_dora": True}])
def test_options_that_attention_cannot_carry_are_refused(option: dict[str, object]) -> None:
    with pytest.raises(
        ConfigError, match=f"{next(iter(option))}=.*not supported for torch.nn.MultiheadAttention"
    ):
        get_peft_model(Attending(), attention(**option))


def test_attention_with_keys_of_another_size_is_refused() -> None:
    net = nn.Sequential(nn.MultiheadAttention(8, 2, kdim=4))
    with pytest.raises(ConfigError, match="needs kdim and vdim to be the embed_dim 8, found 4 and 8"):
        get_peft_model(net, LoraConfig(target_modules=["0"]))
