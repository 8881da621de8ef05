"""A vision transformer with which classifiers of images train in a moment, and images whose label is a bright side."""

import base64
import io
import json
import random
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from transformers import (
    AutoModel,
    DeiTConfig,
    Dinov2Config,
    PretrainedConfig,
    ViTConfig,
    ViTImageProcessorPil,
)

SIDE = 4  # pixels; a patch has 2 × 2 of them

Pixels = list[list[int]]


def image_config(kind: str = "vit", **changes: Any) -> PretrainedConfig:
    family = {"vit": ViTConfig, "deit": DeiTConfig, "dinov2": Dinov2Config}[kind]
    size = {"mlp_ratio": 2} if kind == "dinov2" else {"intermediate_size": 32}
    return family(
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=SIDE,
        patch_size=2,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        **{**size, **changes},
    )


def save_image_base(directory: Path, kind: str = "vit", *, side: int = SIDE, mean: float = 0.5) -> Path:
    torch.manual_seed(0)
    model = AutoModel.from_config(image_config(kind))
    for parameter in model.parameters():
        parameter.data *= 3
    model.save_pretrained(directory)
    size = {"height": side, "width": side}
    ViTImageProcessorPil(size=size, image_mean=[mean] * 3).save_pretrained(directory)
    return directory


def image(label: str, draw: random.Random) -> Pixels:
    """Grey pixels, of which the left or the right half is brighter."""
    bright, dark = (draw.randint(150, 255) for _ in "ab"), (draw.randint(0, 100) for _ in "ab")
    halves = [list(bright), list(dark)]
    left, right = halves if label == "left" else halves[::-1]
    return [[*left, *right] for _ in range(SIDE)]


def data_url(pixels: Pixels, form: str = "PNG") -> str:
    held = io.BytesIO()
    picture = Image.new("L", (len(pixels[0]), len(pixels)))
    picture.putdata([value for row in pixels for value in row])
    picture.save(held, form)
    return f"data:image/{form.lower()};base64,{base64.b64encode(held.getvalue()).decode()}"


def write_images(path: Path, count: int, *, names: tuple[str, ...] = ("left", "right")) -> Path:
    """Rows with pixels, and which half of them is brighter."""
    draw = random.Random(0)
    rows = [{"picture": image(names[n % 2], draw), "side": names[n % len(names)]} for n in range(count)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def image_recipe(directory: Path, **training: Any) -> dict[str, Any]:
    """A recipe of a classifier over a tiny vision transformer and 32 rows, in a directory of its own."""
    directory.mkdir(parents=True, exist_ok=True)
    return {
        "base": str(save_image_base(directory / "base")),
        "task": "classification",
        "data": {
            "train": str(write_images(directory / "rows.jsonl", 32)),
            "validation": 0.25,
            "test": 0.25,
            "image": "picture",
            "label": "side",
        },
        "method": {"name": "lora", "r": 2, "target_modules": "all-linear"},
        "training": {
            "epochs": 6,
            "batch_size": 4,
            "learning_rate": 0.02,
            "checkpoint_every": None,
            **training,
        },
        "output": str(directory / "run"),
    }
