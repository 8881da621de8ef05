"""Images of many classifiers in one batch have the probabilities of each classifier alone."""

from pathlib import Path
from typing import Any

import pytest
import torch
from tests.engine.test_classifier import METHODS, made
from tests.training.tiny_images import SIDE, save_image_base

from manytune.engine.classifier import Classifier
from manytune.engine.text_runner import ImagePixels, TextJob, TextRunner, TextTokens
from manytune.errors import RequestError
from manytune.store.attaching import attached
from manytune.store.base import Base, load_base
from manytune.store.classifier_base import classifier_base
from manytune.store.servability import served_terms


def alone(base: Base, directory: Path, name: str, pixels: torch.Tensor) -> torch.Tensor:
    whole = classifier_base(base, list(map(str, range(METHODS[name][0]))))
    with attached(whole, directory / name) as model, torch.no_grad():
        return model(pixel_values=pixels[None]).logits.softmax(-1)[0]


@pytest.mark.parametrize("kind", ["vit", "deit", "dinov2"])
def test_each_image_has_its_own_adapter_and_its_own_head(kind: str, tmp_path: Path) -> None:
    base = load_base(str(save_image_base(tmp_path / "base", kind)))
    assert base.images is not None
    with torch.no_grad():
        whole = base.model(pixel_values=torch.randn(1, 3, SIDE, SIDE))
    assert base.images.tokens == whole.last_hidden_state.shape[1]
    images = [ImagePixels(one, base.images.tokens) for one in torch.randn(3, 3, SIDE, SIDE)]
    names = ["lora", "lora-5", "ia3"]
    adapters = [made(tmp_path, base, name) for name in names]
    jobs = [
        TextJob(texts=images[place % 2 :], adapter=one, terms=served_terms(one, base.model, encodes=True))
        for place, one in enumerate(adapters)
    ]
    sizes: list[int] = []

    def note(_: Any, args: Any, kwargs: Any) -> None:
        sizes.append(len(kwargs["pixel_values"]))

    with base.model.base_model.register_forward_pre_hook(note, with_kwargs=True):
        classifier = Classifier(base.model, pad_id=None)
        runner = TextRunner(lambda: classifier)
        for job in jobs:
            runner.add(job)
        runner.step()
    assert sizes == [8]
    for name, job in zip(names, jobs, strict=True):
        for image, found in zip(job.texts, job.result.result(timeout=0), strict=True):
            assert isinstance(image, ImagePixels)
            expected = alone(base, tmp_path, name, image.pixels)
            torch.testing.assert_close(torch.tensor(found), expected, atol=1e-5, rtol=0)
    with pytest.raises(RequestError, match="reads images; number 0 is none"):
        classifier.check([TextTokens((1, 2))])
