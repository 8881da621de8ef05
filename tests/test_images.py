"""Images of rows are bounded before they are decoded, and what is none is an error that says what was expected."""

import base64
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageFile
from tests.training.tiny_images import data_url

from manytune import images
from manytune.errors import DataError

GREY = [[0, 255], [128, 64]]


def saved(path: Path, mode: str = "L", size: tuple[int, int] = (2, 2)) -> Path:
    Image.new(mode, size).save(path)
    return path


def test_pixels_a_data_url_bytes_and_a_file_are_the_same_image(tmp_path: Path) -> None:
    url = data_url(GREY)
    file = tmp_path / "grey.png"
    file.write_bytes(base64.b64decode(url.partition(",")[2]))
    given: list[Any] = [GREY, url, {"bytes": file.read_bytes(), "path": None}, "grey.png", str(file)]
    expected = np.repeat(np.array(GREY, dtype=np.uint8)[:, :, None], 3, axis=2)
    for value in given:
        text = images.image_text(value, tmp_path)
        assert np.array_equal(np.asarray(images.decoded(text)), expected)
        assert images.image_size(text) == (2, 2)
    colours = images.image_text([[[1, 2, 3], [4, 5, 6]]], tmp_path)
    assert np.asarray(images.decoded(colours)).tolist() == [[[1, 2, 3], [4, 5, 6]]]


def test_a_photograph_is_turned_upright_as_its_file_says(tmp_path: Path) -> None:
    turned = Image.new("L", (3, 1))
    exif = turned.getexif()
    exif[0x0112] = 6  # to be turned by 90°
    turned.save(tmp_path / "turned.png", exif=exif)
    assert images.decoded(str(tmp_path / "turned.png")).size == (1, 3)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (7, "expected an image: the path of a file, a data URL .* or rows of pixels; found int"),
        ("pixels:[[0]]", "expected an image"),
        ([], "rows of equal length"),
        ([[0], [0, 1]], "rows of equal length"),
        ([[0, [1, 2, 3]]], "the same for all pixels"),
        ([[0, 256]], "whole numbers from 0 to 255; found 256"),
        ([[0.5]], "found 0.5"),
        ([[True]], "found True"),
    ],
)
def test_what_is_no_image_is_refused(value: object, message: str) -> None:
    with pytest.raises(DataError, match=message):
        images.image_text(value, Path())


def test_what_cannot_be_decoded_is_refused_by_its_header(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(images, "MOST_PIXELS", 100)
    monkeypatch.setattr(images, "MOST_BYTES", 4000)
    (tmp_path / "text.png").write_text("no image")
    (tmp_path / "large.png").write_bytes(bytes(4001))
    Image.effect_noise((10, 10), 99).save(tmp_path / "cut.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "cut.png").read_bytes()[:-60])
    wide, deep = saved(tmp_path / "wide.png", size=(11, 10)), saved(tmp_path / "deep.png", "I;16")
    moving = saved(tmp_path / "moving.gif")
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda self: pytest.fail("decoded"))
    for text, message in (
        (str(tmp_path / "nowhere.png"), "there is no such image file"),
        (str(tmp_path / "text.png"), "isn't an image in the form of PNG, JPEG, WEBP"),
        (str(tmp_path / "large.png"), "more than 4,000 bytes"),
        (str(wide), r"11 × 10 pixels; expected at most 100"),
        (str(deep), "mode I;16; expected 8-bit"),
        (str(moving), "isn't an image in the form"),
        ("data:image/png,abc", "begins with data:image/png;base64,"),
        ("data:image/png;base64,a*b=", "isn't base64"),
        (f"data:image/png;base64,{'A' * 6000}", "more than 4,000 bytes"),
    ):
        with pytest.raises(DataError, match=message):
            images.image_size(text)
    monkeypatch.undo()
    with pytest.raises(DataError, match=r"cut.png: the image is damaged"):
        images.decoded(str(tmp_path / "cut.png"))


def test_equal_images_have_equal_names_and_others_have_others() -> None:
    url = data_url(GREY)
    assert images.image_name(url) == images.image_name(url) != images.image_name(data_url([[0]]))
    assert images.image_name("pictures/cat.jpg") == "pictures/cat.jpg"
    assert len(images.image_name(f"pixels:{json.dumps(GREY)}")) < 20
