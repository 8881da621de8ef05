"""What a training would take: memory, time and cost."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

from manytune.methods.tuners.sizes import Trained
from manytune.planner.activations import activation_bytes
from manytune.planner.architecture import Architecture
from manytune.planner.dtypes import BYTES, PACKED, layer_bytes, product_dtype, weight_bytes
from manytune.planner.hardware import GIB, Hardware
from manytune.planner.ranges import Range, Utilization, longer, total
from manytune.planner.recipe import TrainingPlanSection
from manytune.training.speed.chunk_size import rows_of_chunk
from manytune.training.speed.flops_formula import FlopSizes

#: Bytes of optimizer states for a trained number: AdamW's two moments (arXiv 1711.05101) in float32, or in 8 bits
#: (arXiv 2110.02861); Adafactor's rows and columns are next to nothing (arXiv 1804.04235).
STATES = {"adamw": 8.0, "adamw_8bit": 2.03, "adafactor": 0.02, "sgd": 0.0}

# Of what is kept for the backward pass: blocks that are freed and don't fit what comes next. A process on a CPU shares
# its heap with everything else, a GPU's allocator keeps blocks of each size.
_FRAGMENTED = {"cpu": Range(1.0, 1.2, 1.5), "gpu": Range(1.0, 1.06, 1.25)}
# A process with torch and transformers on a CPU; a GPU's context, and workspaces of its libraries.
_PROCESS = {"cpu": Range(0.45 * GIB, 0.65 * GIB, 0.95 * GIB), "gpu": Range(0.3 * GIB, 0.8 * GIB, 1.6 * GIB)}
# Seconds in which a layer's operations are issued one by one, a pass: short batches take no less. Transformers' layers
# with an adapter on an A100 take 1.5 ms by the times of rows of 256 tokens in the README of Qwen.
_ISSUING = {"cpu": Range(0.0, 0.0002, 0.001), "gpu": Range(0.0003, 0.0015, 0.0025)}
# Devices wait for each other.
_TOGETHER = Utilization(1.0, 0.9, 0.7)


@dataclass(frozen=True)
class Part:
    """One part of the memory.

    Attributes:
        name: What takes it.
        bytes: How much, on each device.
    """

    name: str
    bytes: Range


@dataclass(frozen=True, kw_only=True)
class Step:
    """The tokens of one forward pass, as the formula of required FLOPs counts them."""

    real_tokens: int
    pairs: int
    logit_rows: int
    skipped_tokens: int = 0
    skipped_pairs: int = 0

    @staticmethod
    def of(rows: int, tokens: float, targets: float, *, input_tokens: int, prefix_tokens: int) -> Step:
        """Rows of one length: token k of a row sees k tokens, and what is before the row."""
        length = tokens + input_tokens
        pairs = length * (length + 1) / 2 + length * prefix_tokens
        return Step(
            real_tokens=round(rows * length),
            pairs=round(rows * pairs),
            logit_rows=round(rows * min(targets, tokens)),
        )


@dataclass(frozen=True, kw_only=True)
class TrainingEstimate:
    """What a training would take.

    Attributes:
        parts: The memory of one device, by what takes it.
        capacity: Bytes of a device.
        required_flops: Of one optimizer step, on all devices.
        computed_flops: The same with what gradient checkpointing computes twice.
        step_seconds: Time of an optimizer step.
        steps: How many there are.
        tokens_per_second: Computed tokens, on all devices.
        seconds: Time of all steps.
        device_hours: The same in hours of one device.
        cost: Of these; None without a price.
        largest_batch: The most rows of a forward pass that the expected memory suffices for; 0 if there is none.
    """

    parts: tuple[Part, ...]
    capacity: float
    required_flops: float
    computed_flops: float
    step_seconds: Range
    steps: int
    tokens_per_second: Range
    seconds: Range
    device_hours: Range
    cost: Range | None
    largest_batch: int

    @property
    def memory(self) -> Range:
        """The peak of one device."""
        return total(part.bytes for part in self.parts)


def flop_sizes(model: Architecture, trained: Trained) -> FlopSizes:
    """The sizes that the formula of required FLOPs takes, with a method attached."""
    whole = trained.whole
    return FlopSizes(
        layer_weights=model.used_layer_weights + trained.added_weights,
        head_weights=model.head_weights,
        attention_width=model.attention_width,
        trained_layer_weights=model.used_layer_weights if whole else trained.added_weights,
        trained_head_weights=model.head_weights if whole else 0,
    )


def estimate_training(
    model: Architecture, trained: Trained, section: TrainingPlanSection, hardware: Hardware
) -> TrainingEstimate:
    """What a training would take.

    Raises:
        RecipeError: The device's FLOP/s aren't known in the dtype.
    """
    parts = tuple(_parts(model, trained, section, hardware, section.batch_size))
    step = _step_of(section, trained, section.batch_size, section.tokens)
    sizes = flop_sizes(model, trained)
    # Layers are computed twice, the head isn't.
    again = sizes.forward_flops(replace(step, logit_rows=0)) if section.gradient_checkpointing else 0
    required = sizes.training_flops(step)
    seconds = _step_seconds(model, trained, section, hardware, required + again)
    per_step = section.batch_size * section.accumulation * section.devices
    steps = math.ceil(section.rows * section.epochs / per_step)
    tokens = step.real_tokens * section.accumulation * section.devices
    hours = seconds * steps * section.devices / 3600
    price = hardware.price_per_hour
    passes = section.accumulation * section.devices
    return TrainingEstimate(
        parts=parts,
        capacity=hardware.memory,
        required_flops=required * passes,
        computed_flops=(required + again) * passes,
        step_seconds=seconds,
        steps=steps,
        tokens_per_second=Range(tokens / seconds.high, tokens / seconds.expected, tokens / seconds.low),
        seconds=seconds * steps,
        device_hours=hours,
        cost=None if price is None else hours * price,
        largest_batch=_largest_batch(model, trained, section, hardware),
    )


def _step_of(section: TrainingPlanSection, trained: Trained, rows: int, tokens: float) -> Step:
    share = 1.0 if section.target_tokens is None else section.target_tokens / section.tokens
    return Step.of(
        rows,
        tokens,
        tokens * share,
        input_tokens=trained.input_tokens,
        prefix_tokens=trained.prefix_tokens,
    )


def _parts(
    model: Architecture, trained: Trained, section: TrainingPlanSection, hardware: Hardware, rows: int
) -> Iterator[Part]:
    shards = section.devices if section.sharded else 1
    number = BYTES[section.trained]
    base = weight_bytes(model, section.weights)
    if trained.whole:
        yield Part("weights", Range.exactly(trained.parameters * number / shards))
        if trained.copies_base:
            yield Part("a copy of the base", Range.exactly(base / shards))
    else:
        yield Part(f"base, {section.weights}", Range.exactly(base / shards))
        own = trained.parameters * number + trained.frozen_numbers * 4
        yield Part("adapter", Range.exactly(own / shards))
    yield Part("gradients", Range.exactly(trained.parameters * number / shards))
    states = trained.parameters * STATES[section.optimizer] / shards
    yield Part(f"optimizer, {section.optimizer}", Range.exactly(states))
    step = _step_of(section, trained, rows, section.longest_tokens or section.tokens)
    size = 4.0 if "float32" in (section.activations, section.weights) else 2.0
    found = activation_bytes(model, trained, size=size)
    kept = step.real_tokens * found.kept(model.layers, checkpointing=section.gradient_checkpointing)
    yield Part(
        "activations" + (", checkpointed" if section.gradient_checkpointing else ""),
        _FRAGMENTED[hardware.kind] * kept,
    )
    yield Part("logits, or a layer's gradients", _moment(model, section, step, found.gradients, size))
    unpacked = _gathered(model, section, shards)
    if unpacked:
        yield Part("weights of a layer in use", Range(unpacked, unpacked, 2 * unpacked))
    yield Part("process" if hardware.kind == "cpu" else "GPU context", _PROCESS[hardware.kind])


def _moment(
    model: Architecture, section: TrainingPlanSection, step: Step, gradients: float, size: float
) -> Range:
    """The larger of what lives for a moment: a chunk's logits, or the gradients of one layer."""
    rows = step.logit_rows
    if section.logits == "chunked":
        logits = min(rows, rows_of_chunk(model.vocabulary)) * model.vocabulary * 4
        head = Range(logits, 1.25 * logits, 2 * logits)
    else:
        # Logits and their gradient in the type of hidden states, and again in float32 (transformers' loss).
        logits = rows * model.vocabulary
        head = Range(logits * 8, logits * (4 + 2 * 4 if size == 4 else 2 * size + 2 * 4), logits * 16)
    layer = step.real_tokens * gradients
    hidden = rows * model.hidden * size  # the head's gradient of all rows
    return longer(
        Range(head.low + hidden, head.expected + hidden, head.high + hidden),
        Range(0.5 * layer, layer, 2 * layer),
    )


def _gathered(model: Architecture, section: TrainingPlanSection, shards: int) -> float:
    """Weights that are unpacked, or gathered from other devices, while they are multiplied."""
    size = BYTES[product_dtype(section.weights)]
    if shards > 1:
        return 2 * layer_bytes(model, "bfloat16") / model.layers * size / 2
    if section.weights in PACKED:
        return max(matrix.weights for matrix in model.matrices) * size
    return 0.0


def _step_seconds(
    model: Architecture, trained: Trained, section: TrainingPlanSection, hardware: Hardware, flops: float
) -> Range:
    """The longest of computing, reading the weights and issuing operations; and the optimizer, on memory."""
    utilization = hardware.training_utilization
    if section.mfu is not None:
        utilization = Utilization(min(1.0, section.mfu * 1.1), section.mfu, section.mfu * 0.9)
    peak = hardware.flops(product_dtype(section.weights))
    reads = 3 if section.gradient_checkpointing else 2
    weights = reads * layer_bytes(model, section.weights)
    unpacking = 0.0
    if section.weights in PACKED:  # written in the products' dtype, and read again
        unpacking = reads * model.layer_weights * (PACKED[section.weights] + 2 * BYTES["bfloat16"])
    read = hardware.bandwidth_utilization
    compute = longer(
        utilization.seconds(flops, peak), read.seconds(weights, hardware.bandwidth)
    ) + read.seconds(unpacking, hardware.bandwidth)
    compute = longer(compute, _ISSUING[hardware.kind] * (model.layers * reads))
    # Weight, gradient and states are read; weight and states are written.
    states = 2 * STATES[section.optimizer] + 3 * BYTES[section.trained]
    optimizer = read.seconds(trained.parameters * states, hardware.bandwidth)
    step = compute * section.accumulation + optimizer
    if section.devices == 1:
        return step
    return Range(step.low / _TOGETHER.best, step.expected / _TOGETHER.expected, step.high / _TOGETHER.worst)


def _largest_batch(
    model: Architecture, trained: Trained, section: TrainingPlanSection, hardware: Hardware
) -> int:
    def fits(rows: int) -> bool:
        parts = _parts(model, trained, section, hardware, rows)
        return total(part.bytes for part in parts).expected <= hardware.memory

    if not fits(1):
        return 0
    low, high = 1, 2
    while fits(high) and high < 1 << 20:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low
