"""Images of rows and of requests: what they are written as, bounded before they are decoded, and what a base reads.

An image is held as a text of one of three kinds, so that equal images are equal texts:

    data:image/png;base64,iVBOR…        the bytes of a PNG, JPEG or WebP
    pixels:[[0,255],[128,64]]           rows of pixels, each one grey value or three of red, green and blue
    pictures/cat.jpg                    anything else is the path of such a file
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import io
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from manytune.errors import DataError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from PIL.Image import Image

MOST_BYTES = 20 << 20
"""Bytes of the largest file."""
MOST_PIXELS = 16 << 20
"""Pixels of the largest image: 4,096 × 4,096. A file's header says how many it has before any is decoded."""

_FORMATS = ("PNG", "JPEG", "WEBP")
_EIGHT_BITS = {"1", "L", "LA", "P", "PA", "RGB", "RGBA"}
_DATA, _PIXELS = "data:", "pixels:"


def image_text(value: object, folder: Path) -> str:
    """Write down the image that a field of a row holds.

    Args:
        value: A path, a data URL, rows of pixels, or the `bytes` of a file as `datasets` has them in Parquet.
        folder: What a path is relative to.

    Raises:
        DataError: It is none of these, or pixels aren't whole numbers from 0 to 255 in rows of equal length.
    """
    if isinstance(value, dict) and isinstance(value.get("bytes"), bytes):
        return f"{_DATA};base64,{base64.b64encode(value['bytes']).decode()}"
    if isinstance(value, str) and value.strip() and not value.startswith(_PIXELS):
        return value.strip() if is_data_url(value.strip()) else str(folder / value)
    if isinstance(value, list | tuple):
        return f"{_PIXELS}{json.dumps(_checked(value), separators=(',', ':'))}"
    raise DataError(
        "expected an image: the path of a file, a data URL (data:image/png;base64,…) or rows of pixels; found "
        f"{type(value).__name__}"
    )


def is_data_url(text: str) -> bool:
    """Whether it is a data URL, rather than anything that names a file."""
    return text.startswith(_DATA)


def image_name(text: str) -> str:
    """What to call an image in a table: its path, or a hash of what is written in its place."""
    if text.startswith((_DATA, _PIXELS)):
        return f"image {hashlib.sha256(text.encode()).hexdigest()[:12]}"
    return text


def image_size(text: str) -> tuple[int, int]:
    """Width and height, of a file from its header alone.

    Raises:
        DataError: It is no image, or too large.
    """
    width, height = _opened(text).size
    return width, height


def decoded(text: str) -> Image:
    """Decode an image into 8-bit red, green and blue, upright as its EXIF orientation says.

    Transparency is dropped. Of an animation this is the first frame.

    Raises:
        DataError: It is no image, is damaged, or too large.
    """
    from PIL import ImageOps

    opened = _opened(text)
    try:
        return ImageOps.exif_transpose(opened).convert("RGB")
    except _unreadable() as error:
        raise DataError(f"{image_name(text)}: the image is damaged: {error}") from error


@dataclass(frozen=True)
class ImageReading:
    """How a base reads images.

    Attributes:
        processor: transformers' image processor of the base.
        tokens: How many vectors the base makes of an image: one for each patch, and one or two for all of it.
    """

    processor: Any
    tokens: int

    def pixels(self, text: str) -> NDArray[np.float32]:
        """What the base is given of an image, (channels, height, width).

        Raises:
            DataError: It can't be decoded; see `decoded`.
        """
        return processed(self.processor, decoded(text))

    def digest(self, text: str) -> int:
        """A hash of the decoded image, of 63 bits.

        Raises:
            DataError: It can't be decoded; see `decoded`.
        """
        image = decoded(text)
        found = hashlib.blake2b(f"{image.size}".encode() + image.tobytes(), digest_size=8)
        return int.from_bytes(found.digest()) >> 1


def processed(processor: Any, image: Image) -> NDArray[np.float32]:
    """An image as an image processor resizes and normalises it, (channels, height, width)."""
    import numpy as np

    return np.asarray(processor(images=[image], return_tensors="np")["pixel_values"][0], dtype=np.float32)


def _opened(text: str) -> Image:
    """The image, of which a file's header is read at most, within the bounds."""
    import numpy as np
    from PIL import Image, UnidentifiedImageError

    if text.startswith(_PIXELS):
        return Image.fromarray(np.array(json.loads(text.removeprefix(_PIXELS)), dtype=np.uint8))
    name = image_name(text)
    try:
        image = Image.open(io.BytesIO(_bytes_of(text)), formats=_FORMATS)
    except UnidentifiedImageError as error:
        raise DataError(f"{name}: this isn't an image in the form of {', '.join(_FORMATS)}") from error
    except _unreadable() as error:
        raise DataError(f"{name}: the image can't be read: {error}") from error
    width, height = image.size
    if width * height > MOST_PIXELS:
        raise DataError(
            f"{name}: {width:,} × {height:,} pixels; expected at most {MOST_PIXELS:,}. Make it smaller first"
        )
    if image.mode not in _EIGHT_BITS:
        raise DataError(
            f"{name}: its pixels are of Pillow's mode {image.mode}; expected 8-bit grey or RGB. Convert it first"
        )
    return image


def _bytes_of(text: str) -> bytes:
    if not is_data_url(text):
        path = Path(text)
        if not path.is_file():
            raise DataError(f"{text}: there is no such image file")
        if path.stat().st_size > MOST_BYTES:
            raise DataError(f"{text}: the file has more than {MOST_BYTES:,} bytes")
        return path.read_bytes()
    head, comma, body = text.partition(",")
    if not comma or not head.endswith(";base64"):
        raise DataError("a data URL of an image begins with data:image/png;base64, or another of its kind")
    if len(body) > MOST_BYTES // 3 * 4 + 4:
        raise DataError(f"{image_name(text)}: the image has more than {MOST_BYTES:,} bytes")
    try:
        return base64.b64decode(body, validate=True)
    except binascii.Error as error:
        raise DataError(f"{image_name(text)}: the data URL isn't base64: {error}") from error


def _unreadable() -> tuple[type[Exception], ...]:
    """What Pillow raises for damaged files."""
    from PIL import Image

    return (OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError)


def _checked(rows: list[Any] | tuple[Any, ...]) -> list[Any]:
    """Rows of pixels as lists of whole numbers."""
    width = len(rows[0]) if rows and isinstance(rows[0], list | tuple) else 0
    if not width or any(not isinstance(row, list | tuple) or len(row) != width for row in rows):
        raise DataError("an image's pixels are rows of equal length, such as [[0, 255], [128, 64]]")
    if len(rows) * width > MOST_PIXELS:
        raise DataError(f"{width:,} × {len(rows):,} pixels; expected at most {MOST_PIXELS:,}")
    colours = {len(pixel) if isinstance(pixel, list | tuple) else 1 for row in rows for pixel in row}
    if colours not in ({1}, {3}):
        raise DataError("a pixel is one grey value, or three of red, green and blue, the same for all pixels")
    found = [[list(pixel) if colours == {3} else pixel for pixel in row] for row in rows]
    values = (value for row in found for pixel in row for value in (pixel if colours == {3} else (pixel,)))
    odd = next((value for value in values if type(value) is not int or not 0 <= value <= 255), None)
    if odd is not None:
        raise DataError(f"a pixel's values are whole numbers from 0 to 255; found {str(odd)[:40]}")
    return found
