"""`manytune data`: what it prints, what it writes, and its exit statuses."""

import json
from pathlib import Path
from typing import Any

import pytest
from tests.word_base import word_tokenizer
from typer.testing import CliRunner

from manytune.cli.main import build_app

PROMPT = ["--prompt", "Summarize: {{ document }}", "--completion", "{{ summary }}"]
CHAT = (
    "{% for m in messages %}<user> {{ m.content }} <end> {% endfor %}"
    "{% if add_generation_prompt %}<user> {% endif %}"
)


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "60")
    return tmp_path


def write(name: str, *rows: dict[str, Any] | str) -> str:
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    Path(name).write_text("".join(f"{line}\n" for line in lines))
    return name


def row(number: int, **changes: Any) -> dict[str, Any]:
    return {"id": number, "document": f"text {number}", "summary": f"short {number}", **changes}


def data(*arguments: str) -> Any:
    return CliRunner().invoke(build_app(), ["data", *arguments])


def lines(result: Any) -> list[str]:
    return [" ".join(line.split()) for line in result.stdout.splitlines()]


@pytest.fixture
def base(folder: Path) -> str:
    """A directory with a tokenizer of one token a word, and the configuration that makes it a base."""
    words = ["<unk>", "<user>", "<end>", "Summarize:", "text", "short", *map(str, range(30))]
    word_tokenizer(
        words,
        unknown="<unk>",
        unk_token="<unk>",
        eos_token="<end>",
        additional_special_tokens=["<user>"],
        chat_template=CHAT,
    ).save_pretrained(folder / "base")
    (folder / "base" / "config.json").write_text('{"model_type": "llama"}')
    return "base"


# check


def test_check_passes_a_clean_file() -> None:
    result = data("check", write("train.jsonl", row(1), row(2)), *PROMPT)
    assert result.exit_code == 0
    assert lines(result)[:4] == [
        "train.jsonl: 2 rows",
        "0 can't be used",
        "0 equal to an earlier row",
        "0 same prompt as an earlier row",
    ]
    assert "prompt, characters 17 17 17 17" in lines(result)
    assert "Every row can be used." in lines(result)


def test_check_reports_what_is_wrong_and_fails() -> None:
    write(
        "train.jsonl",
        row(1),
        row(1),
        row(3, document="text 1"),
        row(4, summary=" "),
        "{",
        row(6, document=None),
    )
    result = data("check", "train.jsonl", *PROMPT)
    assert result.exit_code == 1
    text = " ".join(lines(result))
    for expected in [
        "train.jsonl: 6 rows",
        "3 can't be used",
        "1 equal to an earlier row",
        "2 same prompt as an earlier row",
        "1 empty: document",
        "1 empty: summary",
        "3 rows left out",
        "train.jsonl:4 the completion is empty",
        "train.jsonl:5 the line isn't valid JSON",
        "train.jsonl:6 the prompt template prints the field 'document', which is null here",
        "3 rows can't be used.",
    ]:
        assert expected in text


def test_check_of_a_list_that_a_template_joins_names_the_objects_in_it_instead_of_printing_them() -> None:
    messages = [{"role": "user", "content": "hi"}]
    write("train.jsonl", {"messages": messages, "summary": "s"})
    result = data(
        "check", "train.jsonl", "--prompt", "{{ messages | join(' ') }}", "--completion", "{{ summary }}"
    )
    assert result.exit_code == 1
    text = " ".join(lines(result))
    assert "Every row can be used" not in text
    assert "train.jsonl:1 the prompt template gives the field 'messages[0]'" in text
    assert "which is an object with role, content, to the filter 'join'" in text


def test_check_names_the_columns_of_a_conversation_that_a_named_template_does_not_use() -> None:
    write("train.jsonl", {"instruction": "i", "output": "o", "system": "s", "history": [["a", "b"]]})
    result = data("check", "train.jsonl", "--template", "alpaca")
    assert "part of the conversation: system (1 row), history (1 row)." in " ".join(lines(result))
    found = json.loads(data("check", "train.jsonl", "--template", "alpaca", "--json").stdout)
    assert found["files"][0]["unused"] == {"system": 1, "history": 1}


def test_check_finds_prompts_that_two_files_share() -> None:
    write("train.jsonl", row(1), row(2))
    write("test.jsonl", row(9, document="text  2"))
    result = data("check", "train.jsonl", "test.jsonl", *PROMPT)
    assert result.exit_code == 1
    assert "1 prompt in more than one file" in lines(result)
    assert "train.jsonl:2 = test.jsonl:1" in lines(result)


def test_check_without_a_template_examines_the_rows_and_says_so() -> None:
    result = data("check", write("train.jsonl", row(1), row(2)))
    assert result.exit_code == 0
    assert "document, characters 6 6 6 6" in lines(result)
    assert "Prompts weren't checked" in result.stdout


def test_check_counts_tokens_long_examples_and_special_tokens(base: str) -> None:
    write("train.jsonl", row(1), row(2, document="text " * 20), row(3, document="<end> text"))
    result = data("check", "train.jsonl", *PROMPT, "--base", base, "--max-length", "20")
    # Prompt: <user> Summarize: ... <end> <user>; completion: short 1 <end>.
    # The name of a token in a row is text: two words that the vocabulary doesn't have.
    assert "prompt, tokens 6 7 24 24" in lines(result)
    assert "completion, tokens 3 3 3 3" in lines(result)
    assert "together, tokens 9 10 27 27" in lines(result)
    assert "1 longer than 20 tokens" in lines(result)
    assert "1 spell a special token in the prompt" in lines(result)


def test_check_as_json_holds_everything(base: str) -> None:
    write("train.jsonl", row(1), "[]")
    result = data("check", "train.jsonl", *PROMPT, "--base", base, "--max-length", "8", "--json")
    found = json.loads(result.stdout)
    assert result.exit_code == 1
    assert found["passed"] is False
    (file,) = found["files"]
    assert file["rejected"] == [
        {"source": "train.jsonl", "row": 2, "reason": "expected an object with the row's fields, found []"}
    ]
    assert file["tokens"] == {"over_length": 1, "special_tokens": 0}
    assert file["lengths"]["together, tokens"]["maximum"] == 9


def test_check_shows_the_first_ten_broken_rows_and_counts_the_others() -> None:
    result = data("check", write("train.jsonl", row(1), *["{"] * 13))
    assert result.stdout.count("the line isn't valid JSON") == 10
    assert "and 3 more; --json lists all" in lines(result)


def test_check_takes_files_template_and_limit_from_a_recipe(base: str) -> None:
    write("train.jsonl", row(1))
    write("held_out.jsonl", row(1))
    Path("recipe.yaml").write_text(
        f"base: {base}\n"
        "data:\n"
        "  train: train.jsonl\n"
        "  validation: held_out.jsonl\n"
        "  prompt: 'Summarize: {{ document }}'\n"
        "  completion: '{{ summary }}'\n"
        "  max_length: 8\n"
    )
    result = data("check", "--recipe", "recipe.yaml")
    assert result.exit_code == 1
    assert "1 longer than 8 tokens" in lines(result)
    assert "train.jsonl:1 = held_out.jsonl:1" in lines(result)


# preview


def test_preview_marks_what_is_learned_in_the_text_that_the_model_sees(base: str) -> None:
    result = data("preview", write("train.jsonl", row(1), row(2)), *PROMPT, "--base", base, "--rows", "1")
    assert result.exit_code == 0
    assert lines(result)[0].startswith("train.jsonl:1 · 6 + 3 tokens")
    assert lines(result)[1] == "<user> Summarize: text 1 <end> <user>>>>short 1 <end><<<"
    assert "train.jsonl:2" not in result.stdout


def test_preview_of_a_recipe_encodes_as_training_will(base: str) -> None:
    write("train.jsonl", row(1))
    recipe = (
        "base: base\ndata: {train: train.jsonl, prompt: 'text {{ id }}', completion: short, chat: false}\n"
    )
    Path("recipe.yaml").write_text(recipe.replace("short", "'short {{ id }}'"))
    shown = json.loads(data("preview", "--recipe", "recipe.yaml", "--json").stdout)["shown"]
    assert shown[0]["parts"][0]["text"] == "text 1"


def test_preview_without_a_base_shows_the_templates_text() -> None:
    result = data("preview", write("train.jsonl", row(1)), *PROMPT, "--system", "Be brief.")
    shown = ["[system]", "Be brief.", "[user]", "Summarize: text 1", "[assistant]", ">>>short 1<<<"]
    assert lines(result)[1:7] == shown
    assert "With --base: its chat format" in result.stdout


def test_preview_as_json(base: str) -> None:
    result = data(
        "preview", write("train.jsonl", row(1), row(2, summary="")), *PROMPT, "--base", base, "--json"
    )
    found = json.loads(result.stdout)
    assert found["shown"] == [
        {
            "source": "train.jsonl",
            "row": 1,
            "parts": [
                {"text": "<user> Summarize: text 1 <end> <user>", "learned": False, "tokens": 6},
                {"text": "short 1 <end>", "learned": True, "tokens": 3},
            ],
            "truncated": False,
        }
    ]
    assert [rejected["row"] for rejected in found["rejected"]] == [2]


def test_preview_of_a_recipe_cuts_as_training_will(base: str) -> None:
    write("train.jsonl", row(1, document="text 1 text 2 text 3"))
    Path("recipe.yaml").write_text(
        f"base: {base}\ndata: {{train: train.jsonl, prompt: '{{{{ document }}}}', completion: '{{{{ summary }}}}', "
        "max_length: 8, overflow: truncate_prompt}\n"
    )
    result = data("preview", "--recipe", "recipe.yaml")
    assert "train.jsonl:1 · 5 + 3 tokens · cut" in lines(result)[0]
    assert lines(result)[1] == "<user> text 1 <end> <user>>>>short 1 <end><<<"


def test_preview_shows_control_characters_instead_of_obeying_them() -> None:
    result = data("preview", write("train.jsonl", row(1, document="\x1b[2Jgone")), *PROMPT)
    assert "Summarize: \\x1b[2Jgone" in result.stdout
    assert "\x1b" not in result.stdout


def test_preview_needs_a_template_and_names_the_fields() -> None:
    result = data("preview", write("train.jsonl", row(1)))
    assert result.exit_code == 1
    assert "The rows have the fields id, document, summary" in " ".join(result.stderr.split())


# split


def test_split_writes_every_row_once_into_a_new_directory() -> None:
    rows = [row(number) for number in range(20)]
    result = data("split", write("all.jsonl", *rows), "--validation", "0.2", "--test", "0.1")
    assert result.exit_code == 0
    assert lines(result) == [
        "14 all-split/train.jsonl",
        "4 all-split/validation.jsonl",
        "2 all-split/test.jsonl",
    ]
    written = [
        json.loads(line) for file in Path("all-split").iterdir() for line in file.read_text().splitlines()
    ]
    assert sorted(written, key=lambda fields: fields["id"]) == rows


def test_split_keeps_groups_together() -> None:
    write("all.jsonl", *(row(number, paper=f"p{number % 7}") for number in range(35)))
    result = data(
        "split", "all.jsonl", "--group-by", "paper", "--output", "parts", "--validation", "0.3", "--json"
    )
    assert json.loads(result.stdout)["rows"] == {"parts/train.jsonl": 25, "parts/validation.jsonl": 10}
    papers = [
        {json.loads(line)["paper"] for line in file.read_text().splitlines()}
        for file in Path("parts").iterdir()
    ]
    assert not set.intersection(*papers)


def test_split_keeps_rows_with_one_prompt_together() -> None:
    write("all.jsonl", *(row(number, document=f"text {number % 5}") for number in range(20)))
    data("split", "all.jsonl", *PROMPT, "--output", "parts", "--validation", "0.4")
    assert data("check", "parts/train.jsonl", "parts/validation.jsonl", *PROMPT).exit_code == 0


def test_split_refuses_broken_rows_unless_asked_to_skip_and_list_them() -> None:
    write("all.jsonl", *map(row, range(10)), "{", row(12, summary=""))
    refused = data("split", "all.jsonl", *PROMPT)
    assert refused.exit_code == 1
    assert "all.jsonl:11: the line isn't valid JSON" in " ".join(refused.stderr.split())
    assert not Path("all-split").exists()
    result = data("split", "all.jsonl", *PROMPT, "--on-error", "skip", "--json")
    assert [rejected["row"] for rejected in json.loads(result.stdout)["rejected"]] == [11, 12]


def test_split_overwrites_nothing() -> None:
    write("all.jsonl", *map(row, range(10)))
    Path("all-split").mkdir()
    result = data("split", "all.jsonl")
    assert result.exit_code == 1
    assert "all-split exists already" in result.stderr


def test_split_names_a_row_without_the_group() -> None:
    write("all.jsonl", row(1, paper="p"), row(2))
    result = data("split", "all.jsonl", "--group-by", "paper")
    assert "all.jsonl:2: group_by needs the field 'paper'" in " ".join(result.stderr.split())


# Usage


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["check"], "name at least one file, or a --recipe"),
        (["preview"], "name at least one file, or a --recipe"),
        (["split"], "name at least one file"),
        (["check", "x.jsonl", "--max-length", "9"], "tokens can be counted with a --base only"),
        (["check", "x.jsonl", "--base", "embedded"], "what the model sees needs --prompt and --completion"),
        (["split", "x.jsonl", "--validation", "1.5"], "Invalid value for '--validation'"),
    ],
)
def test_wrong_usage_is_status_2(arguments: list[str], expected: str) -> None:
    write("x.jsonl", row(1))
    result = data(*arguments)
    assert result.exit_code == 2
    assert expected in " ".join(result.stderr.replace("│", " ").split())


def test_half_a_template_is_an_error() -> None:
    result = data("check", write("train.jsonl", row(1)), "--prompt", "{{ document }}")
    assert result.exit_code == 1
    assert "prompt and completion go together; the completion is missing" in " ".join(result.stderr.split())


@pytest.mark.parametrize("command", [["check"], ["preview"], ["split", "--output", "parts"]])
def test_output_fits_a_narrow_terminal(command: list[str]) -> None:
    rows = [row(number, document=f"{number} " + "a long document " * 20) for number in range(12)]
    result = data(*command, write("training_data.jsonl", *rows), *PROMPT)
    assert result.exit_code == 0, result.stderr
    assert max(map(len, result.stdout.splitlines())) <= 60


# Conversations

USER, ANSWER = {"role": "user", "content": "text 1"}, {"role": "assistant", "content": "short 1"}
CHATS = [
    {
        "messages": [
            USER,
            ANSWER,
            {"role": "user", "content": "text 2"},
            {"role": "assistant", "content": "short 2"},
        ]
    },
    {"messages": [USER, USER, ANSWER]},
    {"messages": [{"role": "bot", "content": "x"}, ANSWER]},
]


def test_check_says_the_form_the_roles_and_what_is_odd_or_unusable() -> None:
    result = data("check", write("chat.jsonl", *CHATS))
    assert result.exit_code == 1
    text = " ".join(lines(result))
    for expected in [
        "OpenAI's messages (role, content)",
        "messages: user 4, assistant 3",
        "1 can't be used",
        "1 odd",
        "answers 1 1 2 2",
        "chat.jsonl:2 messages 1 and 2 are both the user's",
        "chat.jsonl:3 message 1 has the role 'bot'",
    ]:
        assert expected in text
    (found,) = json.loads(data("check", "chat.jsonl", "--json").stdout)["files"]
    assert (found["form"], found["roles"]) == ("openai", {"user": 4, "assistant": 3})
    assert found["odd"] == [
        {"source": "chat.jsonl", "row": 2, "what": "messages 1 and 2 are both the user's"}
    ]


def test_check_counts_the_tokens_that_are_learned(base: str) -> None:
    result = data("check", write("chat.jsonl", CHATS[0]), "--base", base)
    # <user> text 1 <end> <user> | short 1 <end> | <user> text 2 <end> <user> | short 2 <end>
    assert "given, tokens 10 10 10 10" in lines(result)
    assert "learned, tokens 6 6 6 6" in lines(result)


def test_check_says_that_a_template_without_tools_gets_them_as_text(base: str) -> None:
    tools = [{"type": "function", "function": {"name": "f", "parameters": {}}}]
    result = data("check", write("chat.jsonl", CHATS[0], {**CHATS[0], "tools": tools}), "--base", base)
    assert "1 row with tools: the base's template knows none, so they are written as text" in " ".join(
        lines(result)
    )


def test_preview_marks_each_answer(base: str) -> None:
    result = data("preview", write("chat.jsonl", CHATS[0]), "--base", base)
    assert lines(result)[0].startswith("chat.jsonl:1 · 10 + 6 tokens")
    shown = " ".join(lines(result)[1:3])
    assert (
        shown == "<user> text 1 <end> <user>>>>short 1 <end><<<<user> text 2 <end> <user>>>>short 2 <end><<<"
    )


def test_preview_without_a_base_marks_each_answer_too() -> None:
    result = data("preview", write("chat.jsonl", CHATS[0]))
    assert lines(result)[1:9] == [
        *("[user]", "text 1", "[assistant]", ">>>short 1<<<"),
        *("[user]", "text 2", "[assistant]", ">>>short 2<<<"),
    ]


def test_convert_writes_any_form_as_openais() -> None:
    turns = [{"from": "human", "value": "text 1"}, {"from": "gpt", "value": "short 1"}]
    result = data("convert", write("share.jsonl", {"system": "Be brief.", "conversations": turns}))
    assert result.exit_code == 0
    assert lines(result) == ["1 share.openai.jsonl"]
    written = json.loads(Path("share.openai.jsonl").read_text())
    assert written == {"messages": [{"role": "system", "content": "Be brief."}, USER, ANSWER]}
    again = data("convert", "share.jsonl")
    assert again.exit_code == 1
    assert "share.openai.jsonl exists already" in again.stderr


def test_convert_names_rows_that_it_cannot_read_or_leaves_them_out() -> None:
    write("chat.jsonl", *CHATS)
    refused = data("convert", "chat.jsonl")
    assert "chat.jsonl:3: message 1 has the role 'bot'" in " ".join(refused.stderr.split())
    assert not Path("chat.openai.jsonl").exists()
    result = data("convert", "chat.jsonl", "--on-error", "skip", "--output", "out.jsonl", "--json")
    found = json.loads(result.stdout)
    assert found["rows"] == {"out.jsonl": 2}
    assert [rejected["row"] for rejected in found["rejected"]] == [3]


def test_convert_needs_conversations() -> None:
    result = data("convert", write("train.jsonl", row(1)))
    assert result.exit_code == 1
    assert "the rows have the columns id, document, summary, which don't say" in " ".join(
        result.stderr.split()
    )


def test_split_keeps_conversations_with_one_prompt_together() -> None:
    rows = [
        {"messages": [{"role": "user", "content": f"q {n % 5}"}, ANSWER, USER, ANSWER]} for n in range(20)
    ]
    data("split", write("chat.jsonl", *rows), "--output", "parts", "--validation", "0.4")
    parts = [
        {json.loads(line)["messages"][0]["content"] for line in file.read_text().splitlines()}
        for file in Path("parts").iterdir()
    ]
    assert len(parts) == 2 and not set.intersection(*parts)


def test_the_cache_lists_its_entries_and_removes_them(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MANYTUNE_CACHE", str(folder / "cache"))
    assert "0 entries, 0.0 MB" in data("cache").stdout
    entry = folder / "cache" / "encoded" / "0123456789abcdef.safetensors"
    entry.parent.mkdir(parents=True)
    entry.write_bytes(b"x" * 2_000_000)
    assert "0123456789ab" in data("cache").stdout
    assert json.loads(data("cache", "--json").stdout)["entries"][0]["bytes"] == 2_000_000
    assert "removed 1 entry, 2.0 MB" in data("cache", "--clear").stdout
    assert not entry.exists()
