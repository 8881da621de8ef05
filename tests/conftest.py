"""Settings that every test shares."""

import gc
import os

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

import torch

# Under pytest-xdist two workers share two cores; a second torch thread each would slow both down many times.
torch.set_num_threads(1)


def pytest_collection_finish() -> None:
    """Leave what imports and collection made out of garbage collection.

    Each training begins with a full one (accelerate's `free_memory`), which would go through a million objects of
    libraries and tests that live until the end.
    """
    gc.collect()
    gc.freeze()
