"""ACLSum's files, read without its package's code."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from manytune.data.readers import read
from manytune.data.templates import PromptTemplate, render_all
from manytune.demo import aclsum
from manytune.demo.aclsum import COMPLETION, GROUP_BY, PROMPT, QUESTIONS, Split, read_papers, write_rows
from manytune.errors import DataError

LINE = {
    "id": "P00-0001",
    "title": "A title",
    "summary": {"challenge": " Hard . ", "approach": "They try .", "outcome": "It works ."},
    "sentences": {"abstract": ["One .", "Two ."], "introduction": ["Not this ."], "conclusion": []},
    "highlights": {},
}


def directory_with(tmp_path: Path, text: str) -> Path:
    (tmp_path / "test.jsonl").write_text(text)
    return tmp_path


# The numbers of Takeshita et al., table 1.
@pytest.mark.parametrize(("split", "count"), [("train", 100), ("validation", 50), ("test", 100)])
def test_the_papers_own_split(split: Split, count: int) -> None:
    papers = read_papers(split)
    assert len({paper.name for paper in papers}) == count
    assert all(paper.abstract and set(paper.answers) == set(QUESTIONS) for paper in papers)


def test_no_paper_is_in_two_parts() -> None:
    names = [paper.name for split in ("train", "validation", "test") for paper in read_papers(split)]  # type: ignore[arg-type]
    assert len(set(names)) == 250


def test_a_paper_is_its_abstract_and_three_answers(tmp_path: Path) -> None:
    (paper,) = read_papers("test", directory=directory_with(tmp_path, json.dumps(LINE) + "\n"))
    assert paper.abstract == "One . Two ."
    assert paper.answers["challenge"] == "Hard ."
    assert [row["aspect"] for row in paper.rows()] == ["challenge", "approach", "outcome"]


@pytest.mark.parametrize(
    ("text", "found"),
    [("{", "JSONDecodeError"), ("[]", "TypeError"), ('{"id": "x"}', "KeyError: 'summary'")],
)
def test_a_damaged_line_is_named_with_what_to_do(tmp_path: Path, text: str, found: str) -> None:
    directory = directory_with(tmp_path, f"{json.dumps(LINE)}\n{text}\n")
    with pytest.raises(DataError, match=f"test.jsonl:2: expected a paper of ACLSum.*{found}.*pip install"):
        read_papers("test", directory=directory)


def test_without_the_package_the_error_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(aclsum, "_PACKAGE", "no_such_package_as_this")
    with pytest.raises(DataError, match=r"pip install --no-deps .*aclsum"):
        read_papers("test")


def test_the_packages_code_is_not_run() -> None:
    script = (
        "import sys\nfrom manytune.demo.aclsum import read_papers\nread_papers('test')\n"
        "print('aclsum' in sys.modules)"
    )
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert ran.stdout == "False\n"


def test_the_rows_written_make_prompts_that_share_the_document(tmp_path: Path) -> None:
    paper = read_papers("validation")[0]
    write_rows(tmp_path / "rows.jsonl", [paper])
    template = PromptTemplate(PROMPT, COMPLETION, group_by=GROUP_BY)
    examples = render_all(template, read(str(tmp_path / "rows.jsonl")).kept).kept
    assert [example.group for example in examples] == [paper.name] * 3
    for example, (aspect, question) in zip(examples, QUESTIONS.items(), strict=True):
        assert example.segments[0].text == f"{paper.abstract}\n\n{question}"
        assert example.completion == paper.answers[aspect]
