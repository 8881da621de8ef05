"""`training.compile`: a model's repeated layers run through `torch.compile`, its other parts as they are.

All layers of a kind share one compiled form, whatever the number of rows. What a compiled layer saves are passes over
memory between the matrix products; it costs the compiler's time once. The packed attention function stays outside of
it: its rectangles change from batch to batch.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from manytune.errors import RunError
from manytune.layer_forwards import uncompiled
from manytune.training.batches.batch import base_model


@contextmanager
def compiled_layers(
    model: nn.Module, first_loss: Callable[[], Tensor], *, enabled: bool
) -> Iterator[float | None]:
    """Run the model's layers compiled inside the `with` block.

    The first batch is run both ways before anything is trained: that compiles the layers outside the clock of the
    steps, and shows that they compute the same loss. No weight, gradient or random state is left changed.

    Args:
        model: In the mode, on the device and with the attention it will train with.
        first_loss: Runs the model on a batch and gives the loss.
        enabled: If not, nothing happens.

    Yields:
        Seconds until the compiler was done; None if it isn't enabled.

    Raises:
        RunError: No part of the model is known to be a layer, the compiler isn't there or fails, or the compiled
            layers give another loss.
    """
    if not enabled:
        yield None
        return
    from torch._inductor import config as inductor  # imported here, since it takes seconds

    layers = _layers(model)
    with torch.random.fork_rng():
        expected = float(first_loss().detach())
    started = time.perf_counter()
    with uncompiled(layers), inductor.patch(fallback_random=True):  # dropout as without compiling
        for layer in layers:
            layer.compile(dynamic=True)
        found = _run_once(model, first_loss)
        seconds = time.perf_counter() - started
        tolerance = 1e3 * max(torch.finfo(base_model(model).dtype).eps, torch.finfo(torch.float32).eps)
        if not abs(found - expected) <= tolerance * abs(expected):
            raise RunError(
                f"the compiled layers give a loss of {found:.6g} on the first batch, and {expected:.6g} without "
                "compiling, so they compute something else. Set training.compile to false."
            )
        yield seconds


def repeated_layers(model: nn.Module) -> list[nn.Module]:
    """The layers that the base says it repeats; none if it doesn't say."""
    base = base_model(model)
    kinds = set(base._no_split_modules or ())
    return [module for module in base.modules() if type(module).__name__ in kinds]


def _layers(model: nn.Module) -> list[nn.Module]:
    layers = repeated_layers(model)
    if layers:
        return layers
    kind = type(base_model(model)).__name__
    raise RunError(
        f"training.compile: {kind} doesn't say which of its modules are its layers, so there is "
        "nothing to compile. Set training.compile to false."
    )


def _run_once(model: nn.Module, first_loss: Callable[[], Tensor]) -> float:
    """Forward and backward; both are compiled when they are first needed."""
    from torch._inductor.runtime.cache_dir_utils import cache_dir

    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    try:
        with torch.random.fork_rng(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the compiler's own, about how it looks at tensors
            loss = first_loss()
            torch.autograd.grad(loss, trained, allow_unused=True)
    except torch._dynamo.exc.TorchDynamoException as error:
        cause = str(error).strip().splitlines()[0]
        raise RunError(
            f"training.compile: torch.compile fails on this model or machine: {cause}. On CPU it needs a C++ compiler "
            f"(g++ or clang++), and one that was interrupted may have left broken files in {cache_dir()}: "
            "delete them. Or set training.compile to false."
        ) from error
    return float(loss.detach())
