"""What answering costs, next to the other trade-offs; and the base with examples in its prompt, in every comparison."""

from dataclasses import replace

import pytest
from tests.experiments.tiny_experiment import Reported, experiment
from tests.store.adapters_made import make_adapter
from tests.store.tiny import save_tiny_base

from manytune.evaluation.report.tables import cost_table
from manytune.evaluation.wording import findings, mixed_sentence, prompting_sentence, verdict_of
from manytune.experiments.compare import compare
from manytune.experiments.inference_costs import inference_costs
from manytune.experiments.opening import open_workspace
from manytune.experiments.outputs import write_outputs
from manytune.experiments.runner import InTurn
from manytune.store.base import load_base


@pytest.fixture(scope="module")
def compared(tmp_path_factory):
    """A comparison of LoRA and IA3 with the base, with the usual prompts, and what it reported."""
    systems = {
        "LoRA": {"learning_rates": [0.03]},
        "IA3": {"method": {"name": "ia3"}, "learning_rates": [0.03]},
    }
    directory = tmp_path_factory.mktemp("costs")

    def again(**more):
        reported = Reported()
        wanted = experiment(directory, systems=systems, inference_cost=True, shots=[1, 5], limit=4, **more)
        return compare(open_workspace(wanted, reported), InTurn()), reported, wanted

    evaluation, reported, wanted = again()
    return evaluation, reported, wanted, again


def test_the_base_and_each_adapter_are_measured_merged_unmerged_and_mixed(compared):
    evaluation, *_ = compared
    forms = {(one.system, one.form) for one in evaluation.answering}
    assert {
        ("base", "base"),
        ("LoRA", "unmerged"),
        ("LoRA", "merged"),
        ("IA3", "unmerged"),
        ("IA3", "merged"),
    } <= forms
    mixed = next(one for one in evaluation.answering if one.form == "mixed")
    assert {"LoRA", "IA3"} <= set(mixed.system.split(", "))
    assert all(
        one.tokens_per_second > 0 and one.first_token_seconds > 0 and one.memory_bytes > 0
        for one in evaluation.answering
    )


def test_a_form_that_an_adapter_does_not_have_is_said_not_left_out_silently(tmp_path):
    base = load_base(str(save_tiny_base(tmp_path / "base")))
    adapter = make_adapter(tmp_path / "soft", base, method="prompt-tuning", num_virtual_tokens=2)
    lines = []
    costs = inference_costs(
        base,
        {"base": [(3, 4)]},
        {"soft": adapter},
        max_new_tokens=1,
        kept=tmp_path / "c.json",
        say=lines.append,
    )
    assert [(one.system, one.form) for one in costs] == [("base", "base"), ("soft", "unmerged")]
    (line,) = [line for line in lines if "soft" in line]
    assert line.startswith("soft isn't measured merged: ") and "merge" in line.removeprefix(
        "soft isn't measured merged"
    )


def test_one_table_has_the_five_trade_offs_of_every_system(compared):
    evaluation, _, wanted, _ = compared
    table = cost_table(evaluation, most_across=9)
    heads = [head.text for head, _ in table.rows]
    assert heads[:5] == [
        "Trained parameters", "Memory in training", "Training time", "Training tokens per second", "Quality, chrF",
    ]  # fmt: skip
    assert heads[5:8] == ["Answering, tokens per second", "Answering, first token", "Answering, memory"]
    assert [column.text for column in table.columns] == [result.name for result in evaluation.results]
    lora = [column.text for column in table.columns].index("LoRA")
    cells = dict((head.text, cells[lora]) for head, cells in table.rows)
    assert [note.split()[0] for note in cells["Answering, tokens per second"].notes][1:] == ["merged"]
    page, text, *_ = write_outputs(evaluation, wanted, title="t", command="{recipe}")
    assert "Quality and cost" in page.read_text() and "Quality and cost" in text.read_text()
    assert mixed_sentence(evaluation) in text.read_text()


def test_what_was_measured_is_kept_and_the_base_is_as_it_was(compared):
    evaluation, _, _, again = compared
    repeated, reported, _ = again()
    assert repeated == evaluation
    assert not any("measuring" in line or line.startswith("asking") for line in reported.lines)


def test_the_base_with_examples_is_in_every_comparison_where_they_fit(compared):
    evaluation, reported, *_ = compared
    names = [result.name for result in evaluation.results]
    assert names[:2] == ["base", "base-1"] and "LoRA" in names
    assert "base-5" not in names
    assert any("base-5 is left out: in" in line and "exceed the context" in line for line in reported.lines)
    assert "its first token comes after" in prompting_sentence(evaluation)


def test_a_base_that_degenerates_is_named_in_the_verdict(compared):
    evaluation, *_ = compared
    loops = tuple(replace(answer, text="Dialogue: " * 20) for answer in evaluation.results[0].answers)
    bad = replace(
        evaluation, results=(replace(evaluation.results[0], answers=loops), *evaluation.results[1:])
    )
    verdict = verdict_of(bad, bad.comparison("LoRA", "chrf"))
    assert "but 4 of base's 4 answers are loops or empty" in verdict
    assert all("4 of base's 4 answers" in one.verdict + one.claim for one in findings(bad))
