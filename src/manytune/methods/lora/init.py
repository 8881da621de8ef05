"""How A and B start.

The plain ways leave BA = 0. Two ways start from the base's weight W instead, and take what they found out of it, so
that W - s·BA + s·BA = W:

    PiSSA   A, B from the r largest singular values of W (Meng et al., arXiv 2404.02948)
    OLoRA   A, B from the QR decomposition of W          (Büyükakyüz, arXiv 2406.01775)
"""

from __future__ import annotations

import math
import re

import torch
from torch import Tensor, nn

from manytune.errors import ConfigError
from manytune.methods.lora.factor import draw_fresh

_PISSA = re.compile(r"pissa(?:_niter_(\d+))?")
_SKETCH_SEED = 0
_FROM_W = "takes A and B from a linear layer's weight"
_PLAIN = "is for linear layers only"


def is_known(init: bool | str) -> bool:
    """Whether `init_lora_weights` has a value that is implemented."""
    if isinstance(init, bool):
        return True
    return isinstance(init, str) and (
        init.lower() in ("gaussian", "orthogonal", "olora") or bool(_PISSA.fullmatch(init))
    )


def starts_from_weight(init: bool | str) -> bool:
    """Whether A and B come from the base's weight, which then changes while the adapter is in use."""
    return isinstance(init, str) and (init.lower() == "olora" or bool(_PISSA.fullmatch(init)))


def starts_from_sketch(init: bool | str) -> bool:
    """Whether that start is a randomised one, which another library may have drawn otherwise."""
    found = _PISSA.fullmatch(init) if isinstance(init, str) else None
    return found is not None and found.group(1) is not None


def initialise(lora_a: nn.Module, lora_b: nn.Module, *, r: int, init: bool | str) -> None:
    """Set the factors of a layer so that, unless `init` is False, BA = 0.

    Args:
        lora_a: Module with weight (r, in), or (r, in, ...) for a convolution.
        lora_b: Module with weight (out, r), or (out, r, 1, ...).
        r: The rank.
        init: True: A Kaiming-uniform with a = √5, that is U(±1/√in), as a fresh linear layer; B zero.
            `"gaussian"`: A from a normal distribution with standard deviation 1/r; B zero.
            `"orthogonal"`: neither is zero, but the rows of A and the columns of B are drawn from orthogonal
            spaces. False: both as fresh layers.

    Raises:
        ConfigError: `"orthogonal"` with an odd rank or at a convolution.
    """
    if init is False:
        return
    kind = init.lower() if isinstance(init, str) else init
    a: Tensor = lora_a.weight  # type: ignore[assignment]
    b: Tensor = lora_b.weight  # type: ignore[assignment]
    if kind == "orthogonal":
        _orthogonal(a, b, r)
    else:
        if kind == "gaussian":
            nn.init.normal_(a, std=1.0 / r)
        elif isinstance(lora_a, nn.Linear):
            draw_fresh(lora_a)
        else:
            nn.init.kaiming_uniform_(a, a=math.sqrt(5))
        b.data.zero_()
    if lora_b.bias is not None:
        lora_b.bias.data.zero_()  # type: ignore[operator]


def refuse_beyond_linear(init: bool | str, kind: str) -> None:
    """Refuse, at a layer that isn't linear, an initialisation that is made for linear layers.

    Raises:
        ConfigError: It is.
    """
    if init not in (True, False) and str(init).lower() != "gaussian":
        raise ConfigError(
            f"init_lora_weights={init!r} {_FROM_W if starts_from_weight(init) else _PLAIN}; found a target that is a "
            f"{kind}. Leave such layers out of target_modules, or use True, False or 'gaussian'."
        )


def _orthogonal(a: Tensor, b: Tensor, r: int) -> None:
    # Half of the rows of an orthogonal matrix are orthogonal to the other half, so
    # B A = R_B Q_even Q_oddᵀ R_A = 0, while the gradients of both factors aren't.
    if r % 2:
        raise ConfigError(f"Orthogonal initialization requires the LoRA rank to be even, got {r} instead.")
    q, _ = torch.linalg.qr(torch.randn(r, r, device=a.device))
    for_a = torch.randn(a.shape[1], r // 2, device=a.device)
    for_b = torch.randn(r // 2, b.shape[0], device=a.device)
    a.data = (for_a @ q[0::2]).t().contiguous().to(a.dtype) / 10
    b.data = (for_b.t() @ q[1::2]).to(b.dtype) / 10


@torch.no_grad()
def factors_of(weight: Tensor, r: int, scaling: float, init: str) -> tuple[Tensor, Tensor]:
    """A and B such that s·BA is the part of W that they start from.

    Args:
        weight: W: (out, in).
        r: The rank.
        scaling: s.
        init: `"pissa"`; `"pissa_niter_N"` for a randomised decomposition with N power iterations, which is
            much faster; or `"olora"`.

    Returns:
        (r, in) and (out, r), in float32 or W's wider dtype.

    Raises:
        ConfigError: The rank is larger than W's.
    """
    if r > min(weight.shape):
        raise ConfigError(
            f"init_lora_weights={init!r} takes {r} directions from a weight of shape {tuple(weight.shape)}, which has "
            f"at most {min(weight.shape)}. Choose a smaller r, or rank_pattern for this layer."
        )
    wide = weight.to(torch.promote_types(weight.dtype, torch.float32))
    found = _PISSA.fullmatch(init)
    if found is None:
        q, upper = torch.linalg.qr(wide)
        return upper[:r].contiguous(), q[:, :r].contiguous()
    if found.group(1) is None:
        u, values, vt = torch.linalg.svd(wide, full_matrices=False)
        u, values, vt = u[:, :r], values[:r], vt[:r]
    else:
        u, values, v = _sketched(wide, r, int(found.group(1)))
        vt = v.t()
    root = (values / scaling).sqrt()
    return root.unsqueeze(1) * vt, u * root


def _sketched(weight: Tensor, r: int, niter: int) -> tuple[Tensor, Tensor, Tensor]:
    """The r largest singular values and vectors, by a random sketch that is the same for each call.

    A checkpoint holds A and B as they are trained, not as they started. Whoever loads it takes the start out of
    the base once more, so the start must follow from the base's weight alone, in any process and on any device.
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(_SKETCH_SEED)
        factors = torch.svd_lowrank(weight.cpu(), r, niter=niter)
    u, values, v = (tensor.to(weight.device) for tensor in factors)
    return u, values, v
