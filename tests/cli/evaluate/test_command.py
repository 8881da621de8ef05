"""`manytune evaluate` and `manytune generate` on a run that `manytune train`'s code made a moment before."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from tests.cli.opposites import PAIRS, WORDS, evaluated, manytune, rows, scores
from tests.reference.one_at_a_time import beam_search, greedy, negative_log_likelihood

from manytune.evaluation.results import read_evaluation
from manytune.model.peft_model import PeftModel
from manytune.store.adapters import open_adapter
from manytune.store.base import load_base

# evaluate


def test_scores_are_those_of_one_prompt_and_one_token_at_a_time(folder: Path) -> None:
    found = scores(evaluated("runs/good"))
    base = load_base("base")
    pairs = PAIRS + [(b, a) for a, b in PAIRS]
    for name in ("base", "good"):
        model = base.model if name == "base" else PeftModel.from_pretrained(base.model, "runs/good/adapter")
        right, nll = 0, 0.0
        for word, opposite in pairs:
            prompt = [2, 3, WORDS.index(word), 4]
            answer, _ = greedy(model, prompt, max_new_tokens=4, stop_ids={1})
            right += answer == (WORDS.index(opposite),)
            nll += negative_log_likelihood(model, prompt, [WORDS.index(opposite), 1])
        assert found[name, "exact_match"] == pytest.approx(right / 8)
        assert found[name, "perplexity"] == pytest.approx(torch.tensor(nll / 16).exp().item(), rel=1e-4)
    assert found["good", "exact_match"] == 1.0


def test_answers_can_be_searched_for_with_beams(folder: Path) -> None:
    evaluated("runs/poor", "--beams", "3")
    kept = read_evaluation(folder / "runs/poor/evaluation.json")
    assert kept.provenance["Answers"].startswith("best of 3 beams, at most 4 tokens")
    base = load_base("base")
    model = PeftModel.from_pretrained(base.model, "runs/poor/adapter")
    for item, answer in zip(kept.items, kept.result("poor").answers, strict=True):
        prompt = [2, 3, WORDS.index(item.prompt.split()[2]), 4]
        tokens = beam_search(model, prompt, max_new_tokens=4, beams=3, end_id=1)
        assert answer.text == base.tokenizer.decode(tokens)


def test_answers_can_be_held_to_a_schema_and_leave_the_manifest_alone(folder: Path) -> None:
    (folder / "true.json").write_text('{"const": true}')
    before = open_adapter("runs/good/adapter").manifest
    free = scores(evaluated("runs/good", "--schema", "true.json", "--metrics", "json_valid"))
    assert free["good", "json_schema"] == 0.0
    held = scores(evaluated("runs/good", "--schema", "true.json", "--constrained", "--metrics", "json_valid"))
    assert held["good", "json_valid"] == held["good", "json_schema"] == 1.0
    kept = read_evaluation(folder / "runs/good/evaluation.json")
    assert {answer.text for answer in kept.result("good").answers} == {"true"}
    assert kept.provenance["Answers"].endswith("held to true.json")
    after = open_adapter("runs/good/adapter").manifest
    assert after.scores == {"json_valid": 0.0, "json_schema": 0.0} != before.scores


def test_the_table_and_the_verdict_fit_sixty_columns(folder: Path) -> None:
    result = manytune(
        "evaluate", "runs/good", "runs/poor", "--max-new-tokens", "4", "--metrics", "exact_match,rouge1"
    )
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert max(map(len, lines)) <= 60
    assert lines[0].split() == ["base", "good", "poor"]
    row = lines.index(next(line for line in lines if line.startswith("Exact match")))
    assert "1.000 ▲" in lines[row]
    assert "0.631–1.000" in lines[row + 1]
    text = " ".join(result.stdout.split())
    assert "▲ good is better than base: Exact match 1.000 against 0.000, a difference of +1.000" in text
    claim = "○ poor shows no clear difference from base"
    assert f"{claim}, but 2 of poor's 8 answers are loops or empty: Exact match" in text
    assert "8 prompts, the same for every system." in text


def test_a_run_keeps_the_whole_evaluation_and_its_manifest_the_scores(folder: Path) -> None:
    found = evaluated("runs/good", "runs/poor")
    assert found["written"] == ["runs/good/evaluation.json", "runs/poor/evaluation.json"]
    kept = read_evaluation(folder / "runs/poor/evaluation.json")
    assert [result.name for result in kept.results] == ["base", "poor"]
    assert kept.items[0].prompt == "Opposite of hot :"
    assert len(kept.result("poor").answers) == 8
    assert len(kept.result("poor").curves.training) == 1
    assert kept.result("poor").cost.trainable_params == found["results"][2]["cost"]["trainable_params"] > 0
    manifest = open_adapter("runs/good/adapter").manifest
    assert manifest is not None
    assert manifest.scores["exact_match"] == 1.0


def test_a_limited_evaluation_asks_the_first_prompts_and_leaves_the_manifest_alone(folder: Path) -> None:
    before = (folder / "runs/good/adapter/manifest.json").read_text()
    found = evaluated("runs/good", "--limit", "3", "--metrics", "bleu")
    assert found["items"] == 3
    assert (folder / "runs/good/adapter/manifest.json").read_text() == before


def test_an_adapter_without_a_run_is_scored_on_rows_that_are_named(folder: Path) -> None:
    shutil.move("runs/good/adapter", "opposites")
    (folder / "other.jsonl").write_text(rows(("hot", "cold"), ("hot", "small")))
    found = evaluated("opposites", "--data", "other.jsonl", "--metrics", "exact_match")
    assert found["items"] == 1  # one prompt with two references
    assert scores(found)["opposites", "exact_match"] == 1.0
    assert found["written"] == []


def test_a_report_is_written_where_it_is_asked_for(folder: Path) -> None:
    found = evaluated("runs/good", "--report", "report.html", "--metrics", "rouge1")
    assert "report.html" in found["written"]
    assert "good is better than base" in (folder / "report.html").read_text()


def test_the_base_is_untouched_between_adapters(folder: Path) -> None:
    together = scores(evaluated("runs/good", "runs/poor", "--metrics", "perplexity"))
    alone = scores(evaluated("runs/poor", "--metrics", "perplexity"))
    assert together["poor", "perplexity"] == alone["poor", "perplexity"]


def test_adapters_that_were_trained_on_other_prompts_are_not_compared(folder: Path) -> None:
    manifest = Path("runs/poor/adapter/manifest.json")
    manifest.write_text(manifest.read_text().replace("Opposite of {{ word }} :", "{{ word }} is"))
    result = manytune("evaluate", "runs/good", "runs/poor", "--data", "test.jsonl")
    assert result.exit_code == 1
    assert "good and poor would be asked different things: their templates differ" in " ".join(
        result.stderr.split()
    )


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["runs/none"], 1, "runs/none: there is no such directory"),
        (["runs/good", "--metrics", "rogue1"], 2, "unknown metric 'rogue1'. Did you mean rouge1?"),
        (["runs/good", "--data", "none.jsonl"], 1, "none.jsonl"),
        (["runs/good", "--report", "no/report.html"], 2, "there is no directory no"),
        (["runs/good", "--base", "elsewhere/base"], 1, "elsewhere/base"),
        (["runs/good", "--constrained"], 2, "it holds answers to --schema; give that, too"),
        ([], 2, "name a run or an adapter"),
        (["runs/good", "--metrics", "recorded"], 2, "answers that are made here have no recorded score"),
    ],
)
def test_mistakes_are_named(folder: Path, arguments: list[str], status: int, message: str) -> None:
    result = manytune("evaluate", *arguments)
    assert result.exit_code == status
    assert message in " ".join(result.stderr.replace("│", " ").split())


def test_without_test_rows_in_the_recipe_they_are_asked_for(folder: Path) -> None:
    manifest = Path("runs/good/adapter/manifest.json")
    manifest.write_text(manifest.read_text().replace('"test": "test.jsonl"', '"test": null'))
    result = manytune("evaluate", "runs/good")
    assert result.exit_code == 1
    assert "good's recipe sets no test rows aside (data.test); give some with --data" in " ".join(
        result.stderr.split()
    )


# generate


def test_fields_go_through_the_adapters_own_template_and_one_answer_is_bare_text(folder: Path) -> None:
    result = manytune("generate", "--adapter", "runs/good", "--field", "word=wet")
    assert (result.exit_code, result.stdout) == (0, "dry\n")


def test_a_prompt_is_the_users_message_unchanged(folder: Path) -> None:
    result = manytune("generate", "Opposite of new :", "--adapter", "runs/good/adapter")
    assert (result.exit_code, result.stdout) == (0, "old\n")


def test_several_adapters_and_the_base_answer_side_by_side(folder: Path) -> None:
    result = manytune(
        "generate", "--adapter", "runs/good", "--adapter", "runs/poor", "--with-base", "--field", "word=big",
        "--max-new-tokens", "2",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    headings = [
        line.split(" (")[0] for line in result.stdout.splitlines() if line[:4] in ("base", "good", "poor")
    ]
    assert headings == ["base", "good", "poor"]
    assert "good\nsmall\n" in result.stdout


def test_a_file_of_rows_gives_an_answer_a_row(folder: Path) -> None:
    result = manytune(
        "generate",
        "--adapter",
        "runs/good",
        "--with-base",
        "--file",
        "test.jsonl",
        "--json",
        "--max-new-tokens",
        "3",
    )
    found = json.loads(result.stdout)
    assert [one["where"] for one in found] == [f"test.jsonl:{row}" for row in range(1, 9)]
    assert [answer["system"] for answer in found[0]["answers"]] == ["base", "good"]
    answers = [one["answers"][1] for one in found]
    assert [(answer["text"], answer["finished"]) for answer in answers[:2]] == [
        ("cold", "stop"),
        ("small", "stop"),
    ]


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["hot"], 2, "name a run, or an adapter by its directory or its name in the store"),
        (["--adapter", "runs/good"], 2, "give one of PROMPT, --field and --file"),
        (
            ["hot", "--adapter", "runs/good", "--field", "word=hot"],
            2,
            "give one of PROMPT, --field and --file",
        ),
        (["--adapter", "runs/good", "--field", "word"], 2, "expected NAME=VALUE, found 'word'"),
        (["--adapter", "runs/good", "--field", "wrod=hot"], 1, "good's template: "),
    ],
)
def test_mistakes_in_asking_are_named(folder: Path, arguments: list[str], status: int, message: str) -> None:
    result = manytune("generate", *arguments)
    assert result.exit_code == status
    assert message in " ".join(result.stderr.replace("│", " ").split())


def test_an_adapter_without_a_manifest_answers_prompts_but_has_no_template(folder: Path) -> None:
    Path("runs/good/adapter/manifest.json").unlink()
    answer = manytune("generate", "Opposite of new :", "--adapter", "runs/good/adapter", "--base", "base")
    assert (answer.exit_code, answer.stdout) == (0, "old\n")
    refused = manytune("generate", "--field", "word=new", "--adapter", "runs/good/adapter", "--base", "base")
    assert refused.exit_code == 1
    assert "doesn't say which prompt template it was trained with" in " ".join(refused.stderr.split())
