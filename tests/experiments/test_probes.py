"""What may be forgotten: the default probes, one's own, and that probes and rehearsal share nothing."""

import json

import pytest
from tests.store.tiny import LETTERS, save_tiny_base

from manytune.data.encoding.encode import Encoder
from manytune.errors import DataError
from manytune.experiments import general_text
from manytune.experiments.forgetting_recipe import ForgettingRecipe, ProbeRecipe
from manytune.experiments.probes import load_probes, question_probe, write_rehearsal
from manytune.store.base import load_base


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return load_base(str(save_tiny_base(tmp_path_factory.mktemp("base"))))


def encoder_of(base):
    return Encoder(base.tokenizer, max_length=None)


def test_the_default_probes_are_questions_and_running_text(base):
    questions, text = load_probes(ForgettingRecipe(passages=5), base, encoder_of(base))
    assert (questions.metric, text.metric) == ("contains", "perplexity")
    assert len(questions.questions) == 60
    assert len(text.passages) == 5
    # 32 tokens are given, and the base has 64 positions.
    assert all(len(one.prompt_ids) == len(one.completion_ids) == 32 for one in text.passages)


def test_a_question_may_have_several_right_answers(base):
    items = {item.prompt: item.references for item in question_probe(encoder_of(base)).items}
    assert items["Answer in a few words. How many days are in a week?"] == ("7", "seven")


def test_what_is_rehearsed_is_never_what_is_probed(tmp_path):
    write_rehearsal(tmp_path / "rehearsal.jsonl")
    rows = [json.loads(line) for line in (tmp_path / "rehearsal.jsonl").read_text().splitlines()]
    assert len(rows) >= 20
    probed = " ".join(general_text.probe_passages())
    assert not any(row["rest"][:80] in probed for row in rows)


def test_ones_own_text_and_questions(tmp_path, base):
    (tmp_path / "texts.jsonl").write_text(
        json.dumps({"body": LETTERS * 4}) + "\n" + json.dumps({"body": "a"})
    )
    (tmp_path / "facts.jsonl").write_text(json.dumps({"q": "ab", "a": "c"}) + "\n")
    probes = (
        ProbeRecipe(name="mine", file=str(tmp_path / "texts.jsonl"), text="body"),
        ProbeRecipe(name="facts", file=str(tmp_path / "facts.jsonl"), prompt="{{ q }}", completion="{{ a }}"),
    )
    text, facts = load_probes(ForgettingRecipe(defaults=False, probes=probes), base, encoder_of(base))
    assert [len(one.input_ids) for one in text.passages] == [64]  # the short one is left out
    assert facts.items[0].references == ("c",)


def test_what_cannot_be_probed_is_refused_with_the_place(tmp_path, base):
    file = tmp_path / "texts.jsonl"
    file.write_text(json.dumps({"body": "abc"}))
    short = ForgettingRecipe(defaults=False, probes=(ProbeRecipe(name="mine", file=str(file), text="body"),))
    with pytest.raises(DataError, match=r"texts\.jsonl: the probe 'mine' needs texts of at least 64 tokens"):
        load_probes(short, base, encoder_of(base))
    absent = ForgettingRecipe(defaults=False, probes=(ProbeRecipe(name="mine", file=str(file), text="text"),))
    with pytest.raises(DataError, match=r"texts\.jsonl:1: the probe 'mine' needs text in the field 'text'"):
        load_probes(absent, base, encoder_of(base))
