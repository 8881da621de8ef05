"""Settings that every test shares."""

import gc
import os
from collections.abc import Iterator

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
# torch.compile makes plain C++ in this process. Otherwise it starts a pool of compiling processes, tries out one set of
# vector instructions after the other, and the C++ compiler takes several times as long over them.
os.environ["TORCHINDUCTOR_COMPILE_THREADS"] = "1"
os.environ["TORCHINDUCTOR_VEC_ISA_OK"] = "0"
# Under pytest-xdist two workers share two cores; a second thread each, here or in a process that a test starts, would
# slow both down many times.
os.environ.setdefault("OMP_NUM_THREADS", "1")

from functools import cache, partial
from types import SimpleNamespace

import accelerate.utils.imports
import accelerate.utils.memory
import pytest
import torch
import typer.testing

from manytune.cli import main as command_line

# Each call of a command in a test would make all sixty commands again.
command_line.build_app = cache(command_line.build_app)
typer.testing._get_command = cache(typer.testing._get_command)

torch.set_num_threads(1)

# For each seed that it can't give a device yet, torch keeps the stack as text, which takes a hundred times as long as
# seeding; and each training asks a dozen times which packages are installed.
for device in (torch.cuda, torch.xpu, torch.mtia):
    device.traceback = SimpleNamespace(format_stack=list)  # type: ignore[attr-defined]
accelerate.utils.imports._is_package_available = cache(accelerate.utils.imports._is_package_available)

# Each training begins with a full garbage collection, through all that fixtures and libraries keep. What tests leave
# behind is in the younger generations.
accelerate.utils.memory.gc = SimpleNamespace(collect=partial(gc.collect, 1))  # type: ignore[assignment]


# A flush waits for the disk, for the sake of machines that lose their power. tests/test_atomic.py has the real one.
os.fsync = lambda descriptor: None


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Iterator[None]:
    """Leave what imports and collection make out of garbage collection: a million objects that live until the end."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.collect()
        gc.freeze()
        gc.set_threshold(
            20_000
        )  # models and their layers are many small objects, and few of them are garbage
        gc.enable()
