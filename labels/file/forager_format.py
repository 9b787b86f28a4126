"""Forager's own format: a JSON object {image path: [annotation, ...]}."""

from __future__ import annotations

import re
import sys
from typing import Any

from forager.payloads import Box
from labels.file.collector import (
    COORDINATES,
    Collector,
    box_problem,
    category_problem,
    coordinate_problem,
)
from labels.file.describe import LabelFileError, got, key, quoted, step
from labels.file.json_stream import JsonReader, Progress, Repeated
from labels.file.modes import DEFAULT_MODE

LABEL_KEYS = {"category", "value", "mode", "is_box"}
BOX_KEYS = {*LABEL_KEYS, *COORDINATES}
BOX_WORDS = {"bbox", "box", "x", "y", "w", "h", "width", "height", "xmin", "ymin", "xmax", "ymax"}
COCO_LISTS = ("images", "annotations", "categories")
JSON_START = re.compile(r'[\[{"\d-]|null|true|false|NaN|Infinity')
OTHER_OBJECTS = re.compile(r'\[\s*\{\s*"(?!(?:' + "|".join(BOX_KEYS) + r')")')

Problem = tuple[str, str]  # where in an annotation, what


def collect(text: str, collector: Collector, progress: Progress) -> None:
    """Add all labels and boxes of a file in this format to the collector.

    Raises:
        LabelFileError: the text is not valid JSON, or of another format.
    """
    reader = JsonReader(text, progress)
    if not reader.matches(JSON_START):
        raise LabelFileError(["this is not JSON: if it is CSV, add --format csv."])
    if reader.peek() != "{":
        document = reader.value()
        reader.end()
        collector.findings.append(
            f"expected an object {{image path: [annotation, ...]}}, got {got(document)}."
        )
        return
    for path in reader.members():
        if path in COCO_LISTS and reader.matches(OTHER_OBJECTS):
            raise LabelFileError(["this is a COCO file: add --format coco."])
        image = collector.image(path, key(path))
        _collect_annotations(path, image, reader.value(), collector)
    reader.end()


def _collect_annotations(path: str, image: str, annotations: Any, collector: Collector) -> None:
    """Add the annotations of one image."""
    report = collector.findings.append
    if type(annotations) is not list:
        report(f"{key(path)}: expected a list of annotations, got {got(annotations)}.")
        return
    labelled: dict[str, int] = {}
    boxes: dict[tuple[Any, ...], int] = {}
    for number, annotation in enumerate(annotations):
        if type(annotation) is str:
            category, mode = annotation, DEFAULT_MODE
            known = (category, mode) in collector.groups
            if not known and (problem := category_problem(category)):
                report(f"{key(path)}[{number}]: {problem}.")
                continue
        else:
            problems = _problems(annotation)
            for place, problem in problems:
                report(f"{key(path)}[{number}]{place}: {problem}.")
            if problems:
                continue
            category = annotation["category"]
            mode = annotation.get("value", annotation.get("mode", DEFAULT_MODE))
            if annotation.get("is_box"):
                # Interned, because a file of millions of boxes repeats few categories.
                group = sys.intern(category), sys.intern(mode)
                box = Box(image, *group, *(float(annotation[c]) for c in COORDINATES))
                same = boxes.setdefault((category, *box[3:]), number)
                if same != number:
                    report(f"{key(path)}[{same}] and [{number}]: the same box twice.")
                collector.boxes.append(box)
                continue
        if category in labelled:
            report(
                f"{key(path)}[{labelled[category]}] and [{number}]: two annotations of the "
                f"category {quoted(category)} on one image."
            )
        labelled.setdefault(category, number)
        collector.groups[category, mode].append(image)


def _problems(annotation: Any) -> list[Problem]:
    """What is wrong with an annotation that is not a string, and where in it."""
    if not isinstance(annotation, dict):
        expected = '"CATEGORY" or {"category": "CATEGORY", "value": "MODE"}'
        return [("", f"expected {expected}, got {got(annotation)}")]
    problems: list[Problem] = []
    if isinstance(annotation, Repeated):
        problems += [(step(name), "given more than once") for name in annotation.repeated_keys]
    is_box = annotation.get("is_box", False)
    if type(is_box) is not bool:
        problems.append((".is_box", f"expected true or false, got {got(is_box)}"))
    problems += _unknown_keys(annotation, bool(is_box))
    if "category" not in annotation:
        problems.append(("", 'expected a "category", got an object without'))
    for name in ("category", "value", "mode"):
        if name in annotation and (problem := category_problem(annotation[name])):
            problems.append((f".{name}", problem))
    if {"value", "mode"} <= annotation.keys() and annotation["value"] != annotation["mode"]:
        both = f"{got(annotation['value'])} and {got(annotation['mode'])}"
        problems.append(("", f'"value" and "mode" both name the mode, but differ: {both}'))
    return problems + (_box_problems(annotation) if is_box is True else [])


def _unknown_keys(annotation: dict[str, Any], is_box: bool) -> list[Problem]:
    """The keys that an annotation does not have."""
    known = BOX_KEYS if is_box else LABEL_KEYS
    if annotation.keys() <= known:
        return []
    label = 'unknown; an annotation has a "category" and a "value", which is the mode'
    box = 'unknown; a box has "is_box": true, and the corners "x1", "y1", "x2" and "y2"'
    corner = 'belongs to a box, which also has "is_box": true'
    return [
        (
            step(name),
            corner if name in COORDINATES else box if is_box or name in BOX_WORDS else label,
        )
        for name in annotation
        if name not in known
    ]


def _box_problems(annotation: dict[str, Any]) -> list[Problem]:
    """What is wrong with the coordinates of a box."""
    missing = [name for name in COORDINATES if name not in annotation]
    if missing:
        return [("", f"the box has no {' and no '.join(missing)}")]
    problems = [
        (f".{name}", problem)
        for name in COORDINATES
        if (problem := coordinate_problem(annotation[name]))
    ]
    if problems:
        return problems
    problem = box_problem(*(annotation[name] for name in COORDINATES))
    return [("", problem)] if problem else []
