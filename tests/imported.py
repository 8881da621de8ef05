"""What the processes of these tests need: imported once, by the server that they are forked from."""

import os

# As in tests/conftest.py, which this process doesn't read.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
# As the command has it in processes that train together, before it imports torch.
os.environ["TORCH_CPP_LOG_LEVEL"] = "ERROR"

import accelerate.utils  # noqa: F401
import transformers.models.llama.modeling_llama
import transformers.models.llama.tokenization_llama
import transformers.trainer  # noqa: F401

import manytune.experiments.compare
import manytune.server.adapters.watcher
import manytune.training.run  # noqa: F401
from manytune.methods import load_methods

load_methods()
