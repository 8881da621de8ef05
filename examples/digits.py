"""The rows and the base of examples/digits.yaml: which digit is it, of those that the base has never seen?

    pip install scikit-learn
    python examples/digits.py
    manytune compare examples/digits.yaml

The images are scikit-learn's: 1,797 handwritten digits of 8 × 8 pixels, which come with the package. A vision
transformer of 58,709 weights learns 0 to 4 from scratch, which takes seconds; that is the base's pretraining. The rows
are 5 to 9. Who wrote which isn't recorded, and neighbours are often by one hand, so images with neighbouring numbers
are a group.

Any other ViT goes as well, for instance the hub's google/vit-base-patch16-224-in21k: --set base=ID.
"""

import argparse
import json
from pathlib import Path

import torch
from sklearn.datasets import load_digits
from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessorPil

SIDE = 8  # pixels
PRETRAINED = 5  # the base learns the digits below this one
NEIGHBOURS = 20  # images with numbers this close stay together


def rows(images: torch.Tensor, labels: torch.Tensor) -> list[dict[str, object]]:
    """A row for each digit that the base isn't trained on: pixels from 0 to 255, and what it shows."""
    return [
        {"image": image.tolist(), "label": str(label), "neighbours": str(number // NEIGHBOURS)}
        for number, (image, label) in enumerate(zip(images, labels.tolist(), strict=True))
        if label >= PRETRAINED
    ]


def pretrained(images: torch.Tensor, labels: torch.Tensor, steps: int) -> ViTForImageClassification:
    """A vision transformer that knows 0 to 4."""
    torch.manual_seed(0)
    model = ViTForImageClassification(
        ViTConfig(
            image_size=SIDE,
            patch_size=2,
            hidden_size=48,
            intermediate_size=96,
            num_hidden_layers=3,
            num_attention_heads=4,
            num_labels=PRETRAINED,
        )
    )
    known = labels < PRETRAINED
    # As the image processor gives them: three equal colours, from -1 to 1.
    pixels = (images[known].float() / 127.5 - 1)[:, None].expand(-1, 3, -1, -1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for _ in range(steps):
        chosen = torch.randint(len(pixels), (64,))
        loss = model(pixel_values=pixels[chosen], labels=labels[known][chosen]).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return model


def main() -> None:
    """Write the rows, and the base under the recipe's name."""
    options = argparse.ArgumentParser(description="The rows and the base of examples/digits.yaml.")
    options.add_argument("--steps", type=int, default=400, help="how long the base is trained")
    options.add_argument("--output", type=Path, default=Path("runs/digits"), help="where to")
    chosen = options.parse_args()
    found = load_digits()
    images = torch.tensor(found.images * 255 / 16).round().to(torch.uint8)
    labels = torch.tensor(found.target)
    written = rows(images, labels)
    chosen.output.mkdir(parents=True, exist_ok=True)
    (chosen.output / "digits.jsonl").write_text("".join(json.dumps(row) + "\n" for row in written))
    base = chosen.output / "vit"
    pretrained(images, labels, chosen.steps).vit.save_pretrained(base)  # without the head for 0 to 4
    ViTImageProcessorPil(size={"height": SIDE, "width": SIDE}).save_pretrained(base)
    print(f"{chosen.output / 'digits.jsonl'}: {len(written):,} rows; {base}: the base")


if __name__ == "__main__":
    main()
