"""What files of an adapter are by their content: pickles are refused, and tensors that aren't whole."""

from __future__ import annotations

from pathlib import Path

from manytune.errors import DamagedError
from manytune.methods.config import CONFIG_NAME
from manytune.store.manifest import MANIFEST_NAME, MOST_BYTES
from manytune.store.tensor_header import read_header


def check_safetensors(file: Path, *, origin: Path | None = None) -> None:
    """Refuse a file of tensors whose header doesn't fit its size, to the byte.

    Args:
        file: The file.
        origin: What it is a copy of, for the message.

    Raises:
        DamagedError: It isn't a whole safetensors file.
    """
    try:
        with file.open("rb") as opened:
            read_header(opened, origin or file)
    except DamagedError:
        raise
    except OSError as error:
        raise DamagedError(f"{origin or file}: the file can't be read ({error}).") from None


def check_content(file: Path) -> None:
    """Refuse a file of an adapter by its content: a pickle can run any program when it is loaded, under whatever name.

    Raises:
        DamagedError: It is a pickle, no plain file, no whole safetensors file, or too large to be options.
    """
    if not file.is_file():  # a pipe would keep its reader waiting
        raise DamagedError(f"{file}: expected a plain file.")
    size = file.stat().st_size
    with file.open("rb") as opened:
        head = opened.read(9)
    is_safetensors = head[8:] == b"{" and int.from_bytes(head[:8], "little") <= size
    is_pickle = head[:1] == b"\x80" and head[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05")
    is_torch_file = head[:4] == b"PK\x03\x04"  # torch.save writes a zip archive with a pickle in it
    if (is_pickle and not is_safetensors) or is_torch_file:
        raise DamagedError(
            f"{file}: this is a pickle, which can run any program when it is loaded. manytune reads safetensors "
            "only; let its author convert it."
        )
    if file.suffix == ".safetensors":
        check_safetensors(file)
    elif file.name in (CONFIG_NAME, MANIFEST_NAME) and size > MOST_BYTES:
        raise DamagedError(f"{file}: {size:,} bytes; expected at most {MOST_BYTES:,} of JSON.")
