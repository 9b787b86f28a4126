"""The weights of both models: where they are, whether they fit, and ResNet-50's as arrays."""

import hashlib
from pathlib import Path

import click


class WeightsError(click.ClickException):
    """What is wrong with the weights, and what to do, in one sentence."""


def digest(path: Path) -> str:
    """The SHA-256 of a weights file, or of model.safetensors in a directory, in hexadecimal."""
    hashed, block = hashlib.sha256(), memoryview(bytearray(1 << 24))
    with (path / "model.safetensors" if path.is_dir() else path).open("rb", 0) as file:
        while size := file.readinto(block):
            hashed.update(block[:size])
    return hashed.hexdigest()
