"""Every method on a device that isn't the CPU gives what it gives on the CPU, from attaching to answering.

The device is `tests/reference/strict_device.py`: CPU memory that mixes with no CPU tensor. What `make test` runs of
the stories is in `chosen`; `make test-deep` runs all.
"""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.engine.adapters import attached, configs_for, gpt2, in_memory, llama
from tests.engine.conftest import tokenizer  # noqa: F401  (a fixture)
from tests.engine.encoder_decoder import bases
from tests.methods import tiny_models, tiny_moe
from tests.methods.test_registry_contract import Case, Example, cases, disturb
from tests.random_cases import covering, some
from tests.reference.strict_device import MixedDevicesError, in_own_process, strict_device
from torch import Tensor, nn

import manytune
from manytune.engine.engine import Engine
from manytune.engine.likelihood import completion_nll
from manytune.engine.request import Request, SamplingParams
from manytune.errors import ManytuneError
from manytune.methods.registry import terms_of
from manytune.methods.tuners.terms import TermsError
from manytune.store.resident import read_resident

CPU = torch.device("cpu")
#: What combines an adapter's tensors with the base's in other ways than the methods' examples do.
OPTIONS = {
    "lora/dora-biased": ("lora", {"r": 4, "use_dora": True, "target_modules": "all-linear"}),
    "lora/dora-embedding": ("lora", {"r": 4, "use_dora": True, "target_modules": ["wpe"]}),
    "lora/pissa-transposed": ("lora", {"r": 4, "init_lora_weights": "pissa", "target_modules": ["c_fc"]}),
    "lora/saved-embedding": ("lora", {"r": 4, "target_modules": ["c_fc"], "modules_to_save": ["wpe"]}),
    "lora/parameter": ("lora", {"r": 4, "target_modules": [], "target_parameters": ["c_fc.weight"]}),
    "lora/parameters-and-modules": (
        "lora",
        {"r": 4, "target_modules": ["c_attn"], "target_parameters": ["c_fc.weight", "wpe.weight"]},
    ),
    "vera/not-saved": ("vera", {"r": 8, "target_modules": "all-linear", "save_projection": False}),
    "selective/weights": ("selective", {"parameters": ["c_fc.weight"]}),
    "selective/layer": ("selective", {"parameters": ["h.0"]}),
}


@dataclass(frozen=True)
class Optioned(Case):
    """A case of `OPTIONS`."""

    @property
    def example(self) -> Example:
        return Example(OPTIONS[self.variant][1], merges=self.method != "selective")


#: Tied tables, biases and transposed weights; encoder-decoders; classifiers. Variants on plain linear layers.
CASES = [case for case in cases() if (case.family is tiny_models.LLAMA) == bool(case.variant)]
CASES += [Optioned(method, tiny_models.GPT2, variant) for variant, (method, _) in OPTIONS.items()]
# Every operation on the device takes many times its time.
CASES = [replace(case, family=tiny_models.ONE_LAYER[case.family.name]) for case in CASES]


def _mixture() -> nn.Module:
    model: Any = tiny_moe.QWEN3.build()
    # The other implementations choose between devices by name.
    model.set_experts_implementation("eager")
    return model  # type: ignore[no-any-return]


#: Grouped experts and their router.
EXPERTS = tiny_models.Family("qwen3_moe", _mixture, "CAUSAL_LM")
OPTIONS["lora/experts"] = (
    "lora",
    {"r": 4, "target_modules": "all-linear", "target_parameters": ["gate.weight"]},
)
CASES.append(Optioned("lora", EXPERTS, "lora/experts"))
#: What is told of cases, below.
STORIES = ("trains", "moves", "switches", "answers", "terms")


def chosen() -> list[tuple[Case, str]]:
    """Of methods, the stories in which any two of method, model and story meet; of options, training and one other."""
    plain = [case for case in CASES if not case.variant]
    found = covering(
        itertools.product(plain, STORIES), lambda cell: (cell[0].method, cell[0].family.name, cell[1])
    )
    for number, case in enumerate(case for case in CASES if case.variant):
        found += [(case, story) for story in some(STORIES, "trains", STORIES[1 + number % 4])]
    return found


CHOSEN = chosen()


def each_case_of(story: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("case", [case for case, of in CHOSEN if of == story], ids=str)


#: Calls a function in the process that has the device.
Call = Callable[..., Any]

#: What happens to an adapter: makes the tensors to compare, by a name that says when each was made.
Story = Callable[["World"], Iterator[tuple[str, Tensor]]]


@dataclass(frozen=True)
class World:
    """A case on one device.

    Attributes:
        folder: For files.
    """

    case: Case
    device: torch.device
    folder: Path

    def base(self) -> nn.Module:
        return self.case.base().to(self.device)

    def attached(self) -> manytune.PeftModel:
        return self.case.attach(self.base())

    @property
    def inputs(self) -> dict[str, Any]:
        return {name: tensor.to(self.device) for name, tensor in self.case.family.inputs().items()}

    def logits(self, model: nn.Module, **options: Any) -> Tensor:
        with torch.no_grad():
            result: Tensor = model(**self.inputs, **options).logits
        assert result.device == self.device
        return result

    def train(self, model: manytune.PeftModel, steps: int = 2) -> None:
        model.train()
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        # A gradient that is only rounding moves nothing far, as it would with the usual eps.
        optimizer = torch.optim.AdamW(trained, lr=self.case.example.learning_rate, eps=1e-4, foreach=True)
        for _ in range(steps):
            model(**self.inputs).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        model.eval()


def assert_same(story: Story, case: Case, folder: Path) -> None:
    """A story has the same tensors on both devices."""
    warnings.simplefilter("ignore", manytune.PeftWarning)
    expected = list(story(World(case, CPU, folder / "cpu")))
    with strict_device() as device:
        found = [(when, one.cpu()) for when, one in story(World(case, device, folder / "device"))]
    assert [when for when, _ in found] == [when for when, _ in expected]
    for (when, one), (_, other) in zip(found, expected, strict=True):
        torch.testing.assert_close(
            one, other, rtol=1e-4, atol=1e-5, msg=lambda said, when=when: f"{when}: {said}"
        )


@pytest.fixture(scope="module")
def call() -> Iterator[Call]:
    with in_own_process() as found:
        yield found


def trains_and_is_saved(world: World) -> Iterator[tuple[str, Tensor]]:
    model = world.attached()
    yield "attached", world.logits(model)
    assert {parameter.device for parameter in model.parameters()} == {world.device}
    world.train(model)
    yield "trained", world.logits(model)
    disturb(model)
    yield "disturbed", world.logits(model)
    model.save_pretrained(world.folder)
    loaded = manytune.PeftModel.from_pretrained(world.base(), world.folder)
    assert {parameter.device for parameter in loaded.parameters()} == {world.device}
    yield "loaded", world.logits(loaded)
    again = manytune.PeftModel.from_pretrained(world.base(), world.folder, is_trainable=True)
    world.train(again)
    yield "loaded and trained", world.logits(again)


@each_case_of("trains")
def test_it_trains_and_is_saved_and_loaded(case: Case, tmp_path: Path, call: Call) -> None:
    call(assert_same, trains_and_is_saved, case, tmp_path)


def moves(world: World) -> Iterator[tuple[str, Tensor]]:
    model = world.case.attach(world.case.base())
    disturb(model)
    model.to(world.device)
    yield "moved with its base", world.logits(model)
    model.add_adapter("second", world.case.config())
    model.set_adapter("second")
    yield "another added", world.logits(model)
    model.to("cpu")
    yield "moved back", world.case.logits(model)


@each_case_of("moves")
def test_it_moves_with_its_base(case: Case, tmp_path: Path, call: Call) -> None:
    call(assert_same, moves, case, tmp_path)


def switches(world: World) -> Iterator[tuple[str, Tensor]]:
    model = world.attached()
    disturb(model)
    model.add_adapter("second", world.case.config())
    model.set_adapter("second")
    disturb(model)
    disturb(model)
    yield "second", world.logits(model)
    model.set_adapter("default")
    yield "first", world.logits(model)
    with model.using("second"):
        yield "using", world.logits(model)
    with model.disable_adapter():
        yield "disabled", world.logits(model)
    if world.case.example.merges:
        for name in ("second", "default", "second"):
            with model.using(name, merged=True):
                yield f"using {name} merged", world.logits(model)
        model.merge_adapter()
        yield "merged", world.logits(model)
        with model.disable_adapter():
            yield "merged and disabled", world.logits(model)
        model.unmerge_adapter()
        yield "unmerged", world.logits(model)
    model.delete_adapter("second")
    yield "deleted", world.logits(model)
    if world.case.example.merges:
        yield "merged for good", world.logits(model.merge_and_unload())
    else:
        yield "detached", world.logits(model.tuner.unload())


@each_case_of("switches")
def test_it_switches_and_merges(case: Case, tmp_path: Path, call: Call) -> None:
    call(assert_same, switches, case, tmp_path)


def answers(world: World) -> Iterator[tuple[str, Tensor]]:
    model = world.attached().eval()
    disturb(model)
    model.add_adapter("second", world.case.config())
    names = ["second", "__base__", "default"]
    try:
        yield "an adapter for each sample", world.logits(model, adapter_names=names)
    except MixedDevicesError:
        raise
    except (ManytuneError, ValueError, RuntimeError) as error:
        yield f"refused: {error}", torch.zeros(0)
    if world.case.family.task_type == "SEQ_CLS":
        return
    ids = world.inputs["input_ids"]
    options = {"max_new_tokens": 4, "do_sample": False, "pad_token_id": 0}
    yield "generated", model.generate(input_ids=ids, **options)
    pairs = [Pair((5, 6, 7), (8, 9)), Pair((4, 5), (6, 7, 8))]
    yield "scored", torch.tensor(completion_nll(model, pairs, batch_size=2))


@dataclass(frozen=True)
class Pair:
    prompt_ids: tuple[int, ...]
    completion_ids: tuple[int, ...]
    given: tuple[tuple[int, int], ...] = ()


@each_case_of("answers")
def test_it_answers(case: Case, tmp_path: Path, call: Call) -> None:
    call(assert_same, answers, case, tmp_path)


def states_its_terms(world: World) -> Iterator[tuple[str, Tensor]]:
    model = world.attached().eval()
    disturb(model)
    model.save_pretrained(world.folder)
    base = world.base()
    for when, state in {
        "attached": lambda: model.tuner.live_terms("default"),
        # Its tensors are mapped from the file on the CPU.
        "in a file": lambda: terms_of(read_resident(world.folder), base),
    }.items():
        try:
            found = state()
        except TermsError as error:
            yield f"{when}: {error}", torch.zeros(0)
            continue
        for name, tensor in every_tensor(found):
            assert tensor.device == (world.device if when == "attached" else CPU), (when, name)
            yield f"{when}: {name}", tensor


def every_tensor(terms: Any) -> Iterator[tuple[str, Tensor]]:
    """The tensors of terms, by their names there."""
    for name in ("embeddings", "prefix"):
        if getattr(terms, name) is not None:
            yield name, getattr(terms, name)
    for path, part in [*terms.updates.items(), *terms.factors.items()]:
        for name, value in vars(part).items():
            if isinstance(value, Tensor):
                yield f"{path}.{name}", value


@each_case_of("terms")
def test_its_terms_are_where_its_own_tensors_are(case: Case, tmp_path: Path, call: Call) -> None:
    call(assert_same, states_its_terms, case, tmp_path)


def answers_in_one_batch(build: Callable[[], Any], words: Any) -> None:
    has_encoder = build in (bases.t5, bases.bart)
    configs = bases.configs_for if has_encoder else configs_for
    names = list(configs(build()))
    adapters = {
        name: in_memory(attached(build(), configs(build())[name], seed=seed))
        for seed, name in enumerate(names)
    }

    def answered(device: torch.device) -> dict[str, list[int]]:
        engine = Engine(build().to(device), words)
        for name, adapter in adapters.items():
            engine.add_adapter(name, adapter)
        found: dict[str, list[int]] = {}
        for name in (None, *names):
            for ids in ((5, 9, 3, 7), (8, 2)):
                key = f"{name} {ids}"
                found[key] = []
                engine.submit(Request(key, ids, SamplingParams(max_new_tokens=6), name))
        while engine.busy:
            for output in engine.step():
                found[output.request_id].append(output.token_id)
        return found

    expected = answered(CPU)
    assert len({tuple(tokens) for tokens in expected.values()}) > (
        len(names) / 2 if has_encoder else len(names)
    )
    with strict_device() as device:
        assert answered(device) == expected


@pytest.mark.parametrize("build", [llama, gpt2, bases.t5, bases.bart])
def test_every_adapter_in_one_batch_answers_as_on_the_cpu(
    build: Callable[[], Any],
    tokenizer: Any,  # noqa: F811
    call: Call,
) -> None:
    call(answers_in_one_batch, build, tokenizer)


def computes_with_float32_activations() -> None:
    inputs = tiny_models.GPT2.inputs()

    def run(device: torch.device) -> dict[str, Tensor]:
        torch.manual_seed(1)
        config = manytune.LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM")
        model = manytune.get_peft_model(tiny_models.GPT2.build().to(torch.bfloat16).eval(), config)
        disturb(model)
        with manytune.float32_activations(model):
            model.to(device)  # as a trainer moves it
            found = model(**{name: tensor.to(device) for name, tensor in inputs.items()})
            found.loss.backward()
        results = {name: p.grad.cpu() for name, p in model.named_parameters() if p.grad is not None}
        norm = model.get_parameter("base_model.model.transformer.ln_f.weight")
        assert norm.dtype == torch.bfloat16 and norm.device.type == device.type
        return {"logits": found.logits.detach().cpu(), **results}

    expected = run(CPU)
    with strict_device() as device:
        found = run(device)
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-2, atol=1e-4, msg=name)


def test_hidden_states_in_float32_over_a_base_in_half_precision_are_as_on_the_cpu(call: Call) -> None:
    call(computes_with_float32_activations)


def mixes_devices() -> None:
    with strict_device() as device:
        there = torch.ones(2).to(device)
        assert (there + torch.tensor(1.0)).tolist() == [2, 2]
        for mixing in (
            lambda: there + torch.ones(2),
            lambda: torch.cat((there, torch.ones(2))),
            lambda: nn.Linear(2, 2)(there),
            lambda: tiny_models.LLAMA.build().to(device)(torch.ones(1, 2, dtype=torch.long)),
        ):
            with pytest.raises(MixedDevicesError):
                mixing()
        with pytest.raises(TypeError, match="numpy"):
            there.numpy()


def test_the_device_refuses_what_an_accelerator_refuses(call: Call) -> None:
    call(mixes_devices)
