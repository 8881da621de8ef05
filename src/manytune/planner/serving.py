"""What a service would take: memory, tokens a second, replicas and cost.

A decoding step reads the weights, the keys and values of every running request and the adapters of these, and computes
2 FLOPs a weight and request: it takes the longer of the two (the roofline model: Williams et al., CACM 52(4), 2009; for
transformers Pope et al., arXiv 2211.05102). Reading a prompt computes 2 FLOPs a weight and token, and takes its turn
with the steps. All adapters stay in main memory, those of running requests on the device (S-LoRA, arXiv 2311.03285),
where one batch mixes them (Punica, arXiv 2310.18547).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from manytune.methods.tuners.sizes import Trained
from manytune.planner.architecture import Architecture
from manytune.planner.dtypes import BYTES, layer_bytes, product_dtype, weight_bytes
from manytune.planner.hardware import GIB, Hardware
from manytune.planner.popularity import Shares, distinct_in, lru_hit_rate, zipf_shares
from manytune.planner.ranges import Range, Utilization, longer
from manytune.planner.recipe import ServingPlanSection
from manytune.planner.trained import slot_numbers

# Devices that share a replica wait for each other twice a layer.
_TOGETHER = Utilization(0.95, 0.85, 0.7)
# What a server's process and a step's tensors take, on each device.
_PROCESS = {"cpu": 0.6 * GIB, "gpu": 1.5 * GIB}
_REPLICA_SIZES = (1, 2, 4, 8)
# Room for more adapters than a batch has on average.
_SPARE_SLOTS = 1.25


@dataclass(frozen=True, kw_only=True)
class ServingEstimate:
    """What a service would take.

    Attributes:
        devices: Of one replica.
        memory: Bytes in use on all its devices with a full batch.
        weight_bytes: The base, on all its devices, with the copy of its linear layers that a CPU's server keeps.
        kv_bytes: Keys and values of one token, on all devices of a replica.
        batch: Requests that run at once: with as many tokens as all have at their ends, on average, and halfway.
        slots: Adapters on the devices at once.
        slot_bytes: One of them.
        adapter_bytes: One in main memory.
        adapters_bytes: All of them in main memory.
        in_memory: How many of them main memory holds.
        slot_hit_rate: Share of requests whose adapter is on the device already.
        memory_hit_rate: Share of requests whose adapter is at least in main memory.
        loaded_bytes: Adapters that go from main memory to the devices, in bytes a second, at the plan's load.
        step_seconds: One decoding step of a full batch, with the prompts that are read meanwhile.
        first_token_seconds: Reading one prompt, when nothing waits.
        tokens_per_second: Of all answers, of one replica that is fully used.
        stream_tokens_per_second: Of one answer in a full batch.
        requests_per_second: The same in requests.
        replicas: How many the traffic needs at the plan's load.
        all_devices: Their devices.
        cost_per_hour: Of these; None without a price.
        cost_per_million: Of a million answer tokens, at this traffic; None without a price.
    """

    devices: int
    memory: Range
    weight_bytes: float
    kv_bytes: float
    batch: Range
    slots: int
    slot_bytes: float
    adapter_bytes: float
    adapters_bytes: float
    in_memory: int
    slot_hit_rate: float
    memory_hit_rate: float
    loaded_bytes: float
    step_seconds: Range
    first_token_seconds: Range
    tokens_per_second: Range
    stream_tokens_per_second: Range
    requests_per_second: Range
    replicas: Range
    all_devices: Range
    cost_per_hour: Range | None
    cost_per_million: Range | None


@dataclass(frozen=True)
class NoRoom:
    """A service that doesn't fit.

    Attributes:
        why: The reason, as a sentence.
    """

    why: str


def estimate_serving(
    model: Architecture, trained: Trained, section: ServingPlanSection, hardware: Hardware
) -> ServingEstimate | NoRoom:
    """What a service would take.

    Raises:
        RecipeError: The device's FLOP/s aren't known in the dtype.
    """
    shares = zipf_shares(section.adapters, section.zipf) if section.adapters else None
    sizes = _REPLICA_SIZES if section.devices is None else (section.devices,)
    found = []
    for devices in sizes:
        replica = _Replica(model, trained, section, hardware, shares, devices)
        if replica.batch(_at_end(section)) >= 1:
            found.append(replica.estimate())
    if found:  # of equally many devices in all, the smaller replicas
        return min(found, key=lambda estimate: estimate.all_devices.expected)
    return NoRoom(
        f"{sizes[-1]} device{'s' if sizes[-1] > 1 else ''} of {hardware.memory_gib:g} GiB hold too little for a "
        f"replica: the weights take {held_bytes(model, section, hardware) / GIB:,.0f} GiB, and one request with its "
        "adapter has to fit next to them. Take larger devices, or pack the weights (serving.weights: nf4)."
    )


def held_bytes(model: Architecture, section: ServingPlanSection, hardware: Hardware) -> float:
    """The base, with the copy of its linear layers in another order that manytune's server keeps on a CPU."""
    base = weight_bytes(model, section.weights)
    if hardware.kind != "cpu" or not section.reordered or section.weights not in ("float32", "bfloat16"):
        return base
    return base + (model.layer_weights + model.head_weights) * BYTES[section.weights]


def _at_end(section: ServingPlanSection) -> float:
    return section.prompt_tokens + section.answer_tokens


def _half_done(section: ServingPlanSection) -> float:
    return section.prompt_tokens + section.answer_tokens / 2


class _Replica:
    """One replica on so many devices."""

    def __init__(
        self,
        model: Architecture,
        trained: Trained,
        section: ServingPlanSection,
        hardware: Hardware,
        shares: Shares | None,
        devices: int,
    ) -> None:
        self._model, self._trained, self._section, self._hardware = model, trained, section, hardware
        self._shares, self._devices = shares, devices
        size = BYTES[section.adapter_dtype]
        self._slot_bytes = slot_numbers(trained) * size if shares is not None else 0.0
        self._adapter_bytes = trained.kept * size if shares is not None else 0.0
        self._kv_bytes = model.kv_numbers * BYTES[section.kv]
        used = devices * (hardware.memory * section.memory_share - _PROCESS[hardware.kind])
        self._weight_bytes = held_bytes(model, section, hardware)
        self._free = used - self._weight_bytes
        self._prefix = trained.prefix_tokens + trained.input_tokens if shares is not None else 0

    def slots(self, batch: float) -> int:
        """Adapters that a batch has on the devices."""
        if self._shares is None:
            return 0
        return min(len(self._shares), math.ceil(_SPARE_SLOTS * distinct_in(self._shares, batch)))

    def batch(self, tokens: float) -> int:
        """The most requests of so many tokens that fit, with their adapters."""

        def fits(batch: int) -> bool:
            kv = batch * (tokens + self._prefix) * self._kv_bytes
            return kv + self.slots(batch) * self._slot_bytes <= self._free

        low, high = 0, self._section.max_batch + 1
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if fits(middle) else (low, middle)
        return low

    def estimate(self) -> ServingEstimate:
        """The estimate."""
        section, hardware = self._section, self._hardware
        few, many = self.batch(_at_end(section)), self.batch(_half_done(section))
        batches = Range(few, (few + many) / 2, many)
        steps = {batch: self._step_seconds(batch) for batch in {batches.low, batches.expected, batches.high}}
        step = Range(steps[many].low, steps[batches.expected].expected, steps[few].high)
        rate = Range(few / steps[few].high, batches.expected / step.expected, many / steps[many].low)
        streams = Range(1 / steps[many].high, 1 / steps[batches.expected].expected, 1 / steps[few].low)
        requests = rate / section.answer_tokens
        replicas = Range(
            *(
                math.ceil(section.requests_per_second / (found * section.load))
                for found in (requests.high, requests.expected, requests.low)
            )
        )
        devices = replicas * self._devices
        price = hardware.price_per_hour
        per_hour = None if price is None else devices * price
        served = section.requests_per_second * section.answer_tokens * 3600
        slots = self.slots(batches.expected)
        in_memory = self._in_memory()
        hit_rate = 1.0 if self._shares is None else lru_hit_rate(self._shares, slots)
        return ServingEstimate(
            devices=self._devices,
            memory=self._memory(few, many),
            weight_bytes=self._weight_bytes,
            kv_bytes=self._kv_bytes,
            batch=batches,
            slots=slots,
            slot_bytes=self._slot_bytes,
            adapter_bytes=self._adapter_bytes,
            adapters_bytes=self._adapter_bytes * section.adapters,
            in_memory=in_memory,
            slot_hit_rate=hit_rate,
            memory_hit_rate=1.0 if self._shares is None else lru_hit_rate(self._shares, in_memory),
            loaded_bytes=(1 - hit_rate) * self._slot_bytes * requests.expected * section.load,
            step_seconds=step,
            first_token_seconds=self._reading_seconds(1),
            tokens_per_second=rate,
            stream_tokens_per_second=streams,
            requests_per_second=requests,
            replicas=replicas,
            all_devices=devices,
            cost_per_hour=per_hour,
            cost_per_million=None if per_hour is None else per_hour * (1e6 / served),
        )

    def _memory(self, few: int, many: int) -> Range:
        """With the fewest and the most requests at once; what a batch takes beyond that is in `_PROCESS`."""
        process = _PROCESS[self._hardware.kind] * self._devices
        middle = (few + many) / 2
        found = [
            self._weight_bytes
            + batch * (tokens + self._prefix) * self._kv_bytes
            + self.slots(batch) * self._slot_bytes
            for batch, tokens in (
                (many, self._section.prompt_tokens),
                (middle, _at_end(self._section)),
                (many, _at_end(self._section)),
            )
        ]
        return Range(found[0] + 0.6 * process, found[1] + process, found[2] + 1.6 * process)

    def _in_memory(self) -> int:
        host = self._section.host_memory_gib
        if host is None or not self._adapter_bytes:
            return self._section.adapters
        return min(self._section.adapters, int(host * GIB // self._adapter_bytes))

    def _weights_of_a_token(self) -> int:
        added = self._trained.added_weights if self._shares is not None else 0
        return self._model.used_layer_weights + added

    def _reading_seconds(self, prompts: float) -> Range:
        """Reading prompts: the layers for every token, the head for the last."""
        tokens = self._section.prompt_tokens
        pairs = tokens * (tokens + 1) / 2 + tokens * self._prefix
        flops = (
            2 * self._weights_of_a_token() * tokens
            + 2 * self._model.head_weights
            + 4 * self._model.attention_width * pairs
        )
        peak = self._hardware.flops(product_dtype(self._section.weights)) * self._devices
        return self._together(self._hardware.reading_utilization.seconds(prompts * flops, peak))

    def _step_seconds(self, batch: float) -> Range:
        """One token for each running request, and the share of the prompts that are read for each token."""
        model, section, hardware = self._model, self._section, self._hardware
        context = _half_done(section) + self._prefix
        read = (
            self._weights_read(batch)
            + batch * context * self._kv_bytes
            + (distinct_in(self._shares, batch) * self._slot_bytes if self._shares is not None else 0)
        )
        flops = batch * (
            2 * self._weights_of_a_token() + 2 * model.head_weights + 4 * model.attention_width * context
        )
        peak = hardware.flops(product_dtype(section.weights)) * self._devices
        decoding = longer(
            hardware.decoding_utilization.seconds(flops, peak),
            hardware.bandwidth_utilization.seconds(read, hardware.bandwidth * self._devices),
        )
        return self._together(decoding) + self._reading_seconds(batch / section.answer_tokens)

    def _weights_read(self, batch: float) -> float:
        """The head and the layers; of a mixture, the experts that some request of the batch uses."""
        model, kept = self._model, self._section.weights
        layers = layer_bytes(model, kept)
        if model.experts:
            unused = (1 - model.experts_used / model.experts) ** batch
            experts = layers * model.layers * model.expert_weights / model.layer_weights
            layers -= experts * unused
        return layers + model.head_weights * BYTES.get(kept, 2)

    def _together(self, seconds: Range) -> Range:
        if self._devices == 1:
            return seconds
        return Range(
            seconds.low / _TOGETHER.best,
            seconds.expected / _TOGETHER.expected,
            seconds.high / _TOGETHER.worst,
        )
