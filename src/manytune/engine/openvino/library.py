"""OpenVINO, imported without its telemetry: nothing is sent anywhere.

The package reports its import and its conversions to a service unless `openvino_telemetry` is missing. What is used
here is its core and its PyTorch frontend.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import torch

_TELEMETRY = "openvino_telemetry"


@contextmanager
def _without_telemetry() -> Iterator[None]:
    known = sys.modules.get(_TELEMETRY)
    sys.modules[_TELEMETRY] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        del sys.modules[_TELEMETRY]
        if known is not None:
            sys.modules[_TELEMETRY] = known


with _without_telemetry():
    ov = importlib.import_module("openvino")
    ops = importlib.import_module("openvino.opset13")
    node_types = importlib.import_module("openvino.op")
    pytorch_frontend = importlib.import_module("openvino.frontend.pytorch")
    _frontends = importlib.import_module("openvino.frontend")
    _factories = importlib.import_module("openvino.utils.node_factory")
    torch_decoder = importlib.import_module("openvino.frontend.pytorch.ts_decoder")


@cache
def core() -> Any:
    """What compiles graphs: one for the process, until it ends.

    OpenVINO's CPU plugin gives the thread that loads it a stack for signals, and puts the former one back when it is
    unloaded. Of two whose times overlap the second would put back one that is gone, and the next signal that Python
    handles, Ctrl-C or SIGTERM, would end the process with a segmentation fault.
    """
    return ov.Core()


def threads() -> dict[str, Any]:
    """What graphs are compiled with, so that they take torch's number of threads, each on any core.

    A thread on a core of its own would be on the same one as that of another server. OpenVINO keeps threads for graphs
    that are compiled later, so no graph of a process may ask for other ones.
    """
    return {"INFERENCE_NUM_THREADS": torch.get_num_threads(), "ENABLE_CPU_PINNING": False}


def node_factory(library: Path) -> Any:
    """What makes nodes of the operations in a library."""
    factory = _factories.NodeFactory()
    factory.add_extension(library)
    return factory


def load_frontend() -> Any:
    """What converts torch's traces."""
    return _frontends.FrontEndManager().load_by_framework("pytorch")
