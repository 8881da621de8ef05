"""Embedding tables that travel with an adapter: what HF PEFT's files hold, and nothing of it changes the base."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.methods.tiny_models import GPT2, LLAMA, OPT, T5, VOCABULARY, Family
from tests.reference import terms as twin
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM

import manytune
from manytune.errors import AdapterError, CheckpointError, PeftWarning
from manytune.methods.registry import terms_of
from manytune.methods.tuners.filling import ShapeMismatchError
from manytune.methods.tuners.terms import TermsError

LONGER = VOCABULARY + 6
IDS = torch.tensor([[3, 5, LONGER - 1, 9, VOCABULARY, 1]])
QUERY = {"llama": "q_proj", "gpt2": "c_attn", "opt": "q_proj", "t5": "q"}
OPTIONS: dict[str, dict[str, Any]] = {
    "LoRA alone": {},
    "input trained in full": {"modules_to_save": ["embed_tokens"]},
    "both trained in full": {"modules_to_save": ["embed_tokens", "lm_head"]},
    "input targeted": {"target_modules": ["q_proj", "embed_tokens"]},
    "tokens": {"trainable_token_indices": [3, LONGER - 1]},
}


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    # That tables are saved is said, and transformers and HF PEFT have more to say.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def saved_base(family: Family, directory: Path, *, tied: bool | None = None) -> Path:
    base: Any = family.build()
    if tied:
        base.config.tie_word_embeddings = True
        base.tie_weights()
    base.save_pretrained(directory)
    return directory


def resized(directory: Path, *, rows: int = LONGER, dtype: torch.dtype = torch.float32, seed: int = 0) -> Any:
    """The base of a directory with rows for more tokens, other ones for every seed."""
    kind = AutoModelForSeq2SeqLM if "t5" in directory.name else AutoModelForCausalLM
    base = kind.from_pretrained(directory, dtype=dtype)
    torch.manual_seed(seed)
    base.resize_token_embeddings(rows, mean_resizing=False)
    with torch.no_grad():
        base.get_input_embeddings().weight[VOCABULARY:].normal_()
        base.get_output_embeddings().weight[VOCABULARY:].normal_()
    return base.eval()


def logits(model: nn.Module, ids: Tensor = IDS) -> Tensor:
    extra = {"decoder_input_ids": ids[:, :4]} if "T5" in type(model).__name__ or _is_t5(model) else {}
    with torch.no_grad():
        result: Tensor = model(input_ids=ids, **extra).logits
    return result


def _is_t5(model: nn.Module) -> bool:
    return getattr(getattr(model, "config", None), "model_type", "") == "t5"


def trained(base: nn.Module, library: Any, **options: Any) -> Any:
    task = "SEQ_2_SEQ_LM" if _is_t5(base) else "CAUSAL_LM"
    torch.manual_seed(3)
    options = {"target_modules": [QUERY[base.config.model_type]], **options}  # type: ignore[union-attr,index]
    model = library.get_peft_model(
        base, library.LoraConfig(r=2, task_type=task, init_lora_weights=False, **options)
    )
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad and parameter.shape[0] != 2:
                parameter.add_(0.1)
    return model.eval()


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize(("writer", "reader"), [(manytune, manytune), (manytune, peft), (peft, manytune)])
def test_rows_of_added_tokens_come_back_whoever_writes_and_reads(
    writer: Any, reader: Any, tied: bool, options: dict[str, Any], tmp_path: Path
) -> None:
    directory = saved_base(LLAMA, tmp_path / "base", tied=tied)
    model = trained(resized(directory), writer, **options)
    expected = logits(model)
    model.save_pretrained(tmp_path / "adapter")
    again = reader.PeftModel.from_pretrained(resized(directory, seed=7), tmp_path / "adapter").eval()
    # HF PEFT forgets the head's new rows where the embedding alone is targeted.
    lost = writer is peft and "embed_tokens" in options.get("target_modules", ()) and not tied
    columns = VOCABULARY if lost else LONGER
    torch.testing.assert_close(logits(again)[..., :columns], expected[..., :columns], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("family", [GPT2, OPT, T5], ids=str)
def test_families_that_tie_their_tables_keep_added_rows(family: Family, tmp_path: Path) -> None:
    directory = saved_base(family, tmp_path / family.name)
    model = trained(resized(directory), manytune)
    expected = logits(model)
    model.save_pretrained(tmp_path / "adapter")
    theirs = {
        name for name in load_file(tmp_path / "adapter/adapter_model.safetensors") if "lora" not in name
    }
    oracle = trained(resized(directory), peft)
    oracle.save_pretrained(tmp_path / "oracle")
    assert theirs == {n for n in load_file(tmp_path / "oracle/adapter_model.safetensors") if "lora" not in n}
    again = manytune.PeftModel.from_pretrained(resized(directory, seed=7), tmp_path / "adapter").eval()
    torch.testing.assert_close(logits(again), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("rows", [VOCABULARY + 3, 128], ids=["three more", "padded to a multiple of 64"])
def test_saving_again_writes_the_same_tables(rows: int, tmp_path: Path) -> None:
    directory = saved_base(LLAMA, tmp_path / "base")
    trained(resized(directory, rows=rows), peft).save_pretrained(tmp_path / "theirs")
    manytune.PeftModel.from_pretrained(
        resized(directory, rows=rows, seed=7), tmp_path / "theirs"
    ).save_pretrained(tmp_path / "ours")
    theirs, ours = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("theirs", "ours"))
    assert theirs.keys() == ours.keys()
    assert all(torch.equal(theirs[name], ours[name]) for name in theirs)


@pytest.mark.parametrize("how", [True, False, "auto"])
@pytest.mark.parametrize("longer", [True, False])
def test_the_tables_are_saved_as_hf_peft_saves_them(longer: bool, how: Any, tmp_path: Path) -> None:
    directory = saved_base(LLAMA, tmp_path / "base")
    names = []
    for library in (peft, manytune):
        model = trained(resized(directory, rows=LONGER if longer else VOCABULARY), library)
        names.append(set(library.get_peft_model_state_dict(model, save_embedding_layers=how)))
    assert names[0] == names[1]


def test_added_rows_are_saved_if_the_base_is_called_otherwise_than_where_it_is(tmp_path: Path) -> None:
    base = resized(saved_base(LLAMA, tmp_path / "base"))
    base.name_or_path = "org/base"  # as `load_base` calls the embedded base, which is in no hub's cache
    found = manytune.get_peft_model_state_dict(trained(base, manytune))
    assert any("embed" in name for name in found)


def test_where_it_is_not_known_whether_rows_were_added_a_warning_says_so(tmp_path: Path) -> None:
    directory = saved_base(LLAMA, tmp_path / "base")
    model = trained(resized(directory), manytune)
    (directory / "config.json").rename(directory / "kept.json")
    with pytest.warns(PeftWarning, match=r"No config\.json of .*base was found, so whether its vocabulary"):
        lost = manytune.get_peft_model_state_dict(model)
    assert not any("embed" in name for name in lost)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        kept = manytune.get_peft_model_state_dict(model, save_embedding_layers=True)
    assert any("embed" in name for name in kept) and not said


def test_methods_other_than_lora_keep_added_rows(tmp_path: Path) -> None:
    directory = saved_base(LLAMA, tmp_path / "base")
    for name, config in {
        "ia3": manytune.IA3Config(task_type="CAUSAL_LM"),
        "vera": manytune.VeraConfig(r=4, task_type="CAUSAL_LM"),
        "prompt": manytune.PromptTuningConfig(num_virtual_tokens=2, task_type="CAUSAL_LM"),
        "selective": manytune.SelectiveConfig(parameters="layernorm", task_type="CAUSAL_LM"),
        "full": manytune.FullConfig(task_type="CAUSAL_LM"),
        "combined": manytune.CombinedConfig(
            task_type="CAUSAL_LM",
            weights=manytune.LoraConfig(r=2),
            prompt=manytune.PromptTuningConfig(num_virtual_tokens=2),
        ),
    }.items():
        model = manytune.get_peft_model(resized(directory), config).eval()
        expected = logits(model)
        model.save_pretrained(tmp_path / name)
        base = resized(directory, seed=7)
        alone = logits(base)
        again = manytune.PeftModel.from_pretrained(base, tmp_path / name).eval()
        torch.testing.assert_close(logits(again), expected, rtol=1e-5, atol=1e-5, msg=name)
        with again.disable_adapter():
            assert torch.equal(logits(again), alone), name


def test_half_precision_keeps_added_rows(tmp_path: Path) -> None:
    directory = saved_base(LLAMA, tmp_path / "base", tied=True)
    model = trained(resized(directory, dtype=torch.bfloat16), manytune)
    expected = logits(model)
    model.save_pretrained(tmp_path / "adapter")
    assert load_file(tmp_path / "adapter/adapter_model.safetensors")[
        "base_model.model.lm_head.weight"
    ].dtype == (torch.bfloat16)
    again = manytune.PeftModel.from_pretrained(
        resized(directory, dtype=torch.bfloat16, seed=7), tmp_path / "adapter"
    )
    assert torch.equal(logits(again.eval()), expected)


@pytest.fixture
def two(tmp_path: Path) -> tuple[Path, dict[str, Path], dict[str, Tensor]]:
    """Two adapters with tables of their own and a third without, and what each gives alone."""
    directory = saved_base(LLAMA, tmp_path / "base", tied=True)
    paths, answers = {}, {}
    for seed, name in enumerate(("a", "b", "plain"), start=1):
        model = trained(resized(directory, seed=seed if name != "plain" else 9), manytune)
        model.save_pretrained(paths.setdefault(name, tmp_path / name), save_embedding_layers=name != "plain")
        base = resized(directory, seed=9)
        answers[name] = logits(manytune.PeftModel.from_pretrained(base, paths[name]).eval())
    return directory, paths, answers


def loaded(directory: Path, paths: dict[str, Path]) -> tuple[Any, Tensor, dict[str, Tensor]]:
    base = resized(directory, seed=9)
    alone, weights = logits(base), {name: p.detach().clone() for name, p in base.named_parameters()}
    model = manytune.PeftModel.from_pretrained(base, paths["a"], "a").eval()
    for name in ("b", "plain"):
        model.load_adapter(paths[name], name)
    return model, alone, weights


Two = tuple[Path, dict[str, Path], dict[str, Tensor]]


def test_each_adapter_has_its_own_tables_and_the_base_has_its_own(two: Two) -> None:
    directory, paths, answers = two
    model, alone, weights = loaded(directory, paths)
    assert (answers["a"] - answers["plain"]).abs().max() > 0.1
    for name in ("b", "a", "plain", "a"):
        model.set_adapter(name)
        assert torch.equal(logits(model), answers[name]), name
        with model.disable_adapter():
            assert torch.equal(logits(model), alone)
        with model.using("b"):
            assert torch.equal(logits(model), answers["b"])
        with model.using("__base__"):
            assert torch.equal(logits(model), alone)
        assert torch.equal(logits(model), answers[name]), name
    model.delete_adapter("a")
    model.set_adapter("plain")
    assert torch.equal(logits(model), answers["plain"])
    base = model.unload()
    assert all(torch.equal(p, weights[name]) for name, p in base.named_parameters())
    assert base.lm_head.weight is base.model.embed_tokens.weight


def test_each_adapter_is_saved_with_its_own_tables_whichever_is_in_use(two: Two, tmp_path: Path) -> None:
    directory, paths, _ = two
    model, _, _ = loaded(directory, paths)
    state = model.state_dict()
    model.save_pretrained(tmp_path / "again")
    for name in ("a", "b", "plain"):
        expected = load_file(paths[name] / "adapter_model.safetensors")
        again = load_file(tmp_path / "again" / name / "adapter_model.safetensors")
        from_state = manytune.get_peft_model_state_dict(model, state, adapter_name=name)
        tables = [key for key in expected if "lora" not in key]
        assert len(tables) == (0 if name == "plain" else 2)
        assert all(torch.equal(again[key], expected[key]) for key in tables)
        assert all(torch.equal(from_state[key], expected[key]) for key in tables)


def test_one_batch_has_each_adapters_tables(two: Two) -> None:
    directory, paths, answers = two
    model, alone, _ = loaded(directory, paths)
    names = ["a", "__base__", "b", "plain"]
    with torch.no_grad():
        mixed = model(input_ids=IDS.repeat(4, 1), adapter_names=names).logits
    for row, name in zip(mixed, names, strict=True):
        torch.testing.assert_close(row, answers.get(name, alone)[0], rtol=1e-5, atol=1e-5)


def test_merging_takes_the_tables_along_and_leaves_them_behind(two: Two) -> None:
    directory, paths, answers = two
    model, alone, weights = loaded(directory, paths)
    model.merge_adapter(["b"])
    torch.testing.assert_close(logits(model), answers["b"], rtol=1e-5, atol=1e-5)
    with model.disable_adapter():
        assert torch.equal(logits(model), alone)
    torch.testing.assert_close(logits(model), answers["b"], rtol=1e-5, atol=1e-5)
    with pytest.raises(AdapterError, match=r"merged.*tables of their own"):
        model.merge_adapter(["a"])
    model.unmerge_adapter()
    assert torch.equal(logits(model), answers["a"])
    merged = model.merge_and_unload(adapter_names=["b"])
    torch.testing.assert_close(logits(merged), answers["b"], rtol=1e-5, atol=1e-5)
    assert merged.lm_head.weight is merged.model.embed_tokens.weight
    assert not torch.equal(merged.lm_head.weight, weights["model.embed_tokens.weight"])


@dataclass(frozen=True)
class FromFile:
    digest: str
    config: Any
    tensors: dict[str, Tensor]


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize("writer", [manytune, peft])
def test_a_file_with_tables_has_terms_over_a_base_with_others(
    writer: Any, tied: bool, options: dict[str, Any], tmp_path: Path
) -> None:
    directory = saved_base(LLAMA, tmp_path / "base", tied=tied)
    model = trained(resized(directory), writer, **options)
    model.save_pretrained(tmp_path / "adapter")
    base = resized(directory, seed=7)
    expected = logits(manytune.PeftModel.from_pretrained(copy.deepcopy(base), tmp_path / "adapter").eval())
    config = manytune.PeftConfig.from_pretrained(tmp_path / "adapter")
    tensors = load_file(tmp_path / "adapter/adapter_model.safetensors")
    terms = terms_of(FromFile("file", config, tensors), base)
    torch.testing.assert_close(
        twin.logits(base, terms, {"input_ids": IDS, "labels": IDS}), expected, rtol=1e-4, atol=1e-4
    )


def test_a_file_of_another_vocabulary_has_no_terms_and_the_message_says_what_to_do(tmp_path: Path) -> None:
    directory = saved_base(LLAMA, tmp_path / "base")
    trained(resized(directory), manytune).save_pretrained(tmp_path / "adapter")
    config = manytune.PeftConfig.from_pretrained(tmp_path / "adapter")
    tensors = load_file(tmp_path / "adapter/adapter_model.safetensors")
    with pytest.raises(TermsError, match=rf"another vocabulary.*resize_token_embeddings\({LONGER}\)"):
        terms_of(FromFile("file", config, tensors), LLAMA.build())


def test_a_weighted_sum_has_the_one_table_of_its_parts(two: Two) -> None:
    directory, paths, answers = two
    model, _, _ = loaded(directory, paths)
    model.add_weighted_adapter(["a", "plain"], [1.0, 0.0], "sum", "linear")
    model.set_adapter("sum")
    torch.testing.assert_close(logits(model), answers["a"], rtol=1e-4, atol=1e-4)
    with pytest.raises(AdapterError, match="several of them bring embedding tables"):
        model.add_weighted_adapter(["a", "b"], [0.5, 0.5], "both", "linear")


def test_two_tables_at_once_are_refused(two: Two) -> None:
    directory, paths, answers = two
    model, _, _ = loaded(directory, paths)
    with pytest.raises(AdapterError, match=r"\['a', 'b'\] each bring an embedding table"):
        model.set_adapter(["a", "b"])
    assert torch.equal(logits(model), answers["a"])
    model.set_adapter(["a", "plain"])  # one table, and the sum of two updates


def test_lora_on_an_embedding_with_a_table_of_its_own(tmp_path: Path) -> None:
    directory = saved_base(LLAMA, tmp_path / "base")
    for name, options in {"lora": {}, "dora": {"use_dora": True}}.items():
        targets = ["q_proj", "embed_tokens"]
        model = trained(resized(directory), manytune, target_modules=targets, **options)
        expected = logits(model)
        model.save_pretrained(tmp_path / name)
        base = resized(directory, seed=7)
        alone = logits(base)
        again = manytune.PeftModel.from_pretrained(base, tmp_path / name).eval()
        torch.testing.assert_close(logits(again), expected, rtol=1e-5, atol=1e-5)
        with torch.no_grad():
            mixed = again(input_ids=IDS.repeat(2, 1), adapter_names=["default", "__base__"]).logits
        torch.testing.assert_close(mixed[:1], expected, rtol=1e-4, atol=1e-5)
        assert torch.equal(mixed[1:], alone)
        with again.using("default", merged=True):
            torch.testing.assert_close(logits(again), expected, rtol=1e-4, atol=1e-5)
        assert torch.equal(logits(again.unload()), alone)


def test_a_table_of_another_vocabulary_is_refused_with_the_way_out(tmp_path: Path) -> None:
    directory = saved_base(LLAMA, tmp_path / "base")
    trained(resized(directory), manytune).save_pretrained(tmp_path / "adapter")
    base = AutoModelForCausalLM.from_pretrained(directory)
    with pytest.raises(ShapeMismatchError, match=rf"resize_token_embeddings\({LONGER}\).*AutoPeft"):
        manytune.PeftModel.from_pretrained(base, tmp_path / "adapter")
    model = trained(base, manytune)
    before = logits(model, IDS % VOCABULARY)
    with pytest.raises(ShapeMismatchError, match="vocabulary"):
        model.load_adapter(tmp_path / "adapter", "second")
    assert list(model.peft_config) == ["default"]
    assert torch.equal(logits(model, IDS % VOCABULARY), before)


def test_two_unlike_tables_are_refused_where_the_base_ties_them(tmp_path: Path) -> None:
    untied, tied = saved_base(LLAMA, tmp_path / "base"), saved_base(LLAMA, tmp_path / "tied", tied=True)
    trained(resized(untied), manytune).save_pretrained(tmp_path / "adapter")
    with pytest.raises(CheckpointError, match=r"two unlike tables.*tie_word_embeddings=False"):
        manytune.PeftModel.from_pretrained(resized(tied), tmp_path / "adapter")


def test_a_table_that_equals_the_bases_costs_nothing(tmp_path: Path) -> None:
    directory = saved_base(LLAMA, tmp_path / "base")
    trained(resized(directory), manytune).save_pretrained(tmp_path / "adapter")
    model = manytune.PeftModel.from_pretrained(resized(directory), tmp_path / "adapter")
    assert not model.tuner.own_tables


def test_a_table_of_its_own_is_saved_whatever_the_vocabulary(tmp_path: Path) -> None:
    """HF PEFT, which has put it into the base, would forget it here."""
    base = LLAMA.build()
    trained(base, manytune).save_pretrained(tmp_path / "adapter", save_embedding_layers=True)
    file = tmp_path / "adapter/adapter_model.safetensors"
    tensors = load_file(file)
    tensors["base_model.model.model.embed_tokens.weight"] += 1
    save_file(tensors, file)
    model = manytune.PeftModel.from_pretrained(LLAMA.build(), tmp_path / "adapter")
    model.save_pretrained(tmp_path / "again")
    again = load_file(tmp_path / "again/adapter_model.safetensors")
    key = "base_model.model.model.embed_tokens.weight"
    assert torch.equal(again[key], tensors[key])


def test_training_goes_on_with_the_tables_of_the_checkpoint(tmp_path: Path) -> None:
    directory = saved_base(LLAMA, tmp_path / "base", tied=True)
    model = trained(resized(directory), manytune)
    expected = logits(model)
    model.save_pretrained(tmp_path / "adapter")
    again = trained(resized(directory, seed=7), manytune)
    again.load_adapter(tmp_path / "adapter", "default", is_trainable=True)
    torch.testing.assert_close(logits(again), expected, rtol=1e-5, atol=1e-5)
    manytune.set_peft_model_state_dict(
        other := trained(resized(directory, seed=8), manytune), manytune.get_peft_model_state_dict(model)
    )
    torch.testing.assert_close(logits(other), expected, rtol=1e-5, atol=1e-5)
    assert not any(p.requires_grad for n, p in again.named_parameters() if "embed_tokens" in n)


def test_a_copy_and_a_moved_model_keep_the_base_apart(two: Two) -> None:
    directory, paths, answers = two
    model, alone, _ = loaded(directory, paths)
    twin = copy.deepcopy(model).double()
    torch.testing.assert_close(logits(twin).float(), answers["a"], rtol=1e-4, atol=1e-4)
    with twin.disable_adapter():
        torch.testing.assert_close(logits(twin).float(), alone, rtol=1e-4, atol=1e-4)
    assert torch.equal(logits(model), answers["a"])


def test_auto_classes_make_room_for_the_adapters_table(tmp_path: Path, tiny: Callable[[], Any]) -> None:
    directory = saved_base(LLAMA, tmp_path / "base")
    model = trained(resized(directory, rows=128), manytune)  # padded: more rows than the tokenizer has tokens
    expected = logits(model)
    model.save_pretrained(tmp_path / "adapter")
    tiny().save_pretrained(tmp_path / "adapter")
    again = manytune.AutoPeftModelForCausalLM.from_pretrained(tmp_path / "adapter")
    torch.testing.assert_close(logits(again.eval()), expected, rtol=1e-5, atol=1e-5)


@pytest.fixture
def tiny() -> Callable[[], Any]:
    from tests.store.tiny import tiny_tokenizer

    def with_more_tokens() -> Any:
        tokenizer = tiny_tokenizer()
        tokenizer.add_tokens([f"<new{i}>" for i in range(LONGER - len(tokenizer))])
        return tokenizer

    return with_more_tokens
