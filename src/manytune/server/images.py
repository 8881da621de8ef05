"""Images of requests: data URLs, of which all headers are read before any image is decoded."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from manytune.engine.text_runner import ImagePixels
from manytune.errors import DataError
from manytune.images import ImageReading, image_size, is_data_url
from manytune.server.http_errors import HttpError

MOST_IMAGES = 256
"""Images of a request."""
MOST_REQUEST_PIXELS = 64 << 20
"""Pixels of all images of a request, before they are resized."""
MOST_BODY_BYTES = 32 << 20
"""Size of the largest body of a request to a base that reads images."""


def pixels_of(texts: Sequence[tuple[str, ...]], reading: ImageReading) -> list[ImagePixels]:
    """What a base reads of a request's images.

    Args:
        texts: What the request has: a data URL each. Nothing else is opened, a path least of all.
        reading: How the base reads images.

    Raises:
        HttpError: One isn't a data URL of an image, there are too many, or they have too many pixels.
    """
    if any(len(one) != 1 for one in texts):
        raise _refused("this classifier takes images, without text_pair.", "text_pair")
    if len(texts) > MOST_IMAGES:
        raise _refused(f"input: expected {MOST_IMAGES} images at most, found {len(texts):,}.")
    left = MOST_REQUEST_PIXELS
    for number, (text,) in enumerate(texts):
        if not is_data_url(text):
            message = f"image {number}: this base reads images; give each as data:image/png;base64,…"
            raise _refused(message)
        try:
            width, height = image_size(text)
        except DataError as error:
            raise _refused(f"image {number}: {error}.") from error
        left -= width * height
        if left < 0:
            raise _refused(f"the images have more than {MOST_REQUEST_PIXELS:,} pixels; send fewer at a time.")
    found = []
    for number, (text,) in enumerate(texts):
        try:
            found.append(ImagePixels(torch.from_numpy(reading.pixels(text)), reading.tokens))
        except DataError as error:
            raise _refused(f"image {number}: {error}.") from error
    return found


def _refused(message: str, param: str = "input") -> HttpError:
    return HttpError(400, message, code="invalid_value", param=param)
