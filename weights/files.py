"""Files of weights of any model: their SHA-256, and the header of a safetensors file."""

import hashlib
import json
from pathlib import Path
from typing import Any

from common.errors import WeightsError

MAX_HEADER_BYTES = 10 << 20  # CLIP's has 60 kB


def digest(path: Path) -> str:
    """The SHA-256 of a weights file, or of model.safetensors in a directory, in hexadecimal."""
    hashed, block = hashlib.sha256(), memoryview(bytearray(1 << 24))
    with (path / "model.safetensors" if path.is_dir() else path).open("rb", 0) as file:
        while size := file.readinto(block):
            hashed.update(block[:size])
    return hashed.hexdigest()


def safetensors_header(path: Path) -> dict[str, Any]:
    """{name: {"dtype", "shape", "data_offsets"}} of the tensors in a safetensors file.

    The file starts with 8 bytes that give the length of the header, which is JSON
    (https://huggingface.co/docs/safetensors).

    Raises:
        WeightsError: the file cannot be read, is not a safetensors file, or not all of it is there.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            text = file.read(length) if 8 + length <= size and length <= MAX_HEADER_BYTES else b""
    except OSError as error:
        raise WeightsError(f"{path} cannot be read ({error.strerror}).") from error
    try:
        header = json.loads(text)
        header.pop("__metadata__", None)
        end = max(entry["data_offsets"][1] for entry in header.values())
    except (ValueError, TypeError, KeyError, AttributeError, IndexError, RecursionError) as error:
        problem = "it is not a safetensors file, or is damaged"
        raise WeightsError(f"{path} cannot be read: {problem}.") from error
    if 8 + length + end != size:
        problem = f"has {size:,} bytes where its header says {8 + length + end:,}"
        raise WeightsError(f"{path} {problem}: download it again.")
    return dict(header)
