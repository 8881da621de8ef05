"""`manytune adapters` as a person meets it."""

from __future__ import annotations

import io
import json
import secrets
from pathlib import Path

import fsspec
import peft
import pytest
import torch
from tests.cli.light import run_each
from tests.store.adapters_made import make_adapter
from tests.store.peft_made import save_peft
from tests.store.tiny import save_tiny_base, tiny_model
from typer.testing import CliRunner, Result

from manytune.cli.main import build_app
from manytune.store.base import Base, load_base
from manytune.store.remote.store import SharedStore
from manytune.store.store import AdapterStore

IDS = torch.tensor([[3, 4, 5]])


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Base:
    return load_base(str(save_tiny_base(tmp_path_factory.mktemp("base") / "tiny")))


@pytest.fixture
def folder(tmp_path: Path, base: Base, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current directory, with two runs in it."""
    for seed, name in enumerate(("summaries", "questions")):
        make_adapter(tmp_path / "runs" / name / "adapter", base, seed=seed)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def adapters(*arguments: str | Path) -> Result:
    return CliRunner().invoke(build_app(), ["adapters", *map(str, arguments)])


def done(*arguments: str | Path) -> str:
    result = adapters(*arguments)
    assert result.exit_code == 0, result.output
    return result.stdout


def message(result: Result) -> str:
    assert result.exit_code == 1, result.output
    return " ".join(result.stderr.split())


@pytest.fixture
def filled(folder: Path) -> AdapterStore:
    for name in ("summaries", "questions"):
        done("add", f"runs/{name}", "--tag", "english")
    return AdapterStore(folder / "adapters")


def test_adapters_are_added_under_the_names_of_their_runs_and_listed(filled: AdapterStore) -> None:
    done("tag", "summaries", "production")
    listed = done("list")
    for expected in ("summaries", "questions", "lora", "MB"):
        assert expected in listed
    found = json.loads(done("list", "--json"))
    assert [one["names"] for one in found] == [["questions"], ["summaries"]]
    assert found[1]["digest"] == filled.resolve("summaries")
    assert found[1]["scores"] == {"validation_loss": 1.0}
    assert json.loads(done("list", "--tag", "production", "--json"))[0]["names"] == ["summaries"]
    done("untag", "summaries", "production")
    assert "no adapters with the tag production" in done("list", "--tag", "production")


def test_the_store_is_where_the_option_or_the_environment_says(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    added = json.loads(done("add", "runs/summaries", "--name", "s", "--store", "elsewhere", "--json"))
    assert added["path"].startswith("elsewhere/objects/")
    monkeypatch.setenv("MANYTUNE_STORE", str(folder / "elsewhere"))
    assert json.loads(done("list", "--json"))[0]["names"] == ["s"]
    assert not (folder / "adapters").exists()


def test_the_store_may_be_on_shared_storage(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    url = f"memory://bucket-{secrets.token_hex(4)}/adapters"
    monkeypatch.setenv("MANYTUNE_CACHE", str(folder / "cache"))
    for name in ("summaries", "questions"):
        assert json.loads(done("add", f"runs/{name}", "--store", url, "--json"))["path"] is None
    done("alias", "summaries", "current", "--store", url)
    assert "lora" in done("show", "current", "--store", url)
    done("export", "current", "--to", "peft", "--output", "exported", "--store", url)
    assert (folder / "exported" / "adapter_config.json").is_file()
    files = fsspec.filesystem("memory")
    (broken,) = (
        path
        for path in files.find(url)
        if SharedStore(url).resolve("questions") in path and "tensors" in path
    )
    files.pipe_file(broken, b"something else")
    result = adapters("verify", "--store", url)
    assert "isn't what was uploaded" in message(result) and "tensors are finite" in result.stdout
    assert not (folder / "adapters").exists() and not (folder / "memory:").exists()


def test_names_are_added_moved_and_forgotten(filled: AdapterStore) -> None:
    done("alias", "summaries", "current")
    assert "'current' belongs to adapter" in message(adapters("alias", "questions", "current"))
    done("alias", "questions", "current", "--move")
    assert filled.resolve("current") == filled.resolve("questions")
    done("unalias", "current")
    assert "there is no adapter 'current'" in message(adapters("show", "current"))
    assert "'summaries' belongs to adapter" in message(
        adapters("add", "runs/questions", "--name", "summaries")
    )


def test_show_takes_a_name_a_hash_a_run_or_a_directory(filled: AdapterStore) -> None:
    own = filled.resolve("summaries")
    for adapter in ("summaries", own, own[:8], "runs/summaries", "runs/summaries/adapter"):
        assert json.loads(done("show", adapter, "--json"))["scores"] == {"validation_loss": 1.0}
    assert "{{ text }}" in done("show", "summaries")
    assert "Did you mean 'summaries'?" in message(adapters("show", "sumaries"))
    assert "there is no such directory" in message(adapters("show", "runs/absent"))


def test_verify_checks_everything_in_the_store_and_goes_on_after_a_fault(
    filled: AdapterStore, base: Base
) -> None:
    lines = done("verify", "--base", base.name).splitlines()
    assert len(lines) == 2
    assert all("2 files are intact" in line and "the base fits; logits change by" in line for line in lines)
    file = filled.path("questions") / "adapter_model.safetensors"
    file.chmod(0o644)
    file.write_bytes(file.read_bytes()[:-4] + b"\0\0\0\0")
    result = adapters("verify")
    assert "2 files are intact, 8 tensors are finite" in result.stdout
    assert "changed or damaged" in message(result)
    assert [sorted(one) for one in json.loads(adapters("verify", "--json").stdout)] == [
        ["error", "path"],
        ["base_checked", "effect", "files", "note", "path", "tensors", "unservable"],
    ]


def test_what_is_removed_is_gone(filled: AdapterStore) -> None:
    assert "there is no adapter 'absent'" in message(adapters("remove", "summaries", "absent", "--yes"))
    removed = done("remove", "summaries", filled.resolve("summaries")[:10], "questions", "--yes")
    assert removed.splitlines() == ["removed summaries", "removed questions"]
    assert "no adapters" in done("list")


def test_nothing_is_removed_without_a_yes(filled: AdapterStore, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = adapters("remove", "summaries")
    assert asked.exit_code == 2 and "Give --yes" in " ".join(asked.stderr.split())

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setattr("typer.get_text_stream", lambda _: Terminal())
    declined = CliRunner().invoke(build_app(), ["adapters", "remove", "summaries"], input="n\n")
    assert declined.exit_code == 1 and "Remove summaries from adapters? [y/N]" in declined.output
    assert "summaries" in filled.names()
    assert CliRunner().invoke(build_app(), ["adapters", "remove", "summaries"], input="y\n").exit_code == 0
    assert "summaries" not in filled.names()


def test_a_store_that_is_not_there_is_an_error_and_is_not_made(folder: Path) -> None:
    for arguments in (("list",), ("show", "summaries"), ("tag", "summaries", "t"), ("verify",)):
        assert "there is no store of adapters here" in message(adapters(*arguments)), arguments
    assert not (folder / "adapters").exists()


def test_a_damaged_adapter_hides_no_other_in_the_list(filled: AdapterStore) -> None:
    manifest = filled.path("questions") / "manifest.json"
    manifest.chmod(0o644)
    manifest.write_text("{")
    result = adapters("list")
    assert "summaries" in result.stdout and "manifest.json" in message(result)
    found = json.loads(adapters("list", "--json").stdout)
    assert [sorted(one)[:2] for one in found] == [["base", "bytes"], ["digest", "error"]]


def test_what_only_reads_or_names_adapters_imports_no_model_library(filled: AdapterStore, base: Base) -> None:
    filled.root.parent.joinpath("rows.jsonl").write_text('{"question": "a", "answer": "b"}\n' * 40)
    commands = [
        ["adapters", "list"],
        ["adapters", "list", "--wide"],
        ["adapters", "list", "--json"],
        ["adapters", "show", "summaries"],
        ["adapters", "alias", "summaries", "current"],
        ["adapters", "tag", "summaries", "production"],
        ["adapters", "remove", "questions", "--yes"],
        ["keys", "add", "helpdesk"],
        ["keys", "list"],
        ["plan", base.name],
        ["init", "rows.jsonl"],
        ["data", "check", "rows.jsonl"],
        ["--version"],
        ["--show-completion"],
    ]
    for command, ran in zip(commands, run_each(commands), strict=True):
        assert ran.loaded == [], (command, ran)
        assert ran.code == 0 or command == ["--show-completion"], (command, ran)


def test_the_shell_completes_the_names_in_the_store(
    filled: AdapterStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    filled.add("runs/questions", name="quotes")
    for typed, names in {
        "manytune adapters show q": ["questions", "quotes"],
        "manytune adapters tag su": ["summaries"],
        "manytune generate --adapter s": ["summaries"],
        "manytune evaluate --store adapters qu": ["questions", "quotes"],
        "manytune evaluate --store elsewhere qu": [],
        "manytune adapters lis": ["list"],
    }.items():
        variables = {"_MANYTUNE_COMPLETE": "complete_bash", "COMP_WORDS": typed}
        variables["COMP_CWORD"] = str(len(typed.split()) - 1)
        result = CliRunner().invoke(build_app(), [], env=variables, prog_name="manytune")
        assert result.stdout.split() == names, typed


def test_a_combination_becomes_an_adapter_of_the_store(filled: AdapterStore) -> None:
    done("combine", "summaries", "runs/questions", "--name", "both", "--weights", "0.5,-0.25")
    shown = done("show", "both")
    assert filled.resolve("summaries") in shown.replace("\n", "").replace(" ", "")
    assert "-0.25 ×" in shown
    done("combine", "summaries", "questions", "--name", "svd", "--kind", "svd", "--rank", "1")
    assert json.loads((filled.path("svd") / "adapter_config.json").read_text())["r"] == 1
    for wrong in ("1", "1,x", "1,2,3"):
        result = adapters("combine", "summaries", "questions", "--name", "b", "--weights", wrong)
        assert f"expected 2 numbers with commas between them, found '{wrong}'" in message(result)
    result = adapters("combine", "summaries", "questions", "--name", "b", "--kind", "mean")
    assert "Invalid combination_type: mean. Known: svd, linear, cat" in message(result)


@pytest.mark.filterwarnings("ignore::FutureWarning")  # peft's
def test_merge_and_export_write_for_other_programs(filled: AdapterStore, folder: Path, base: Base) -> None:
    done("merge", "summaries", "--output", "merged")
    done("export", "summaries", "--to", "merged", "--output", "merged2")
    done("export", "summaries", "--to", "peft", "--output", "peft")
    done("export", "summaries", "--to", "gguf", "--output", "summaries.gguf")
    printed = done("export", "summaries", "questions", "--to", "vllm", "--output", "vllm")
    assert printed.startswith("--enable-lora --max-lora-rank 8 --lora-modules summaries=")
    assert (folder / "summaries.gguf").read_bytes()[:4] == b"GGUF"
    with torch.no_grad():
        adapted = peft.PeftModel.from_pretrained(tiny_model().eval(), str(folder / "peft"))
        expected = adapted(input_ids=IDS).logits
        for name in ("merged", "merged2"):
            model = load_base(str(folder / name)).model
            torch.testing.assert_close(model(input_ids=IDS).logits, expected, rtol=1e-4, atol=1e-5)


def test_exports_that_cannot_be_are_refused(filled: AdapterStore, folder: Path, base: Base) -> None:
    two = adapters("export", "summaries", "questions", "--to", "peft", "--output", "out")
    assert "writes one adapter, found 2" in message(two)
    twice = adapters("export", "summaries", "runs/summaries", "--to", "vllm", "--output", "out")
    assert "expected a name of its own for each adapter" in message(twice)
    (folder / "there").write_text("")
    assert "there exists already" in message(
        adapters("export", "summaries", "--to", "gguf", "--output", "there")
    )
    assert adapters("export", "summaries", "--to", "tea", "--output", "out").exit_code == 2
    other = save_tiny_base(folder / "other", seed=1)
    assert "trained on another base" in message(
        adapters("merge", "summaries", "--output", "out", "--base", other)
    )
    assert not (folder / "out").exists()


def test_a_checkpoint_of_peft_is_added_with_its_base(folder: Path, base: Base) -> None:
    bare = folder / "runs" / "summaries" / "adapter"
    (bare / "manifest.json").unlink()
    assert "doesn't say what its base looked like. Pass --base" in message(
        adapters("add", bare, "--name", "s")
    )
    done("add", bare, "--name", "s", "--base", base.name)
    assert "the base fits" in done("verify", "s", "--base", base.name)
    assert "doesn't say what its base is. Name it with --base" in message(
        adapters("merge", bare, "--output", "out")
    )


def test_many_are_added_at_once_with_one_base_and_a_fault_stops_none_of_the_others(
    folder: Path, base: Base, monkeypatch: pytest.MonkeyPatch
) -> None:
    loads = []
    monkeypatch.delenv("COLUMNS", raising=False)  # for a program errors are whole lines
    monkeypatch.setattr("manytune.store.base.load_base", lambda spec: (loads.append(spec), base)[1])
    made = [save_peft(folder / "peft" / f"a{seed}", seed) for seed in range(3)]
    (folder / "peft" / "empty").mkdir()
    result = adapters("add", made[0], folder / "peft" / "empty", made[1], made[2], "--base", base.name)
    assert "empty: this directory holds no adapter" in message(result)
    assert "1 of 4 couldn't be added; the others are in adapters" in message(result)
    assert [line.split()[0] for line in result.stdout.splitlines()] == ["a0", "a1", "a2"]
    assert loads == [base.name]
    assert sorted(AdapterStore(folder / "adapters").names()) == ["a0", "a1", "a2"]
    assert adapters("add", made[0], made[1], "--name", "one").exit_code == 2
    both = json.loads(done("add", made[0], made[1], "--base", base.name, "--json"))
    assert [one["names"] for one in both] == [["a0"], ["a1"]]


def test_what_was_left_out_is_said(folder: Path, base: Base) -> None:
    made = save_peft(folder / "out")
    (made / "optimizer.pt").write_bytes(b"PK\x03\x04" + bytes(60))
    (made / "checkpoint-500").mkdir()
    base.tokenizer.save_pretrained(made)
    said = " ".join(done("add", made, "--base", base.name).split())
    assert "left out: tokenizer (the base's): tokenizer.json" in said
    assert said.endswith("checkpoint-500/, optimizer.pt")
    left = json.loads(done("add", made, "--base", base.name, "--json"))["left_out"]
    assert {"checkpoint-500/", "optimizer.pt", "tokenizer.json"} <= set(left)


def test_what_cannot_be_served_is_said_by_add_list_show_and_verify(folder: Path, base: Base) -> None:
    made = make_adapter(folder / "made" / "odd", base, init_lora_weights="pissa")
    way_out = "Save it with path_initial_model_for_weight_conversion"
    for arguments in (
        ("add", made, "--base", base.name),
        ("list",),
        ("show", "odd"),
        ("verify", "odd"),
        ("verify", "odd", "--base", base.name),
    ):
        said = " ".join(done(*arguments).split())
        assert "can't be served" in said and way_out in said, arguments
        if arguments[0] not in ("add",):
            shown = json.loads(done(*arguments, "--json"))
            assert way_out in (shown[0] if isinstance(shown, list) else shown)["unservable"]
