"""Settings that every test shares."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

import torch

# Under pytest-xdist two workers share two cores; a second torch thread each would slow both down many times.
torch.set_num_threads(1)
