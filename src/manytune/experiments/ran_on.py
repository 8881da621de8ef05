"""Which machine and which device a trial ran on."""

from __future__ import annotations

import os
import socket

import torch

from manytune.evaluation.records import RanOn


def ran_on(device: torch.device) -> RanOn:
    """This machine, and a device of it."""
    name = f"{device} ({torch.cuda.get_device_name(device)})" if device.type == "cuda" else str(device)
    return RanOn(socket.gethostname(), name, os.environ.get("CUDA_VISIBLE_DEVICES"))
