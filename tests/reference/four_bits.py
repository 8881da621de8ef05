"""The slow twin of products with weights of 4 bits in OpenVINO graphs, group by group, with each rounding written out.

    y[o] = Σ_g (s[g] · (17 Σ_i q_i Q_i + z Σ_i q_i)) · (h / 17)

Float32 is rounded after each operation, but for the last product and sum, which are one.
"""

from __future__ import annotations

import numpy as np

GROUP = 32


def product(x: np.ndarray, codes: np.ndarray, step: np.ndarray, offset: np.ndarray) -> np.ndarray:
    """y of x, (rows, in), in float32, with Q, (out, in), and h and z, (out, in / 32)."""
    y = np.zeros((len(x), len(codes)), np.float32)
    factor = step.astype(np.float32) * np.float32(1 / np.float32(17))
    for g in range(x.shape[1] // GROUP):
        group = slice(g * GROUP, (g + 1) * GROUP)
        scale = np.abs(x[:, group]).max(1, keepdims=True) / np.float32(127)
        inverse = np.divide(np.float32(1), scale, where=scale > 0, out=np.zeros_like(scale))
        q = np.rint(x[:, group] * inverse).astype(np.int64)
        whole = 17 * q @ codes[:, group].astype(np.int64).T + q.sum(1, keepdims=True) * offset[:, g]
        term = whole.astype(np.float32) * scale
        # Of two numbers of float32 the product is exact in float64.
        y = (term.astype(np.float64) * factor[:, g] + y).astype(np.float32)
    return y


def gate(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """silu(a) · b, in float64."""
    a, b = a.astype(np.float64), b.astype(np.float64)
    return a / (1 + np.exp(-a)) * b
