"""Code written for HF PEFT runs with nothing changed but its import, and prints the same."""

import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).with_name("ordinary_usage.py")


def printed(source: str) -> list[str]:
    ran = subprocess.run(
        [sys.executable, "-c", source], capture_output=True, text=True, cwd=Path(__file__).parents[2]
    )
    assert ran.returncode == 0, ran.stderr
    return ran.stdout.splitlines()


def test_a_script_of_ordinary_peft_usage_prints_the_same_with_manytune_imported_as_peft() -> None:
    source = SCRIPT.read_text()
    assert source.count("\nimport peft\n") == 1
    theirs = printed(source)
    mine = printed(source.replace("\nimport peft\n", "\nimport manytune as peft\n"))
    assert mine == theirs
    assert len(mine) > 35
