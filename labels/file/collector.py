"""Collects labels and boxes, whatever the format of their file, and checks them."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Collection
from typing import Any, NamedTuple

from common.names import (
    IMAGE_SUFFIXES,
    MAX_IDENTIFIER_LENGTH,
    MAX_TEXT_LENGTH,
    identifier,
    text_problem,
)
from forager.payloads import Box, Group
from labels.file.describe import LabelFileError, got, inverted, key, quoted
from labels.file.modes import misspelled

MAX_FINDINGS = 100_000
COORDINATES = ("x1", "y1", "x2", "y2")


class Labels(NamedTuple):
    """The content of a label file without findings."""

    groups: dict[Group, list[str]]  # labels of whole images: sorted identifiers by group
    boxes: list[Box]  # in the order of the file
    paths: dict[str, str]  # by identifier, the image's path in the file


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
        self.stop_after_many_findings()
        image = identifier(path)
        known = self.paths.get(image)
        if known is None:
            self.paths[image] = path
            if problem := image_problem(image):
                self.findings.append(f"{where}: {problem}.")
        elif known == path and once:
            self.findings.append(f"{where}: given more than once.")
        elif known != path:
            self.findings.append(
                f"{key(known)} and {key(path)} are the same image, {quoted(image)}: "
                "images are known by the file name without directory and extension."
            )
        return image

    def stop_after_many_findings(self) -> None:
        """Raise LabelFileError if there are so many findings that the file is of another kind."""
        if len(self.findings) >= MAX_FINDINGS:
            raise LabelFileError([*self.findings, "The rest of the file was not read."])

    def result(self) -> Labels:
        """All labels.

        Raises:
            LabelFileError: with all findings.
        """
        self._refuse_inverted()
        self.findings += misspelled(self._modes(), self._allowed_modes)
        if self.findings:
            raise LabelFileError(self.findings)
        ordered = {group: sorted(self.groups[group]) for group in sorted(self.groups)}
        return Labels(ordered, self.boxes, self.paths)

    def _modes(self) -> Counter[str]:
        """The number of labels and boxes of each mode."""
        modes = Counter(box.mode for box in self.boxes)
        for (_, mode), images in self.groups.items():
            modes[mode] += len(images)
        return modes

    def _refuse_inverted(self) -> None:
        """Raise LabelFileError if all categories have names of images, and no image has one."""
        categories = [category for category, _ in self.groups]
        if (
            categories
            and all(map(_is_image_name, categories))
            and not any(map(_is_image_name, self.paths.values()))
        ):
            (category, _), (image, *_) = next(iter(self.groups.items()))
            raise LabelFileError([inverted(self.paths[image], category)])


def _is_image_name(text: str) -> bool:
    return text.lower().endswith(IMAGE_SUFFIXES)


def image_problem(image: str) -> str:
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
    try:
        finite = math.isfinite(value)
    except OverflowError:  # an int that no float can hold
        finite = False
    if not finite:
        return f"expected a finite number, got {got(value)}"
    return f"expected a number that is not negative, got {got(value)}" if value < 0 else ""


def box_problem(x1: float, y1: float, x2: float, y2: float) -> str:
    """What is wrong with the order of valid coordinates, or ""."""
    if not x1 < x2:
        return f"the box has no width: x1 is {x1:g}, x2 is {x2:g}"
    return "" if y1 < y2 else f"the box has no height: y1 is {y1:g}, y2 is {y2:g}"
