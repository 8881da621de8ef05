"""Rows of single tokens train, alone or next to LoRA: the same as in HF PEFT, and in terms."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file
from tests.engine.adapters import in_memory
from tests.methods.oracle import assert_same, pair
from tests.methods.tiny_models import GPT2, LLAMA, OPT, T5, VOCABULARY, Family
from torch import Tensor, nn

import manytune
from manytune.errors import AdapterError, ConfigError
from manytune.methods.lora.config import LoraConfig
from manytune.methods.registry import terms_of
from manytune.methods.trainable_tokens import TrainableTokensConfig
from manytune.methods.tuners.unmatched import UnmatchedError

TOKENS = [9, 3, 40]
IDS = torch.tensor([[3, 5, 9, 40, 1, 9], [7, 9, 9, 2, 3, 4]])
QUERY = {"llama": "q_proj", "gpt2": "c_attn", "opt": "q_proj", "t5": "q"}
Make = Callable[[Any, Family], Any]


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def tied_llama() -> nn.Module:
    base: Any = LLAMA.build()
    base.config.tie_word_embeddings = True
    base.tie_weights()
    return base


TIED = Family("llama", tied_llama, "CAUSAL_LM")
FAMILIES = {"llama": LLAMA, "llama tied": TIED, "gpt2": GPT2, "opt": OPT, "t5": T5}


def option(library: Any, family: Family) -> Any:
    return library.LoraConfig(
        r=2,
        task_type=family.task_type,
        target_modules=[QUERY[family.name]],
        trainable_token_indices=list(TOKENS),
    )


def alone(library: Any, family: Family) -> Any:
    return library.TrainableTokensConfig(token_indices=list(TOKENS), task_type=family.task_type)


each_family = pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)
each_way = pytest.mark.parametrize("make", [option, alone])


def run(model: nn.Module, ids: Tensor = IDS) -> Tensor:
    config: Any = model.config
    extra = {"decoder_input_ids": ids[:, :4]} if config.is_encoder_decoder else {}
    result: Tensor = model(input_ids=ids, **extra).logits
    return result


def answers(model: nn.Module) -> Tensor:
    with torch.no_grad():
        return run(model.eval())


def moved(base: nn.Module, config: Any, name: str = "default", seed: int = 1) -> Any:
    """A model with an adapter whose values are away from where they start."""
    model = manytune.get_peft_model(base, config, name)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape, generator=generator))
    return model.eval()


@each_way
@each_family
def test_it_trains_as_in_hf_peft(make: Make, family: Family) -> None:
    mine, oracle = pair(family.build, make(manytune, family), make(peft, family))
    assert_same(mine, oracle, run)
    assert (
        mine.targeted_module_names
        == [
            path
            for path in oracle.targeted_module_names
            if "lm_head" not in path and ".embed" not in path[-20:]
        ]
        or make is alone
    )


@each_way
@each_family
def test_files_are_hf_pefts_both_ways(make: Make, family: Family, tmp_path: Path) -> None:
    base = family.build().eval()
    model = moved(copy.deepcopy(base), make(manytune, family))
    expected = answers(model)
    model.save_pretrained(tmp_path / "ours")
    theirs = peft.PeftModel.from_pretrained(copy.deepcopy(base), tmp_path / "ours")
    torch.testing.assert_close(answers(theirs), expected, rtol=1e-4, atol=1e-5)
    theirs.save_pretrained(tmp_path / "theirs")
    again = manytune.PeftModel.from_pretrained(copy.deepcopy(base), tmp_path / "theirs")
    torch.testing.assert_close(answers(again), expected, rtol=1e-5, atol=1e-5)
    files = [load_file(tmp_path / name / "adapter_model.safetensors") for name in ("ours", "theirs")]
    assert files[0].keys() == files[1].keys()
    assert all(torch.equal(files[0][key], files[1][key]) for key in files[0])


@each_way
@each_family
def test_it_merges_and_the_base_comes_back(make: Make, family: Family) -> None:
    base = family.build().eval()
    weights = {name: p.detach().clone() for name, p in base.named_parameters()}
    before = answers(base)
    model = moved(base, make(manytune, family))
    expected = answers(model)
    assert (expected - before).abs().max() > 0.1
    with model.disable_adapter():
        assert torch.equal(answers(model), before)
    model.merge_adapter()
    torch.testing.assert_close(answers(model), expected, rtol=1e-4, atol=1e-4)
    with model.disable_adapter():
        assert torch.equal(answers(model), before)
    model.unmerge_adapter()
    assert torch.equal(answers(model), expected)
    with model.using("default", merged=True):
        torch.testing.assert_close(answers(model), expected, rtol=1e-4, atol=1e-4)
    assert torch.equal(answers(model), expected)
    merged = copy.deepcopy(model).merge_and_unload()
    torch.testing.assert_close(answers(merged), expected, rtol=1e-4, atol=1e-4)
    assert all(torch.equal(p, weights[name]) for name, p in model.unload().named_parameters())


@each_way
@pytest.mark.parametrize("family", [LLAMA, TIED, GPT2, OPT], ids=["llama", "llama tied", "gpt2", "opt"])
def test_one_batch_mixes_adapters_with_other_tokens(make: Make, family: Family) -> None:
    base = family.build().eval()
    before = answers(base)
    model = moved(base, make(manytune, family), "a")
    other = make(manytune, family)
    setattr(other, "token_indices" if make is alone else "trainable_token_indices", [5])
    model.add_adapter("b", other)
    model.set_adapter("b")
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(".b") and "tokens" in name:
                parameter.add_(1)
    expected = {"b": answers(model)}
    model.set_adapter("a")
    expected["a"], expected["__base__"] = answers(model), before
    names = ["a", "__base__", "b"]
    for ids in IDS:
        with torch.no_grad():
            mixed = model(input_ids=ids.repeat(3, 1), adapter_names=names).logits
        row = next(i for i, own in enumerate(IDS) if own is ids or torch.equal(own, ids))
        for got, name in zip(mixed, names, strict=True):
            torch.testing.assert_close(got, expected[name][row], rtol=1e-4, atol=1e-4)
    model.delete_adapter("a")
    assert torch.equal(answers(model), expected["b"])


@each_way
def test_a_file_has_the_terms_of_the_live_adapter(make: Make) -> None:
    model = moved(tied_llama(), make(manytune, TIED))
    from_file, live = terms_of(in_memory(model), tied_llama()), model.tuner.live_terms("default")
    assert from_file.updates.keys() == live.updates.keys()
    assert {"model.embed_tokens", "lm_head"} <= live.updates.keys()
    for path, update in live.updates.items():
        mine, theirs = from_file.updates[path].down, update.down
        assert mine is not None and theirs is not None
        torch.testing.assert_close(
            from_file.updates[path].up @ mine * from_file.updates[path].scaling,
            update.up @ theirs * update.scaling,
        )


def test_more_tokens_than_a_row_is_long_are_a_whole_table_in_terms() -> None:
    tokens = list(range(VOCABULARY - 1))
    model = moved(tied_llama(), TrainableTokensConfig(token_indices=tokens, task_type="CAUSAL_LM"))
    expected = answers(model)
    assert all(update.down is None for update in model.tuner.live_terms("default").updates.values())
    with torch.no_grad():
        mixed = model(input_ids=IDS, adapter_names=["default", "default"]).logits
    torch.testing.assert_close(mixed, expected, rtol=1e-4, atol=1e-4)


def test_all_that_shares_the_table_shares_the_rows_whatever_the_configuration_says() -> None:
    """T5 1.1 has a head of its own; HF PEFT 0.21.2 then forgets that encoder and decoder share a table."""
    base: Any = T5.build()
    base.config.tie_word_embeddings = False
    base.lm_head.weight = nn.Parameter(base.lm_head.weight.detach().clone())
    before = base.lm_head.weight.detach().clone()
    model = moved(base, alone(manytune, T5))
    rows = model.get_parameter("base_model.model.shared.trainable_tokens_delta.default")
    for table in ("shared", "encoder.embed_tokens", "decoder.embed_tokens"):
        found = base.get_submodule(table)(torch.tensor(TOKENS))
        assert torch.equal(found, rows), table
    assert torch.equal(base.lm_head.weight, before)
    assert not any("lm_head" in name for name in model.targeted_module_names)


def test_a_head_with_a_bias_keeps_it() -> None:
    """HF PEFT 0.21.2 leaves the bias of a tied head out."""
    base: Any = tied_llama()
    base.lm_head.bias = nn.Parameter(torch.linspace(-1, 1, VOCABULARY))
    before = answers(base)
    model = manytune.get_peft_model(base, alone(manytune, TIED))
    torch.testing.assert_close(answers(model), before, rtol=1e-5, atol=1e-6)
    with torch.no_grad():
        model.get_parameter("base_model.model.model.embed_tokens.trainable_tokens_delta.default").add_(1)
    expected = answers(model)
    torch.testing.assert_close(answers(model.merge_and_unload()), expected, rtol=1e-4, atol=1e-5)


def test_rows_may_be_named_by_their_embedding_with_other_tokens_for_the_head() -> None:
    rows: dict[str, list[int]] = {"embed_tokens": [3], "lm_head": [5, 9]}
    ours, theirs = (
        library.LoraConfig(
            r=2, target_modules=["q_proj"], task_type="CAUSAL_LM", trainable_token_indices=copy.deepcopy(rows)
        )
        for library in (manytune, peft)
    )
    mine, oracle = pair(LLAMA.build, ours, theirs)
    assert_same(mine, oracle, run)


def test_adalora_trains_tokens_too() -> None:
    configs = [
        library.AdaLoraConfig(
            target_modules=["q_proj"],
            task_type="CAUSAL_LM",
            total_step=10,
            tinit=1,
            tfinal=1,
            trainable_token_indices=list(TOKENS),
        )
        for library in (manytune, peft)
    ]
    mine, oracle = pair(tied_llama, *configs)
    torch.testing.assert_close(answers(mine), answers(oracle), rtol=1e-9, atol=1e-9)
    mine.train()
    run(mine).sum().backward()
    mine.tuner.update_and_allocate(2)  # type: ignore[operator]


def test_half_precision_trains_rows_in_float32() -> None:
    model = manytune.get_peft_model(tied_llama().bfloat16(), option(manytune, TIED))
    rows = model.get_parameter(
        "base_model.model.model.embed_tokens.token_adapter.trainable_tokens_delta.default"
    )
    assert rows.dtype == torch.float32
    assert answers(model).dtype == torch.bfloat16


def test_a_padding_token_stays_without_a_gradient() -> None:
    base: Any = LLAMA.build()
    assert base.config.pad_token_id == 0
    model = manytune.get_peft_model(base, TrainableTokensConfig(token_indices=[4, 0], task_type="CAUSAL_LM"))
    run(model, torch.tensor([[0, 4, 7]])).sum().backward()
    rows = next(parameter for parameter in model.parameters() if parameter.requires_grad)
    assert rows.grad is not None and rows.grad[0].abs().sum() > 0 and rows.grad[1].abs().sum() == 0


def test_two_adapters_at_once_have_no_token_in_common() -> None:
    model = moved(LLAMA.build(), alone(manytune, LLAMA), "a")
    model.add_adapter("b", TrainableTokensConfig(token_indices=[5], task_type="CAUSAL_LM"))
    model.add_adapter("c", TrainableTokensConfig(token_indices=[3], task_type="CAUSAL_LM"))
    model.set_adapter(["a", "b"])
    answers(model)
    model.set_adapter(["a", "c"])
    with pytest.raises(AdapterError, match="'a' and 'c' both have a row of their own for token 3"):
        answers(model)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"trainable_token_indices": [VOCABULARY]}, "token 64.*has 64 rows.*resize_token_embeddings"),
        ({"trainable_token_indices": [-1]}, "token -1 isn't in the table"),
        ({"trainable_token_indices": [3, 3]}, "each token once"),
        ({"trainable_token_indices": 3.0}, "expected a list of tokens' ids for .*embed_tokens, found 3.0"),
        ({"trainable_token_indices": {"norm": [3]}}, "LlamaRMSNorm.*Rows can be trained of"),
        ({"trainable_token_indices": [3], "modules_to_save": ["embed_tokens"]}, "named by modules_to_save"),
        (
            {"trainable_token_indices": [3], "target_modules": ["q_proj", "lm_head"]},
            "named by target_modules",
        ),
    ],
)
def test_what_cant_be_meant_is_refused(options: dict[str, Any], message: str) -> None:
    config = LoraConfig(**{"target_modules": ["q_proj"], "task_type": "CAUSAL_LM", **options})
    base = tied_llama()
    before = {name: type(module) for name, module in base.named_modules()}
    with pytest.raises(ConfigError, match=message):
        manytune.get_peft_model(base, config)
    assert before == {name: type(module) for name, module in base.named_modules()}


def test_a_name_that_matches_nothing_is_refused_with_the_nearest() -> None:
    with pytest.raises(UnmatchedError, match=r"embed_tokns.*embed_tokens"):
        manytune.get_peft_model(
            LLAMA.build(), LoraConfig(target_modules=["q_proj"], trainable_token_indices={"embed_tokns": [3]})
        )
    with pytest.raises(ConfigError, match="name the tokens to train"):
        TrainableTokensConfig()


def test_an_adapter_of_the_other_kind_on_the_same_embedding_is_refused() -> None:
    model = moved(LLAMA.build(), option(manytune, LLAMA))
    with pytest.raises(ConfigError, match="another adapter of this model trains rows of it"):
        model.add_adapter("b", LoraConfig(target_modules=["embed_tokens"], task_type="CAUSAL_LM"))
    lora = moved(LLAMA.build(), LoraConfig(target_modules=["embed_tokens"], task_type="CAUSAL_LM"))
    with pytest.raises(ConfigError, match="carries adapters of another kind"):
        lora.add_adapter("b", option(manytune, LLAMA))
    with pytest.raises(ConfigError, match="don't add up"):
        model.add_weighted_adapter(["default"], [1.0], "sum", "linear")


def test_all_linear_leaves_the_head_out_where_it_has_rows_already() -> None:
    model = moved(tied_llama(), option(manytune, TIED))
    model.add_adapter("b", LoraConfig(target_modules="all-linear", task_type="CAUSAL_LM"))
    assert "lm_head" not in model.peft_config["b"].target_modules
