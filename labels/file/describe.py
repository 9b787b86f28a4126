"""Parts of findings about label files: where something is, and what was found there."""

from __future__ import annotations

import json
from typing import Any

from common.terminal import printable


class LabelFileError(Exception):
    """What is wrong with a label file: sentences that each say where."""

    def __init__(self, findings: list[str]) -> None:
        super().__init__(findings[0])
        self.findings = findings


def key(name: str) -> str:
    """The place below a key of a JSON object: ["name"]."""
    return f"[{quoted(name)}]"


def step(name: str) -> str:
    """The same for a key that is usually an identifier: .name."""
    return f".{name}" if name.isidentifier() and len(name) < 40 else key(name)


def inverted(category: str, image: str) -> str:
    """What is wrong with a file that has a category where an image is expected, and the reverse."""
    return (
        f"the file gives {quoted(category)} the label {quoted(image)}: it maps categories to "
        "images. Write each image first, and then its categories."
    )


def quoted(text: str) -> str:
    """A printable text in quotation marks."""
    return f'"{printable(text)}"'


def got(value: Any) -> str:
    """A JSON value: as JSON if that is short, or its kind."""
    if isinstance(value, dict):
        return "an object"
    if isinstance(value, list):
        return "a list"
    if isinstance(value, str):
        return f'"{printable(value, 40)}"'
    return printable(json.dumps(value), 40)
