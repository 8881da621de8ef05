"""`manytune train` on two processes as people start it, but for what importing takes in each of them."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file
from tests.experiments.forked import Forked
from tests.forked_python import forked_python
from tests.random_cases import DEEP, some
from tests.training.tiny_run import recipe_content

from manytune.training.distributed.launchers import Launched, launched
from manytune.training.recipe import load_recipe
from manytune.training.run import run

WAYS = {
    "--processes": ["-P", "-m", "manytune", "train", "--processes", "2"],
    "torchrun": ["-m", "torch.distributed.run", "--nproc-per-node", "2", "-m", "manytune", "train"],
    "accelerate launch": [
        *("-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1"),
        *("--main_process_port", "0", "--mixed_precision", "no", "--dynamo_backend", "no"),
        *("-m", "manytune", "train"),
    ],
}
if DEEP:
    WAYS["accelerate launch, FSDP2"] = [
        *("-m", "accelerate.commands.launch", "--use_fsdp", "--fsdp_version", "2", "--num_processes", "2"),
        *("--num_machines", "1", "--main_process_port", "0", "--mixed_precision", "no"),
        *("--dynamo_backend", "no", "-m", "manytune", "train"),
    ]


def started(
    *arguments: str, python: Path | str = sys.executable, **environment: str
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [python, *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "100", **environment},
    )


def write_recipe(directory: Path) -> Path:
    content = recipe_content(directory, learning_rate=1e-3)
    content["method"]["lora_dropout"] = 0.0  # type: ignore[index]
    (directory / "recipe.yaml").write_text(yaml.safe_dump(content))
    return directory / "recipe.yaml"


@pytest.mark.slow
@pytest.mark.parametrize("way", some(list(WAYS), "--processes"))
def test_each_way_to_start_two_processes_trains_what_one_does(way: str, tmp_path: Path) -> None:
    expected = run(load_recipe(write_recipe(tmp_path / "alone")))
    with forked_python() as python:
        ran = started(*WAYS[way], str(write_recipe(tmp_path / "both")), "--json", python=python)
    assert ran.returncode == 0, ran.stderr
    found = json.loads(ran.stdout)  # one process prints
    directory = tmp_path / "both" / "run"
    assert sorted(entry.name for entry in directory.iterdir()) == [
        "adapter",
        "environment.json",
        "log.jsonl",
        "recipe.yaml",
        "scores.json",
    ]
    ran_with = json.loads((directory / "environment.json").read_text())
    assert (ran_with["processes"], ran_with["sharded"]) == (2, "FSDP2" in way)
    steps = [
        entry
        for entry in map(json.loads, (directory / "log.jsonl").read_text().splitlines())
        if "loss" in entry
    ]
    assert (found["steps"], steps[-1]["epoch"]) == (12, 2.0)
    assert found["validation_loss"] == pytest.approx(expected.training.validation_loss, abs=1e-6)
    assert [step["loss"] for step in steps] == pytest.approx(
        [report.loss for report in expected.training.step_reports], abs=1e-6
    )
    weights = load_file(expected.adapter / "adapter_model.safetensors")
    for name, value in load_file(directory / "adapter" / "adapter_model.safetensors").items():
        torch.testing.assert_close(value, weights[name], atol=1e-5, rtol=0)
    assert len(re.findall("18 rows to train on", ran.stderr)) == 1
    assert "Warning" not in ran.stderr


def on_two_machines(recipe: Path, *options: str) -> list[tuple[int, str, str]]:
    """Status and output of two launchers, each in a directory of its own, in which the recipe's paths mean its own."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    machines = []
    for rank in (0, 1):
        own = recipe.parent / f"machine-{rank}"
        own.mkdir(exist_ok=True)
        command = [sys.executable, "-m", "torch.distributed.run", "--nnodes", "2", "--node-rank", str(rank)]
        command += ["--nproc-per-node", "1", "--master-addr", "127.0.0.1", "--master-port", str(port)]
        command += ["-m", "manytune", "train", str(recipe), "--json", *options]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "100"}
        machines.append(
            subprocess.Popen(
                command,
                cwd=own,
                env=environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
    said = [machine.communicate(timeout=300) for machine in machines]
    return [(machine.returncode, *one) for machine, one in zip(machines, said, strict=True)]


if DEEP:

    def test_launchers_of_two_machines_train_what_one_process_does_and_resume_where_both_see_the_run(
        tmp_path: Path,
    ) -> None:
        expected = run(load_recipe(write_recipe(tmp_path / "alone")))
        recipe = write_recipe(tmp_path / "both")
        recipe.write_text(yaml.safe_dump({**yaml.safe_load(recipe.read_text()), "output": "run"}))
        (first, found, said), (second, *nothing) = on_two_machines(recipe, "--keep-checkpoints")
        assert (first, second) == (0, 0), said
        assert json.loads(found)["validation_loss"] == pytest.approx(
            expected.training.validation_loss, abs=1e-6
        )
        assert nothing[0] == "" and not (recipe.parent / "machine-1" / "run").exists()
        (recipe.parent / "machine-0" / "run" / "scores.json").unlink()
        ended = on_two_machines(recipe, "--resume")
        assert [status for status, *_ in ended] == [1, 1]
        assert [said.count("error: process 1 of 2 doesn't see /") for *_, said in ended] == [1, 1]
        (recipe.parent / "machine-1" / "run").symlink_to(recipe.parent / "machine-0" / "run")
        assert [status for status, *_ in on_two_machines(recipe, "--resume")] == [0, 0]


@pytest.mark.parametrize("module", ["manytune", "manytune.cli.main"])
def test_the_command_is_a_module_too(module: str) -> None:
    ran = started("-m", module, "train", "--help")
    assert ran.returncode == 0 and "--processes" in ran.stdout
    ran = started("-m", module, "train", "absent.yaml", OMPI_COMM_WORLD_SIZE="2")
    assert ran.returncode == 1 and "error: mpirun started 2 processes" in ran.stderr


@pytest.mark.filterwarnings("ignore")  # of the launchers, in a process of their own
@pytest.mark.parametrize("way", ["torchrun", "accelerate launch"])
def test_what_a_launcher_says_to_its_processes_is_understood(way: str, tmp_path: Path) -> None:
    """Their trainings are in `make test-deep`; how processes train together doesn't hang on who started them."""
    script, found = tmp_path / "environment.py", tmp_path / "found"
    script.write_text(
        "import json, os, sys\n"
        "with open(f'{sys.argv[1]}/{os.environ[\"RANK\"]}', 'w') as file: json.dump(dict(os.environ), file)\n"
    )
    found.mkdir()
    own = WAYS[way][: WAYS[way].index("manytune") - 1]  # without `-m manytune train`
    assert Forked([sys.executable, *own, str(script), str(found)]).wait() == 0
    said = [launched(json.loads((found / str(rank)).read_text())) for rank in range(2)]
    assert said == [Launched(rank=rank, count=2, local_rank=rank) for rank in range(2)]
