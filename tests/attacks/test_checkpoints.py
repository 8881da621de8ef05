"""Whatever becomes of a checkpoint's files, a whole one is continued from, or the run is refused in a sentence."""

from __future__ import annotations

import json
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tests.attacks.mutation import cases, hostile, mutated
from tests.training.tiny_run import lora, weights_digest
from transformers import TrainerState

from manytune.errors import RunError
from manytune.training.loop.counters import Counters
from manytune.training.resume import Position, latest_checkpoint, save_checkpoint


def write(directory: Path) -> dict[int, str]:
    """Two checkpoints of a tiny run, and the digest of the trained weights at each."""
    model = lora()
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=0.01)
    lr_scheduler = torch.optim.lr_scheduler.LinearLR(optimizer)
    digests = {}
    for step in (1, 2):
        for parameter in parameters:
            parameter.grad = torch.full_like(parameter, float(step))
        optimizer.step()
        lr_scheduler.step()
        save_checkpoint(
            directory,
            model=model,
            optimizer=optimizer,
            lr_scheduler=lr_scheduler,
            trainer_state=TrainerState(global_step=step),
            position=Position(step=step, counters=Counters(), step_seconds=1.0, seconds=1.0),
            identity={"rows": "abc"},
        )
        digests[step] = weights_digest(model)
    return digests


def flipped(draw: random.Random, file: Path) -> None:
    content = bytearray(file.read_bytes())
    for _ in range(draw.choice([1, 1, 8])):
        content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
    file.write_bytes(content)


def changed_json(draw: random.Random, file: Path) -> None:
    json_file = file if file.suffix == ".json" else file.with_name("state.json")
    json_file.write_text(json.dumps(mutated(draw, json.loads(json_file.read_text()))))


def replaced(draw: random.Random, file: Path) -> None:
    file.write_bytes(
        draw.choice([b"", b"{}", b"[", b"null", draw.randbytes(300), json.dumps(hostile(draw)).encode()])
    )


def swapped(draw: random.Random, file: Path) -> None:
    shutil.copyfile(draw.choice(sorted(file.parent.iterdir())), file.with_name("copy"))
    file.with_name("copy").replace(file)


def of_another_step(draw: random.Random, file: Path) -> None:
    other = file.parent.with_name("step-00000001") / file.name
    if other.is_file() and other != file:
        shutil.copyfile(other, file)


def no_plain_file(draw: random.Random, file: Path) -> None:
    file.unlink()
    draw.choice(
        [
            os.mkdir,
            lambda path: path.symlink_to("nowhere"),
            lambda path: path.symlink_to(path),
            lambda path: None,
        ]
    )(file)


DAMAGES: list[Callable[[random.Random, Path], None]] = [
    flipped,
    changed_json,
    replaced,
    swapped,
    of_another_step,
    no_plain_file,
    lambda draw, file: os.truncate(file, draw.randrange(file.stat().st_size)),
    lambda draw, file: os.truncate(file, file.stat().st_size + draw.choice([1, 1 << 22])),
    lambda draw, file: shutil.rmtree(file.parent),
]


@pytest.mark.timeout(900)
def test_any_damaged_checkpoint_is_passed_over_for_a_whole_one(tmp_path: Path) -> None:
    digests = write(tmp_path / "sound")
    continued = {0: 0, 1: 0, 2: 0}
    for case, draw in cases(50):
        directory = tmp_path / "damaged"
        shutil.rmtree(directory, ignore_errors=True)
        shutil.copytree(tmp_path / "sound", directory)
        for step in (1, 2) if draw.random() < 0.3 else (2,):
            files = sorted((directory / f"step-0000000{step}").iterdir())
            draw.choice(DAMAGES)(draw, draw.choice(files))
        try:
            found = latest_checkpoint(directory)
            step = 0 if found is None else found.position.step
            if found is not None:
                model = lora()
                found.restore_weights(model)
                assert weights_digest(model) == digests[step], f"case {case}"
        except RunError as error:
            assert str(directory) in str(error) and len(str(error)) < 2000, case
            step = 0
        except Exception as error:
            raise AssertionError(f"case {case}: {type(error).__name__}: {error}") from error
        continued[step] += 1
    print(
        f"\ncontinued from the last {continued[2]}, from the one before {continued[1]}, refused {continued[0]}"
    )
    assert continued[1] and continued[0]
