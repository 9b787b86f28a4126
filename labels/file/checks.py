"""Collects the labels and boxes of a file, whatever its format, and what is wrong with them."""

from __future__ import annotations

import json
import math
import shlex
import sys
from collections import Counter, defaultdict
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any

from common.names import (
    IMAGE_SUFFIXES,
    MAX_IDENTIFIER_LENGTH,
    MAX_TEXT_LENGTH,
    identifier,
    text_problem,
)
from common.terminal import count, printable
from forager.generation import Box, Group

MAX_FINDINGS = 100_000
DEFAULT_MODE = "POSITIVE"
BUILT_IN_MODES = (DEFAULT_MODE, "NEGATIVE", "HARD_NEGATIVE", "UNSURE")


class LabelFileError(Exception):
    """What is wrong with a label file: sentences that each say where."""

    def __init__(self, *findings: str) -> None:
        super().__init__(findings[0])
        self.findings = list(findings)


@dataclass(frozen=True)
class Labels:
    """The content of a label file without findings."""

    groups: dict[Group, list[str]]  # labels of whole images: sorted identifiers by group
    boxes: list[Box]  # in the order of the file
    paths: dict[str, str]  # by identifier, the image's path in the file

    def categories(self) -> set[str]:
        """The categories of labels and boxes."""
        return {category for category, _ in self.groups} | {box.category for box in self.boxes}


class Collector:
    """Labels and boxes so far, and sentences about what is wrong."""

    def __init__(self, allowed_modes: Collection[str] = ()) -> None:
        """`allowed_modes` are right although they are nearly built-in ones."""
        self._allowed_modes = allowed_modes
        self.findings: list[str] = []
        self.groups: defaultdict[Group, list[str]] = defaultdict(list)
        self.boxes: list[Box] = []
        self.paths: dict[str, str] = {}

    def image(self, path: str, where: str, once: bool = True) -> str:
        """The identifier of an image of this path; adds a finding if it is not valid.

        `once` is for formats in which each image comes once.
        """
        image = identifier(path)
        known = self.paths.get(image)
        if known is None:
            self.paths[image] = path
            if problem := _image_problem(image):
                self.report(f"{where}: {problem}.")
        elif known == path and once:
            self.report(f"{where}: given more than once.")
        elif known != path:
            self.report(
                f"{key(known)} and {key(path)} are the same image, {quoted(image)}: "
                "images are known by the file name without directory and extension."
            )
        return image

    def report(self, finding: str) -> None:
        """Add a finding.

        Raises:
            LabelFileError: there are so many that the file is of another kind.
        """
        self.findings.append(finding)
        if len(self.findings) >= MAX_FINDINGS:
            raise LabelFileError(*self.findings, "The rest of the file was not read.")

    def result(self) -> Labels:
        """All labels.

        Raises:
            LabelFileError: with all findings.
        """
        self.findings += self._misspelt_modes()
        if self.findings:
            raise LabelFileError(*self.findings)
        ordered = {group: sorted(self.groups[group]) for group in sorted(self.groups)}
        return Labels(ordered, self.boxes, self.paths)

    def _misspelt_modes(self) -> Iterator[str]:
        """A sentence for each mode that is nearly a built-in one, but not allowed."""
        modes = Counter(box.mode for box in self.boxes)
        for (_, mode), images in self.groups.items():
            modes[mode] += len(images)
        for mode, number in modes.items():
            meant = nearly_built_in(mode)
            if meant and mode not in self._allowed_modes:
                yield (
                    f"the mode {quoted(mode)} of {count(number, 'label')} is nearly {meant}, and "
                    f"Forager would store it as another mode: write {meant}, or add --allow_mode "
                    f"{shlex.quote(printable(mode))} if it is right."
                )


def is_image_name(text: str) -> bool:
    """Whether a text looks like the file name of an image."""
    return text.lower().endswith(IMAGE_SUFFIXES)


def _image_problem(image: str) -> str:
    """Why the server cannot have an image with this identifier, or ""."""
    if not image:
        return "names no image: it has no file name"
    if len(image) > MAX_IDENTIFIER_LENGTH:
        return f"the file name is longer than {MAX_IDENTIFIER_LENGTH} characters"
    return text_problem(image) or ""


def category_problem(value: Any) -> str:
    """Why the value cannot be a category or a mode, or ""."""
    if type(value) is not str:
        return f"expected a string, got {got(value)}"
    if not value.strip():
        return "the text is empty"
    if len(value) > MAX_TEXT_LENGTH:
        length = f"{len(value):,} characters, at most {MAX_TEXT_LENGTH} are allowed"
        return f"{quoted(value)} has {length}"
    problem = text_problem(value)
    return f"the text {problem}" if problem else ""


def coordinate_problem(value: Any) -> str:
    """Why the value cannot be a coordinate in pixels, or ""."""
    if type(value) not in (int, float):
        return f"expected a number, got {got(value)}"
    if 0 <= value <= sys.float_info.max:  # NaN is not, nor is an int that no float can hold
        return ""
    return f"expected a finite number, 0 or more, got {got(value)}"


def box_problem(x1: float, y1: float, x2: float, y2: float) -> str:
    """What is wrong with the order of coordinates that are valid one by one, or ""."""
    if not x1 < x2 < math.inf:  # COCO's x + width may be too large for a float
        return f"the box has no width: x1 is {x1:g}, x2 is {x2:g}"
    return "" if y1 < y2 < math.inf else f"the box has no height: y1 is {y1:g}, y2 is {y2:g}"


def nearly_built_in(mode: str) -> str | None:
    """The built-in mode that another mode differs from by one letter, case or spaces."""
    if mode in BUILT_IN_MODES:
        return None
    folded = mode.strip().upper().replace(" ", "_").replace("-", "_")
    return next((name for name in BUILT_IN_MODES if _within_one_letter(folded, name)), None)


def _within_one_letter(text: str, other: str) -> bool:
    """Whether one letter more, less, changed or swapped with the next makes the texts equal."""
    same = 0
    while same < min(len(text), len(other)) and text[same] == other[same]:
        same += 1
    rest, others = text[same:], other[same:]
    swapped = others[1:2] + others[:1] + others[2:]
    return rest[1:] == others or rest == others[1:] or rest[1:] == others[1:] or rest == swapped


def key(name: str) -> str:
    """The place below a key of a JSON object: ["name"]."""
    return f"[{quoted(name)}]"


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
    if isinstance(value, dict | list):
        return "an object" if isinstance(value, dict) else "a list"
    if isinstance(value, str):
        return f'"{printable(value, 40)}"'
    return printable(json.dumps(value), 40)
