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

import pytest
import torch

# Under pytest-xdist two workers share two cores; a second torch thread each would slow both down many times.
torch.set_num_threads(1)


# A flush waits for the disk, for the sake of machines that lose their power. tests/test_atomic.py has the real one.
os.fsync = lambda descriptor: None


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Iterator[None]:
    """Leave what imports and collection make out of garbage collection.

    Each training begins with a full one (accelerate's `free_memory`), which would go through a million objects of
    libraries and tests that live until the end.
    """
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
