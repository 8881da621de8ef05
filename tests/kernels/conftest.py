import pytest
import torch

from manytune.kernels.build import load_kernels


@pytest.fixture
def library():
    """The compiled kernels; a machine that should have them and hasn't fails."""
    return load_kernels().loaded()


@pytest.fixture
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)
