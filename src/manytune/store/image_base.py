"""What a base of images has in place of a tokenizer: its image processor, which is part of what identifies it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from manytune.errors import DataError, StoreError
from manytune.images import ImageReading, decoded, processed
from manytune.store.base_source import Source, from_pretrained

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedTokenizerBase

_BLANK = "pixels:[[0,0],[0,0]]"
# What decides the values that the base is given.
_SETTINGS = (
    "do_resize",
    "size",
    "resample",
    "do_center_crop",
    "crop_size",
    "do_rescale",
    "rescale_factor",
    "do_normalize",
    "image_mean",
    "image_std",
)


def load_image_reading(source: Source, config: PretrainedConfig) -> ImageReading:
    """Load a base's image processor. It runs on Pillow everywhere, so that two machines resize alike.

    Raises:
        StoreError: There is none, or the base doesn't read what it makes.
    """
    from transformers import AutoImageProcessor

    processor = from_pretrained(AutoImageProcessor, source, backend="pil")
    try:
        channels, height, width = processed(processor, decoded(_BLANK)).shape
    except (DataError, ValueError, TypeError, KeyError) as error:
        raise StoreError(f"base {source.name!r}: its image processor can't be used: {error}") from error
    settings: Any = config
    expected, patch = _pair(settings.image_size), _pair(settings.patch_size)
    resized = settings.model_type.startswith("dinov2")  # its positions are interpolated to the image's size
    if channels != settings.num_channels or (not resized and (height, width) != expected):
        raise StoreError(
            f"base {source.name!r}: its image processor makes {channels} × {height} × {width} of an image, and the "
            f"model reads {settings.num_channels} × {expected[0]} × {expected[1]}. Correct preprocessor_config.json."
        )
    of_all = 2 if settings.model_type == "deit" else 1  # the class token, and DeiT's distillation token
    return ImageReading(processor, (height // patch[0]) * (width // patch[1]) + of_all)


def settings_of(reading: ImageReading) -> dict[str, Any]:
    """What decides what the base is given of an image; part of its fingerprint, where others have the tokenizer's."""
    found = reading.processor.to_dict()
    return {key: found[key] for key in _SETTINGS if found.get(key) is not None}


def no_tokenizer() -> PreTrainedTokenizerBase:
    """A tokenizer of a single token, for what takes every base's; nothing is ever cut with it."""
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    pad = "<pad>"
    single = Tokenizer(models.WordLevel({pad: 0}, unk_token=pad))
    return PreTrainedTokenizerFast(tokenizer_object=single, pad_token=pad, unk_token=pad)


def _pair(value: Any) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else (int(value[0]), int(value[1]))
