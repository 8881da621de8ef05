"""`manytune evaluate` on answers that were made elsewhere: a live server, files, and both next to runs."""

import json
from pathlib import Path

import pytest
from tests.cli.opposites import PAIRS, evaluated, manytune, scores
from tests.server.live import live
from tests.server.world import app_of

from manytune.store.base import load_base
from manytune.store.store import AdapterStore

TEXTS = "rouge1,rougeL,bleu,chrf,exact_match"


def without_likelihoods(found: dict) -> dict:
    return {key: value for key, value in scores(found).items() if key[1] != "perplexity"}


@pytest.mark.parametrize("api", ["chat", "completions"])
def test_a_live_servers_scores_are_those_of_the_local_run_to_the_digit(folder: Path, api: str) -> None:
    here = scores(evaluated("runs/good", "runs/poor", "--metrics", TEXTS))
    store = AdapterStore(folder / "store")
    for name in ("good", "poor"):
        store.add(Path(f"runs/{name}/adapter"), name=name)
    with live(app_of(load_base("base"), store, max_answer_tokens=8)) as server:
        asked = [
            "--endpoint", f"http://127.0.0.1:{server.port}/v1", "--model", "base", "--model", "good", "--model", "poor",
            "--data", "test.jsonl", "--prompt", "Opposite of {{ word }} :", "--completion", "{{ opposite }}",
            "--api", api, "--metrics", TEXTS,
        ]  # fmt: skip
        there = evaluated(*asked)
        assert scores(there) == here
        alongside = evaluated(
            "runs/good", *asked[:2], "--model", "good", "--metrics", "exact_match", "--api", api
        )
        assert scores(alongside)[f"good at 127.0.0.1:{server.port}", "exact_match"] == 1.0
    # What was recorded is all that is needed: the server is gone.
    assert scores(evaluated(*asked)) == here
    assert [one["verdict"] for one in there["comparisons"] if one["metric"] == "rouge1"] == [
        "better",
        "cannot tell",
    ]


def test_files_are_compared_with_each_other_and_with_runs(folder: Path) -> None:
    pairs = PAIRS + [(b, a) for a, b in PAIRS]
    for name, right in (("all", 8), ("half", 4)):
        rows = ({"id": a, "answer": b if n < right else "is"} for n, (a, b) in enumerate(pairs))
        Path(f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    rows = ["--data", "test.jsonl", "--prompt", "{{ word }}", "--completion", "{{ opposite }}"]
    found = evaluated("--answers", "first=half.jsonl", "--answers", "all.jsonl", *rows)
    assert scores(found)["first", "exact_match"] == 0.5 and scores(found)["all", "exact_match"] == 1.0
    assert {(one["system"], one["baseline"]) for one in found["comparisons"]} == {("all", "first")}
    assert ("all", "perplexity") not in scores(found)
    found = evaluated(
        "runs/good", "--answers", "half.jsonl", "--metrics", "exact_match", "--equivalence-margin", "0.1",
        "--equivalent-to", "good", "--report", "r.html",
    )  # fmt: skip
    assert [result["name"] for result in found["results"]] == ["base", "good", "half"]
    assert [one["verdict"] for one in found["equivalences"]] == ["worse"]
    assert "Within 10% of good" in Path("r.html").read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "name a run or an adapter, or give --answers or --endpoint"),
        (["--endpoint", "http://x"], "--endpoint and --model go together"),
        (["--answers", "a.jsonl", "--data", "test.jsonl"], "give --prompt and --completion"),
        (["--answers", "a.jsonl", "--prompt", "x"], "name the rows, too"),
        (["runs/good", "--prompt", "x"], "runs name their templates themselves"),
        (["runs/good", "--equivalent-to", "base"], "give --equivalence-margin, too"),
        (["runs/good", "--answers", "a.jsonl", "--metrics", "perplexity"], "have no likelihoods"),
    ],
)
def test_what_does_not_go_together_is_named(folder: Path, arguments: list[str], message: str) -> None:
    Path("a.jsonl").write_text('{"text": "x"}\n')
    result = manytune("evaluate", *arguments)
    assert result.exit_code == 2
    assert message in " ".join(result.stderr.replace("│", " ").split())
