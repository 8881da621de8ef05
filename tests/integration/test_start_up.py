"""What a command imports before it answers, on which it depends how long one waits for it.

On the machine where this was written, each of these commands takes 0.2 to 0.6 s of computing, 1 to 2 ms a module.
"""

from pathlib import Path

import pytest
from tests.cli.light import run_each
from tests.store.adapters_made import make_adapter
from tests.store.tiny import save_tiny_base

from manytune.store.base import load_base
from manytune.store.store import AdapterStore

# From the least to the most, as they run in one process: the command, what it must not import, and how many modules
# there may be by then, a tenth more than there were when this was written.
LIBRARIES = {"numpy", "scipy", "sacrebleu", "matplotlib", "fastapi"}
COMMANDS = (
    (["--version"], {"pydantic", "yaml", "jinja2", *LIBRARIES}, 290),
    (["--help"], {"pydantic", "yaml", "jinja2", *LIBRARIES}, 290),
    (["adapters", "list"], {"yaml", *LIBRARIES}, 480),
    (["init", "absent.csv"], {"yaml", *LIBRARIES}, 500),
    (["train", "absent.yaml"], LIBRARIES, 570),
    (["train", "recipe.yaml", "--set", "training.lr=1"], LIBRARIES, 570),
    (["train", "recipe.yaml", "--set", "training.epochs=many"], LIBRARIES, 570),
    (["train", "recipe.yaml", "--set", "data.train=row.jsonl"], LIBRARIES, 580),
    (["train", "recipe.yaml", "--set", "data.prompt='{{ questions }}'"], LIBRARIES, 580),
    (["compare", "absent.yaml"], LIBRARIES, 580),
    (["compare", "recipe.yaml", "--set", "training.lr=1"], LIBRARIES, 580),
    (["init", "rows.jsonl", "--output", "new.yaml"], LIBRARIES, 600),
    (["compare", "recipe.yaml", "--set", "compare.limit=many"], LIBRARIES - {"numpy"}, 730),
)


def test_commands_import_little_before_they_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    base = load_base(str(save_tiny_base(tmp_path / "base")))
    AdapterStore(tmp_path / "adapters").add(make_adapter(tmp_path / "made", base), name="support")
    (tmp_path / "rows.jsonl").write_text('{"question": "a", "answer": "b"}\n' * 40)
    (tmp_path / "recipe.yaml").write_text(
        "base: base\ndata: {train: rows.jsonl, prompt: '{{ question }}', completion: '{{ answer }}'}\n"
    )
    found = run_each([command for command, *_ in COMMANDS])
    for (command, unwanted, most), ran in zip(COMMANDS, found, strict=True):
        assert not unwanted & set(ran.packages), (command, unwanted & set(ran.packages))
        assert ran.modules <= most, (command, ran.modules)
