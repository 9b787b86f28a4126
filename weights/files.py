"""Files of weights of any model: their SHA-256, and the header of a safetensors file."""

import hashlib
from pathlib import Path

from safetensors import SafetensorError, safe_open

from common.errors import WeightsError


def digest(path: Path) -> str:
    """The SHA-256 of a weights file, or of model.safetensors in a directory, in hexadecimal."""
    hashed, block = hashlib.sha256(), memoryview(bytearray(1 << 24))
    with (path / "model.safetensors" if path.is_dir() else path).open("rb", 0) as file:
        while size := file.readinto(block):
            hashed.update(block[:size])
    return hashed.hexdigest()


def safetensors_header(path: Path) -> dict[str, tuple[list[int], str]]:
    """{name: (shape, type)} of the tensors in a safetensors file, which are not read.

    Raises:
        WeightsError: the file cannot be read, is not a safetensors file, or not all of it is there.
    """
    try:
        with safe_open(path, framework="np") as file:
            parts = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
            return {name: (part.get_shape(), part.get_dtype()) for name, part in parts.items()}
    except OSError as error:
        raise WeightsError(f"{path} cannot be read ({error}).") from error
    except SafetensorError as error:
        raise WeightsError(
            f"{path} is not a safetensors file, or is damaged ({error}): download it again."
        ) from error
