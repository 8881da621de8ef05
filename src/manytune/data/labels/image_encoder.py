"""From a classifier's examples with images to what its batches are made of."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from manytune.data.labels.label_encoder import Labelled, RowEncoder
from manytune.data.labels.label_kinds import AnyLabels
from manytune.data.templates import Example
from manytune.errors import DataError
from manytune.images import ImageReading, image_name

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


@dataclass(frozen=True, kw_only=True)
class LabelledImage(Labelled):
    """An image and its label's place.

    Its `prompt_ids` are as many as the base makes vectors of an image. The first is a hash of the decoded image, so
    that whatever tells rows apart by their token ids tells images apart; the model never reads them.

    Args:
        image: The image, as `manytune.images` writes it.
        reading: How the base reads it.
    """

    image: str
    reading: ImageReading

    def pixels(self) -> NDArray[np.float32]:
        """What the model reads, (channels, height, width). It is decoded here, so that no more than a batch is held.

        Raises:
            DataError: The file isn't what it was when it was encoded.
        """
        try:
            return self.reading.pixels(self.image)
        except DataError as error:
            raise DataError(str(error), where=f"{self.source}:{self.row}") from error


class ImageEncoder(RowEncoder):
    """Encodes a classifier's examples with images. Each is decoded once to see that it can be, and isn't kept.

    Args:
        reading: How the base reads images.
        labels: The classes, or how numbers are read.
        weights: What rows of each label weigh in the loss; 1 if not given.
    """

    def __init__(
        self, reading: ImageReading, labels: AnyLabels, *, weights: Mapping[str, float] | None = None
    ) -> None:
        super().__init__(labels, weights=weights)
        self._reading = reading

    def shown(self, example: Example) -> str:
        """An image's path, or a hash of it."""
        return image_name(example.segments[0].text)

    def encode(self, example: Example) -> tuple[Labelled, bool]:
        """The image of an example; never cut.

        Raises:
            DataError: It can't be decoded, or its label is unknown.
        """
        text = example.segments[0].text
        label, value = self._learned(example)
        try:
            ids = (self._reading.digest(text), *[0] * (self._reading.tokens - 1))
        except DataError as error:
            raise DataError(str(error), where=example.where) from error
        row = LabelledImage(
            ids,
            (label,),
            example.source,
            example.row,
            example.group,
            weight=self.weight(example),
            value=value,
            image=text,
            reading=self._reading,
        )
        return row, False
