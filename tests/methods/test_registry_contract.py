"""What every method promises, for every method of the registry on every family of models.

A new method is picked up from the registry. It is tried with the example in `EXAMPLES`, or with its defaults. In
`make test` a method keeps each promise on one family, and some promise on every family; in `make test-deep` all on all.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.engine.adapters import in_memory
from tests.methods.tiny_models import BERT, FAMILIES, GPT2, LLAMA, T5, Family
from tests.random_cases import DEEP
from tests.reference import terms as twin
from torch import Tensor, nn

import manytune
from manytune.errors import ManytuneError
from manytune.methods.registry import methods, peft_config_from, terms_of
from manytune.methods.tuners.terms import Terms, TermsError


@dataclass(frozen=True)
class Example:
    """How a method is tried.

    Attributes:
        options: Options, the same for every family.
        by_family: Options of one family.
        families: Where the method is defined.
        neutral: Whether it promises not to change the output at first.
        merges: Whether it can be written into the weights.
        learning_rate: Of the steps that lower the loss.
        steps: How many of them.
    """

    options: dict[str, Any] = field(default_factory=dict)
    by_family: dict[str, dict[str, Any]] = field(default_factory=dict)
    families: tuple[Family, ...] = FAMILIES
    neutral: bool = True
    merges: bool = False
    learning_rate: float = 1e-2
    steps: int = 12


#: A method that isn't here is tried with its defaults on every family, as one that doesn't merge.
EXAMPLES: dict[str, Example] = {
    "lora": Example({"r": 4, "target_modules": "all-linear"}, merges=True),
    "adalora": Example(
        {"target_r": 2, "init_r": 4, "total_step": 30, "target_modules": "all-linear"}, merges=True
    ),
    "vera": Example({"r": 16, "target_modules": "all-linear"}, merges=True, learning_rate=5e-2),
    "ia3": Example(merges=True, learning_rate=5e-2, steps=30),
    "full": Example(learning_rate=3e-3),
    "selective": Example(
        {"parameters": ["layernorm"]},
        {"bert": {"parameters": "bias"}, "gpt2": {"parameters": "bias"}},
        steps=30,
    ),
    "bottleneck": Example({"bottleneck_size": 8}),
    "trainable-tokens": Example({"token_indices": list(range(3, 30))}, merges=True, learning_rate=5e-2),
    "prompt-tuning": Example({"num_virtual_tokens": 4}, neutral=False, learning_rate=0.3),
    "p-tuning": Example({"num_virtual_tokens": 4}, neutral=False),
    "prefix-tuning": Example({"num_virtual_tokens": 4}, neutral=False, learning_rate=5e-2),
    "combined": Example(
        {
            "weights": {"name": "lora", "r": 4, "target_modules": "all-linear"},
            "prompt": {"name": "prefix-tuning", "num_virtual_tokens": 4},
        },
        neutral=False,
    ),
}

#: Options that change what a method does, tried like methods of their own.
VARIANTS: dict[str, Example] = {
    f"lora/{name}": Example({"r": 4, "target_modules": "all-linear", **options}, merges=True)
    for name, options in {
        "dora": {"use_dora": True},
        "rslora": {"use_rslora": True},
        "tokens": {"trainable_token_indices": [5, 9, 3]},
        "orthogonal": {"init_lora_weights": "orthogonal"},
        "pissa": {"init_lora_weights": "pissa"},
        "olora": {"init_lora_weights": "olora"},
        "dora-pissa": {"use_dora": True, "init_lora_weights": "pissa"},
    }.items()
} | {
    f"bottleneck/{style}": Example({"style": style, "bottleneck_size": 8, "scaling": 1.5})
    for style in ("pfeiffer", "parallel")
}

#: Adapters that have no terms, with what the message says: those that take over a part of the base's weight have none
#: in a file, and a classifier trained in full goes together with no nonlinearity.
_NONE_IN_A_FILE = {
    f"lora/{init}-{family}": "path_initial_model_for_weight_conversion, which makes it a plain LoRA adapter"
    for init in ("pissa", "olora", "dora-pissa")
    for family in FAMILIES
}
_NONE = {
    f"{bottleneck}-bert": "updates with a nonlinearity and others without one"
    for bottleneck in ("bottleneck", "bottleneck/pfeiffer", "bottleneck/parallel")
}


@dataclass(frozen=True)
class Case:
    method: str
    family: Family
    variant: str = ""

    @property
    def example(self) -> Example:
        return VARIANTS.get(self.variant) or EXAMPLES.get(self.method, Example())

    def base(self, dtype: torch.dtype = torch.float32) -> nn.Module:
        return self.family.build().to(dtype).eval()

    def config(self) -> manytune.PeftConfig:
        options = {**self.example.options, **self.example.by_family.get(self.family.name, {})}
        return peft_config_from(self.method, task_type=self.family.task_type, **options)

    def attach(self, base: nn.Module, name: str = "default") -> manytune.PeftModel:
        torch.manual_seed(1)
        return manytune.get_peft_model(base, self.config(), name)

    def logits(self, model: nn.Module) -> Tensor:
        with torch.no_grad():
            result: Tensor = model(**self.family.inputs()).logits
        return result

    def __str__(self) -> str:
        return f"{self.variant or self.method}-{self.family}"


def cases() -> Iterator[Case]:
    for method in methods():
        for family in EXAMPLES.get(method, Example()).families:
            yield Case(method, family)
    for variant, example in VARIANTS.items():
        for family in example.families:
            yield Case(variant.partition("/")[0], family, variant)


def each_case(promise: int, of: Callable[[Case], bool] = lambda case: True) -> pytest.MarkDecorator:
    """Each method and variant on one family, another one for each promise by its number; in `make test-deep` on all."""
    names = {name: place for place, name in enumerate(dict.fromkeys(_name(case) for case in cases()))}

    def is_chosen(case: Case) -> bool:
        families = case.example.families
        return case.family is families[(names[_name(case)] + promise) % len(families)]

    own = [case for case in cases() if of(case) and (DEEP or str(case) in _NONE or is_chosen(case))]
    return pytest.mark.parametrize("case", own, ids=str)


def _name(case: Case) -> str:
    return case.variant or case.method


def is_neutral(case: Case) -> bool:
    return case.example.neutral


def merges(case: Case) -> bool:
    return case.example.merges


def disturb(model: manytune.PeftModel) -> None:
    """Move every parameter that trains away from where it starts."""
    generator = torch.Generator().manual_seed(7)
    for parameter in model.parameters():
        if parameter.requires_grad:
            noise = torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
            parameter.data.add_(0.1 * noise.to(parameter.device))


def adapted_by(model: manytune.PeftModel) -> set[str]:
    """The parameters that a method declares, as they are called in memory."""
    tuner = model.tuner
    names = {f"{tuner.file_prefix}{tuner.memory_name('default', key)}" for key in tuner.state("default")}
    # What computes a soft prompt isn't in its file.
    return names | {
        name for name, _ in model.named_parameters() if name.startswith("prompt_encoder.default.")
    }


@each_case(0, is_neutral)
def test_the_output_is_the_bases_at_first(case: Case) -> None:
    before = case.logits(case.base())
    torch.testing.assert_close(case.logits(case.attach(case.base())), before, rtol=1e-5, atol=1e-5)


@each_case(1)
def test_only_declared_parameters_get_gradients(case: Case) -> None:
    model = case.attach(case.base()).train()
    disturb(model)
    model(**case.family.inputs()).loss.backward()
    declared = adapted_by(model)
    training = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert training and training <= declared
    for name, parameter in model.named_parameters():
        assert (parameter.grad is not None) <= (name in training), name
    moved = [n for n, p in model.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0]
    assert moved


@each_case(10)
def test_some_steps_lower_the_loss(case: Case) -> None:
    model = case.attach(case.base()).train()
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=case.example.learning_rate, weight_decay=0.0)
    losses = []
    for _ in range(case.example.steps + 1):
        loss = model(**case.family.inputs()).loss
        losses.append(float(loss.detach()))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert losses[-1] < 0.99 * losses[0]


@each_case(2)
def test_attaching_and_detaching_leaves_no_trace(case: Case) -> None:
    base = case.base()
    names = [(name, type(module)) for name, module in base.named_modules()]
    trainable = {name: parameter.requires_grad for name, parameter in base.named_parameters()}
    attributes = {name: set(module.__dict__) for name, module in base.named_modules()}
    before = {name: tensor.clone() for name, tensor in base.state_dict().items()}
    expected = case.logits(base)
    model = case.attach(base)
    disturb(model)
    again = model.tuner.unload()
    assert again is base
    assert [(name, type(module)) for name, module in base.named_modules()] == names
    assert {name: parameter.requires_grad for name, parameter in base.named_parameters()} == trainable
    assert {name: set(module.__dict__) for name, module in base.named_modules()} == attributes
    after = base.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], before[name]) for name in before)
    assert torch.equal(case.logits(base), expected)
    hooks = (m._forward_hooks or m._forward_pre_hooks or m._backward_hooks for m in base.modules())
    assert not any(hooks)


@each_case(3)
def test_a_saved_adapter_gives_equal_logits_when_loaded(case: Case, tmp_path: Path) -> None:
    model = case.attach(case.base())
    disturb(model)
    expected = case.logits(model)
    model.save_pretrained(tmp_path)
    loaded = manytune.PeftModel.from_pretrained(case.base(), tmp_path)
    assert torch.equal(case.logits(loaded), expected)
    assert not any(parameter.requires_grad for parameter in loaded.parameters())


@each_case(4)
def test_a_disabled_adapter_gives_exactly_the_base(case: Case) -> None:
    expected = case.logits(case.base())
    model = case.attach(case.base())
    disturb(model)
    adapted = case.logits(model)
    with model.disable_adapter():
        assert torch.equal(case.logits(model), expected)
        assert not any(parameter.requires_grad for parameter in model.parameters())
    assert torch.equal(case.logits(model), adapted)
    assert any(parameter.requires_grad for parameter in model.parameters())


@each_case(5)
def test_two_adapters_beside_each_other_keep_their_own_outputs(case: Case) -> None:
    model = case.attach(case.base())
    disturb(model)
    first = case.logits(model)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", manytune.PeftWarning)
        model.add_adapter("second", case.config())
    assert torch.equal(case.logits(model), first)
    model.set_adapter("second")
    disturb(model)
    disturb(model)
    assert not torch.equal(case.logits(model), first)
    model.set_adapter("default")
    assert torch.equal(case.logits(model), first)
    model.delete_adapter("second")
    assert torch.equal(case.logits(model), first)
    assert not [name for name, _ in model.named_parameters() if ".second" in name]


@each_case(6, merges)
def test_merged_equals_unmerged_and_unmerges_to_the_same_bits(case: Case) -> None:
    base = case.base(torch.float64)
    before = {name: tensor.clone() for name, tensor in base.state_dict().items()}
    plain = case.logits(base)
    model = case.attach(base)
    disturb(model)
    unmerged = case.logits(model)
    for _ in range(3):
        model.merge_adapter()
        torch.testing.assert_close(case.logits(model), unmerged, rtol=1e-10, atol=1e-10)
        with model.disable_adapter():
            assert torch.equal(case.logits(model), plain)
        model.unmerge_adapter()
        assert torch.equal(case.logits(model), unmerged)
    model.unload()
    assert all(torch.equal(base.state_dict()[name], tensor) for name, tensor in before.items())


@each_case(7, merges)
def test_merged_for_good_is_a_plain_model_with_the_same_output(case: Case) -> None:
    base = case.base(torch.float64)
    kinds = [type(module) for module in base.modules()]
    model = case.attach(base)
    disturb(model)
    expected = case.logits(model)
    plain = model.merge_and_unload()
    assert [type(module) for module in plain.modules()] == kinds
    torch.testing.assert_close(case.logits(plain), expected, rtol=1e-10, atol=1e-10)


# A combination merges the part that is in the layers.
_UNMERGEABLE = [c for c in cases() if not c.example.merges and c.family is LLAMA and c.method != "combined"]


@pytest.mark.parametrize("case", _UNMERGEABLE, ids=str)
def test_a_method_that_does_not_merge_says_so(case: Case) -> None:
    model = case.attach(case.base())
    with pytest.raises((ManytuneError, AttributeError), match="merge"):
        model.merge_adapter()


@each_case(8)
def test_a_copy_of_the_model_gives_the_same_output(case: Case) -> None:
    model = case.attach(case.base())
    disturb(model)
    assert torch.equal(case.logits(copy.deepcopy(model)), case.logits(model))


@each_case(9)
def test_an_attached_adapters_terms_say_what_it_computes(case: Case) -> None:
    model = case.attach(case.base(torch.float64))
    disturb(model)
    if str(case) in _NONE:
        with pytest.raises(TermsError, match=_NONE[str(case)]):
            model.tuner.live_terms("default")
        return
    assert_computed_by(model.tuner.live_terms("default"), case, model)


@pytest.mark.parametrize("case", list(cases()), ids=str)  # what is served
def test_a_saved_adapters_terms_say_what_it_computes(case: Case) -> None:
    model = case.attach(case.base(torch.float64))
    disturb(model)
    adapter = in_memory(model)
    refusal = {**_NONE, **_NONE_IN_A_FILE}.get(str(case))
    if refusal is not None:
        with pytest.raises(TermsError, match=refusal):
            terms_of(adapter, case.base(torch.float64))
        return
    assert_computed_by(terms_of(adapter, case.base(torch.float64)), case, model)


def assert_computed_by(terms: Terms, case: Case, model: nn.Module) -> None:
    """The base with an adapter's terms, written out, gives what the model with the adapter attached does."""
    base = case.base(torch.float64)
    # Norms of these families compute in float32.
    bound = 1e-7 if case.family in (LLAMA, T5) else 1e-9
    expected, found = case.logits(model), twin.logits(base, terms, case.family.inputs())
    torch.testing.assert_close(found, expected, rtol=bound, atol=bound)
    plain = case.logits(base)
    assert plain.shape != found.shape or (plain - found).abs().max() > 1e-3


def test_every_family_is_tried() -> None:
    assert {case.family for case in cases()} >= {LLAMA, GPT2, T5, BERT}


def require_contract(case: Case, directory: Path) -> None:
    """What holds for each method, wherever it is defined."""
    test_the_output_is_the_bases_at_first(case)
    test_only_declared_parameters_get_gradients(case)
    test_some_steps_lower_the_loss(case)
    test_attaching_and_detaching_leaves_no_trace(case)
    test_a_saved_adapter_gives_equal_logits_when_loaded(case, directory)
    test_a_disabled_adapter_gives_exactly_the_base(case)
    test_two_adapters_beside_each_other_keep_their_own_outputs(case)
