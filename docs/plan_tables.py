"""Writes the tables and the example of `docs/planning.md` from the planner itself; tests compare them.

`FIGURES` are published measurements with the plan that each corresponds to.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from manytune.cli.outputs.plan import print_plan
from manytune.planner.hardware import GIB, table
from manytune.planner.plan import Plan, make_plan
from manytune.planner.ranges import Range, total
from manytune.planner.recipe import load_plan, plan_from
from manytune.planner.serving import ServingEstimate

PAGE = Path(__file__).with_name("planning.md")
EXAMPLE = Path(__file__).parents[1] / "examples" / "plan-70b.yaml"
SECTIONS = ("example", "published", "hardware")


def _llama(**sizes: Any) -> dict[str, Any]:
    usual = {
        "model_type": "llama",
        "hidden_size": 4096,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 32,
        "intermediate_size": 11008,
        "vocab_size": 32000,
        "tie_word_embeddings": False,
    }
    return {**usual, **sizes}


LLAMA_7B = _llama()
LLAMA_65B = _llama(
    hidden_size=8192,
    num_hidden_layers=80,
    num_attention_heads=64,
    num_key_value_heads=64,
    intermediate_size=22016,
)
LLAMA_3_8B = _llama(num_key_value_heads=8, intermediate_size=14336, vocab_size=128256)
LLAMA_3_70B = _llama(
    hidden_size=8192,
    num_hidden_layers=80,
    num_attention_heads=64,
    num_key_value_heads=8,
    intermediate_size=28672,
    vocab_size=128256,
)
LLAMA_3_405B = _llama(
    hidden_size=16384,
    num_hidden_layers=126,
    num_attention_heads=128,
    num_key_value_heads=8,
    intermediate_size=53248,
    vocab_size=128256,
)
QWEN_7B = _llama(vocab_size=151936)  # its model code differs, its sizes are these
GPT_3 = {
    "model_type": "opt",
    "hidden_size": 12288,
    "num_hidden_layers": 96,
    "num_attention_heads": 96,
    "ffn_dim": 49152,
    "vocab_size": 50257,
    "max_position_embeddings": 2046,
}
LORA_PAPER = "Hu et al., LoRA, arXiv 2106.09685, section 4.2"
QLORA_PAPER = "Dettmers et al., QLoRA, arXiv 2305.14314"
TORCHTUNE = "PyTorch, torchtune's README of 2024, “Memory and training speed”"
QWEN = "Qwen team, Qwen's README of 2023, “Profiling of memory and speed”"
TRT = "NVIDIA, TensorRT-LLM 1.0, performance overview of 2025"


@dataclass(frozen=True)
class Figure:
    """One published measurement.

    Attributes:
        name: What was measured.
        unit: Its unit.
        published: The measurement.
        source: Who published it.
        plan: The plan that it corresponds to.
        quantity: Which of the plan's estimates is compared.
    """

    name: str
    unit: str
    published: float
    source: str
    plan: dict[str, Any]
    quantity: str

    def estimate(self) -> Range:
        """What the planner says."""
        plan = make_plan(plan_from(dict(self.plan)))
        return _QUANTITIES[self.quantity](plan)

    @property
    def ratio(self) -> float:
        """Expected over published."""
        return self.estimate().expected / self.published


def _memory(plan: Plan) -> Range:
    assert plan.training is not None
    return plan.training.memory / GIB


def _states(plan: Plan) -> Range:
    assert plan.training is not None
    own = ("base", "adapter", "gradients", "optimizer")
    return total(part.bytes for part in plan.training.parts if part.name.startswith(own)) / 1e9


def _base(plan: Plan) -> Range:
    assert plan.training is not None
    return plan.training.parts[0].bytes / 1e6


def _speed(plan: Plan) -> Range:
    found = plan.training or plan.serving
    assert found is not None and hasattr(found, "tokens_per_second")
    return found.tokens_per_second


def _step(plan: Plan) -> Range:
    assert plan.training is not None
    return plan.training.step_seconds


def _adapter(plan: Plan) -> Range:
    assert isinstance(plan.serving, ServingEstimate)
    return Range.exactly(plan.serving.adapter_bytes / 1e6)


def _against_full(plan: Plan) -> Range:
    """Required FLOPs of full fine-tuning over those of the plan."""
    assert plan.training is not None
    full = plan.recipe.model_dump(mode="json")
    full["method"] = {"name": "full"}
    other = make_plan(plan_from(full)).training
    assert other is not None
    return Range.exactly(other.required_flops / plan.training.required_flops)


_QUANTITIES = {
    "memory": _memory,
    "states": _states,
    "base": _base,
    "speed": _speed,
    "step": _step,
    "adapter": _adapter,
    "against full": _against_full,
}


def _torchtune(
    name: str, published: float, quantity: str, hardware: str, model: dict[str, Any], **training: Any
) -> Figure:
    usual = {"batch_size": 2, "tokens": 2048, "activations": "base", "trained": "bfloat16"}
    unit = "GiB" if quantity == "memory" else "tokens/s"
    plan = {"model": model, "hardware": hardware, "training": {**usual, **training}}
    return Figure(name, unit, published, TORCHTUNE, plan, quantity)


def _qwen(weights: str, tokens: int, memory: float, seconds: float) -> Iterator[Figure]:
    name = f"{'Q-LoRA' if weights == 'nf4' else 'LoRA'} on Qwen-7B, {tokens:,} tokens, A100"
    plan = {
        "model": QWEN_7B,
        "hardware": "a100-sxm-80gb",
        "method": {"name": "lora", "r": 64, "target_modules": "all-linear"},
        "training": {
            "batch_size": 1,
            "accumulation": 8,
            "tokens": tokens,
            "weights": weights,
            "activations": "base",
            "gradient_checkpointing": True,
            "logits": "whole",
        },
    }
    yield Figure(name, "GiB", memory, QWEN, plan, "memory")
    yield Figure(name, "s a step", seconds, QWEN, plan, "step")


def _trt(model: dict[str, Any], name: str, hardware: str, lengths: tuple[int, int], speed: float) -> Figure:
    serving = {
        "prompt_tokens": lengths[0],
        "answer_tokens": lengths[1],
        "adapters": 0,
        "weights": "float8",
        "kv": "float8",
        "max_batch": 2048,
        "devices": 1,
    }
    label = f"{name} in FP8, {lengths[0]:,} → {lengths[1]:,} tokens, {hardware.split('-')[0].upper()}"
    return Figure(
        label, "tokens/s", speed, TRT, {"model": model, "hardware": hardware, "serving": serving}, "speed"
    )


_CHECKPOINTED = {"gradient_checkpointing": True}
_ON_EIGHT = {**_CHECKPOINTED, "devices": 8, "sharded": True}
# Tokens of a row, GiB, seconds of a step of 8 rows.
_QWEN_LORA = (
    (256, 20.1, 1.2),
    (512, 20.4, 1.5),
    (1024, 21.5, 2.8),
    (2048, 23.8, 5.2),
    (4096, 29.7, 10.1),
    (8192, 36.6, 21.3),
)
_QWEN_QLORA = (
    (256, 11.5, 3.0),
    (512, 11.5, 3.0),
    (1024, 12.3, 3.5),
    (2048, 13.9, 7.0),
    (4096, 16.9, 11.6),
    (8192, 23.5, 22.3),
)
# Tokens of prompt and answer; tokens a second of the 8B on an H100 and on an H200, and of the 70B on an H200.
_TRT = {
    (128, 128): (28312, 27911, 3803),
    (128, 2048): (22714, 26221, 4336),
    (128, 4096): (14325, 18027, 2872),
    (500, 2000): (17660, 20770, 3666),
    (1000, 1000): (15220, 17744, 2909),
    (1000, 2000): (13899, 16828, 2994),
    (2048, 128): (3450, 3538, 442),
    (2048, 2048): (9305, 12194, 2003),
    (5000, 500): (3459, 3902, 566),
    (20000, 2000): (1351, 1804, 283),
}
FIGURES: tuple[Figure, ...] = (
    Figure(
        "LoRA r = 4 on q, v of GPT-3: weights and states",
        "GB",
        350,
        LORA_PAPER,
        {"model": GPT_3, "method": {"name": "lora", "r": 4}, "training": {"trained": "bfloat16"}},
        "states",
    ),
    Figure(
        "its checkpoint",
        "MB",
        35,
        LORA_PAPER,
        {
            "model": GPT_3,
            "method": {"name": "lora", "r": 4},
            "serving": {"devices": 8},
            "hardware": "b200-sxm",
        },
        "adapter",
    ),
    Figure(
        "its speed over full fine-tuning's (43.1 and 32.5 tokens/s)",
        "times",
        1.326,
        LORA_PAPER,
        {"model": GPT_3, "method": {"name": "lora", "r": 4}, "training": {}},
        "against full",
    ),
    Figure(
        "LLaMA-7B in 4 bits",
        "MB",
        5048,
        f"{QLORA_PAPER}, section 2",
        {"model": LLAMA_7B, "training": {"weights": "nf4"}},
        "base",
    ),
    _torchtune("LoRA on Llama 3.1 8B, RTX 4090", 16.2, "memory", "rtx-4090", LLAMA_3_8B, **_CHECKPOINTED),
    _torchtune("LoRA on Llama 3.1 8B, RTX A6000", 30.3, "memory", "rtx-a6000", LLAMA_3_8B),
    _torchtune(
        "QLoRA on Llama 3.1 8B, RTX 4090",
        7.4,
        "memory",
        "rtx-4090",
        LLAMA_3_8B,
        weights="nf4",
        **_CHECKPOINTED,
    ),
    _torchtune(
        "LoRA on Llama 3.1 70B, each of 8 A100", 27.6, "memory", "a100-sxm-80gb", LLAMA_3_70B, **_ON_EIGHT
    ),
    _torchtune("LoRA on Llama 3.1 8B, RTX 4090", 3083, "speed", "rtx-4090", LLAMA_3_8B, **_CHECKPOINTED),
    _torchtune("LoRA on Llama 3.1 8B, RTX A6000", 4699, "speed", "rtx-a6000", LLAMA_3_8B),
    _torchtune(
        "QLoRA on Llama 3.1 8B, RTX 4090",
        2413,
        "speed",
        "rtx-4090",
        LLAMA_3_8B,
        weights="nf4",
        **_CHECKPOINTED,
    ),
    _torchtune("LoRA on Llama 3.1 70B, 8 A100", 3497, "speed", "a100-sxm-80gb", LLAMA_3_70B, **_ON_EIGHT),
    _torchtune(
        "QLoRA on Llama 3.1 405B, each of 8 A100",
        44.8,
        "memory",
        "a100-sxm-80gb",
        LLAMA_3_405B,
        weights="nf4",
        **_ON_EIGHT,
    ),
    _torchtune(
        "QLoRA on Llama 3.1 405B, 8 A100",
        653,
        "speed",
        "a100-sxm-80gb",
        LLAMA_3_405B,
        weights="nf4",
        **_ON_EIGHT,
    ),
    *(figure for row in _QWEN_LORA for figure in _qwen("bfloat16", *row)),
    *(figure for row in _QWEN_QLORA for figure in _qwen("nf4", *row)),
    *(
        _trt(model, name, hardware, lengths, speeds[column])
        for column, (model, name, hardware) in enumerate(
            (
                (LLAMA_3_8B, "Llama 3.1 8B", "h100-sxm"),
                (LLAMA_3_8B, "Llama 3.1 8B", "h200-sxm"),
                (LLAMA_3_70B, "Llama 3.3 70B", "h200-sxm"),
            )
        )
        for lengths, speeds in _TRT.items()
    ),
)


def render(section: str) -> str:
    """One of the page's generated sections."""
    return {"example": _example, "published": _published, "hardware": _hardware}[section]()


def _example() -> str:
    text = io.StringIO()
    print_plan(make_plan(load_plan(EXAMPLE)), Console(file=text, width=80, highlight=False))
    printed = "\n".join(line.rstrip() for line in text.getvalue().splitlines())
    body = EXAMPLE.read_text(encoding="utf-8").rstrip()
    return f"```yaml\n{body}\n```\n\n```text\n{printed}\n```"


def _published() -> str:
    lines = ["| published | measured | estimated | ratio | by |", "|---|---|---|---|---|"]
    sources = list(dict.fromkeys(figure.source for figure in FIGURES))
    within = 0
    for figure in FIGURES:
        found = figure.estimate()
        within += 0.7 <= figure.ratio <= 1.3
        outer = "" if found.low == found.high else f" ({_short(found.low)}–{_short(found.high)})"
        lines.append(
            f"| {figure.name} | {figure.published:,.10g} {figure.unit} | {_short(found.expected)}{outer} | "
            f"{figure.ratio:.2f} | {sources.index(figure.source) + 1} |"
        )
    lines += ["", f"{within} of {len(FIGURES)} are within 30%.", ""]
    lines += [f"{number}. {source}" for number, source in enumerate(sources, 1)]
    return "\n".join(lines)


def _hardware() -> str:
    lines = ["| name | memory | bandwidth | dense TFLOP/s | source |", "|---|---|---|---|---|"]
    for name, device in table().items():
        speeds = ", ".join(f"{dtype} {value:g}" for dtype, value in device.tflops.items())
        lines.append(
            f"| `{name}` | {device.memory_gib:g} GiB | {device.bandwidth_gb_s:,.0f} GB/s | {speeds} | {device.source} |"
        )
    return "\n".join(lines)


def _short(value: float) -> str:
    return f"{float(f'{value:.3g}'):,.10g}"


def replaced(page: str) -> str:
    """The page with its generated sections written again."""
    for section in SECTIONS:
        begin, end = f"<!-- {section}: begin -->", f"<!-- {section}: end -->"
        before, _, rest = page.partition(begin)
        _, _, after = rest.partition(end)
        page = f"{before}{begin}\n\n{render(section)}\n\n{end}{after}"
    return page


if __name__ == "__main__":
    PAGE.write_text(replaced(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
