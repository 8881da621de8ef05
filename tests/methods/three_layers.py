"""A base of three layers."""

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D


class Net(nn.Module):
    """Layers of different sizes, one of them stored transposed."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.lin, self.c1, self.last = nn.Linear(8, 6), Conv1D(10, 6), nn.Linear(10, 3, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.last(torch.tanh(self.c1(torch.tanh(self.lin(x)))))
        return result
