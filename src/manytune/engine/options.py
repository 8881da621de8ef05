"""How an engine is dimensioned."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from manytune.engine.speculation import SpeculationMode
from manytune.engine.weights import Weights

#: What computes the forwards.
Runtime = Literal["torch", "openvino"]


@dataclass(frozen=True, kw_only=True)
class EngineOptions:
    """Memory and batching of an engine.

    Attributes:
        kv_budget_tokens: Capacity of the KV cache: running requests times the largest number of tokens that one of them
            may have. An encoder-decoder has one of this capacity for its answers, and one for what its encoder read.
        max_batch: Requests that may run at once.
        prefill_chunk: Largest number of prompt tokens that one step reads; larger chunks let answers begin sooner,
            smaller ones delay the running answers less. An encoder's input is read whole even if it is longer.
        max_adapters: Different adapters that may run at once; None for as many as requests.
        prefix_cache_tokens: Prompt tokens whose keys and values are kept for prompts with the same prefix, or for equal
            inputs of an encoder; 0 for none.
        adapter_bytes: What one adapter may take while it runs, as its weights in slots and as what a step computes with
            them; None for half of the memory that is free when the engine is made.
        weights: `"reordered"` keeps, on a CPU, a second copy of the linear layers' weights in the memory order that is
            multiplied fastest; `"int8"` and `"int4"` keep a rounded copy in fewer bits; `"plain"` keeps none.
        runtime: `"torch"`, or `"openvino"` to run the decoder in OpenVINO on a CPU, if it is installed and can convert
            the model; see `Engine.runtime`.
        speculation: `"auto"` reads guessed tokens of answers together with the last one where the engine's own
            measurements say that it pays and answers stay the same: in float32, and in OpenVINO's rounded forms those
            of the base; `"on"` does it in every precision and for adapters, where they may change as they do next to
            other requests; `"off"` never does. See `speculation`.
    """

    kv_budget_tokens: int = 32768
    max_batch: int = 32
    prefill_chunk: int = 512
    max_adapters: int | None = None
    prefix_cache_tokens: int = 0
    adapter_bytes: int | None = None
    weights: Weights = "reordered"
    runtime: Runtime = "torch"
    speculation: SpeculationMode = "auto"
