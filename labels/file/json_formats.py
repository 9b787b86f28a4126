"""Label files in JSON: Forager's format, {image path: [annotation, ...]}, and COCO's instances."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Container, Iterator
from typing import Any

from forager.generation import Box
from labels.file.checks import (
    DEFAULT_MODE,
    Collector,
    LabelFileError,
    box_problem,
    category_problem,
    coordinate_problem,
    got,
    key,
    quoted,
)
from labels.file.text import JsonReader, Progress, Repeated

CORNERS = ("x1", "y1", "x2", "y2")
LABEL_KEYS = {"category", "value", "mode", "is_box"}
BOX_KEYS = {*LABEL_KEYS, *CORNERS}
BOX_WORDS = {*CORNERS, "bbox", "box", "x", "y", "w", "h", "width", "height"}
BOX_WORDS |= {"xmin", "ymin", "xmax", "ymax"}
UNKNOWN = 'unknown; an annotation has a "category" and a "value", which is the mode'
UNKNOWN_OF_BOX = 'unknown; a box has "is_box": true, and the corners "x1", "y1", "x2" and "y2"'
COCO_FIELDS = {  # of the elements of each list: ids, and last what they stand for
    "images": ("id", "file_name"),
    "categories": ("id", "name"),
    "annotations": ("image_id", "category_id", "bbox"),
}
OTHER_OBJECTS = re.compile(r'\[\s*\{\s*"(?!(?:' + "|".join(BOX_KEYS) + r')")')
COCO_EXPECTED = (
    "expected a COCO file of instances: an object with the lists images (id, file_name), "
    "annotations (image_id, category_id, bbox) and categories (id, name)"
)
Id = int | str  # of an image or a category in a COCO file
Corners = tuple[float, ...]  # x1, y1, x2, y2; () for a label of the whole image


def collect_forager(text: str, collector: Collector, progress: Progress) -> None:
    """Add all labels and boxes of a file in Forager's format to the collector.

    Raises:
        LabelFileError: the text is not valid JSON, or of another format.
    """
    reader = JsonReader(text, progress)
    if reader.peek() != "{":
        raise LabelFileError(
            "expected a JSON object {image path: [annotation, ...]}: if this is CSV, add --format "
            "csv."
        )
    for path in reader.members():
        if path in COCO_FIELDS and reader.matches(OTHER_OBJECTS):
            raise LabelFileError("this is a COCO file: add --format coco.")
        image = collector.image(path, key(path))
        _collect_annotations(path, image, reader.value(), collector)
    reader.end()


def _collect_annotations(path: str, image: str, annotations: Any, collector: Collector) -> None:
    """Add the annotations of one image."""
    report = collector.report
    if type(annotations) is not list:
        report(f"{key(path)}: expected a list of annotations, got {got(annotations)}.")
        return
    labelled: dict[str, int] = {}
    boxes: dict[tuple[str, Corners], int] = {}
    for number, annotation in enumerate(annotations):
        if type(annotation) is str:
            category, mode = annotation, DEFAULT_MODE
            known = (category, mode) in collector.groups
            if not known and (problem := category_problem(category)):
                report(f"{key(path)}[{number}]: {problem}.")
                continue
        else:
            if problems := list(_problems(annotation)):
                for problem in problems:
                    report(f"{key(path)}[{number}]{problem}.")
                continue
            category = annotation["category"]
            mode = annotation.get("value", annotation.get("mode", DEFAULT_MODE))
            if annotation.get("is_box"):
                corners = tuple(float(annotation[name]) for name in CORNERS)
                same = boxes.setdefault((category, corners), number)
                if same != number:
                    report(f"{key(path)}[{same}] and [{number}]: the same box twice.")
                collector.boxes.append(_box(image, category, mode, corners))
                continue
        first = labelled.setdefault(category, number)
        if first != number:
            report(
                f"{key(path)}[{first}] and [{number}]: two annotations of the category "
                f"{quoted(category)} on one image."
            )
        collector.groups[category, mode].append(image)


def _box(image: str, category: str, mode: str, corners: Corners) -> Box:
    category, mode = sys.intern(category), sys.intern(mode)  # millions of boxes repeat few
    x1, y1, x2, y2 = corners
    return Box(identifier=image, category=category, mode=mode, x1=x1, y1=y1, x2=x2, y2=y2)


def _problems(annotation: Any) -> Iterator[str]:
    """Where in an annotation that is not a string something is wrong, and what."""
    if not isinstance(annotation, dict):
        expected = '"CATEGORY" or {"category": "CATEGORY", "value": "MODE"}'
        yield f": expected {expected}, got {got(annotation)}"
        return
    if isinstance(annotation, Repeated):
        for name in annotation.repeated_keys:
            yield f"{_step(name)}: given more than once"
    is_box = annotation.get("is_box", False)
    if type(is_box) is not bool:
        yield f".is_box: expected true or false, got {got(is_box)}"
    known = BOX_KEYS if is_box else LABEL_KEYS
    for name in annotation:
        if name not in known:
            yield f"{_step(name)}: {UNKNOWN_OF_BOX if is_box or name in BOX_WORDS else UNKNOWN}"
    if "category" not in annotation:
        yield ': expected a "category", got an object without'
    for name in ("category", "value", "mode"):
        if name in annotation and (problem := category_problem(annotation[name])):
            yield f".{name}: {problem}"
    if {"value", "mode"} <= annotation.keys() and annotation["value"] != annotation["mode"]:
        both = f"{got(annotation['value'])} and {got(annotation['mode'])}"
        yield f': "value" and "mode" both name the mode, but differ: {both}'
    if is_box is True:
        yield from _box_problems(annotation)


def _box_problems(annotation: dict[str, Any]) -> list[str]:
    """What is wrong with the coordinates of a box."""
    if missing := [name for name in CORNERS if name not in annotation]:
        return [f": the box has no {' and no '.join(missing)}"]
    problems = [
        f".{name}: {problem}"
        for name in CORNERS
        if (problem := coordinate_problem(annotation[name]))
    ]
    if not problems and (problem := box_problem(*(annotation[name] for name in CORNERS))):
        problems.append(f": {problem}")
    return problems


def _step(name: str) -> str:
    """The place below a key that is usually an identifier: .name."""
    return f".{name}" if name.isidentifier() and len(name) < 40 else key(name)


def collect_coco(
    text: str, collector: Collector, progress: Progress, as_labels: bool = False
) -> None:
    """Add all boxes of a COCO file of instances to the collector.

    Args:
        as_labels: add labels of whole images instead, one per image and category.

    Raises:
        LabelFileError: the text is not valid JSON.
    """
    report = collector.report
    rows = _read_coco(JsonReader(text, progress), report)
    if missing := sorted(COCO_FIELDS.keys() - rows.keys()):
        report(f"{COCO_EXPECTED}; there is no list {' and no '.join(missing)}.")
        return
    images: dict[Id, str] = {}
    categories: dict[Id, str] = {}
    for number, image_id, path in rows["images"]:
        where = f"images[{number}]"
        if type(path) is not str:
            report(f"{where}.file_name: expected a string, got {got(path)}.")
        elif image_id in images:
            report(f"{where}.id: another image has the id {got(image_id)}.")
        else:
            images[image_id] = collector.image(path, f"{where}.file_name")
    for number, category_id, name in rows["categories"]:
        where = f"categories[{number}]"
        if problem := category_problem(name):
            report(f"{where}.name: {problem}.")
        elif category_id in categories:
            report(f"{where}.id: another category has the id {got(category_id)}.")
        else:
            categories[category_id] = name
    seen: dict[tuple[str, str, Corners], str] = {}
    for number, image_id, category_id, bbox in rows["annotations"]:
        where = f"annotations[{number}]"
        corners, problem = ((), "") if as_labels else _coco_corners(bbox)
        if image_id not in images:
            report(f"{where}.image_id: {_unknown_id(image_id, 'images', images)}.")
        elif category_id not in categories:
            report(f"{where}.category_id: {_unknown_id(category_id, 'categories', categories)}.")
        elif problem:
            hint = "; --as_labels stores categories of whole images" if bbox is None else ""
            report(f"{where}.bbox: {problem}{hint}.")
        else:
            image, category = images[image_id], categories[category_id]
            first = seen.setdefault((image, category, corners), where)
            if corners and first != where:
                report(f"{first} and {where}: the same box twice.")
            elif corners:
                collector.boxes.append(_box(image, category, DEFAULT_MODE, corners))
            elif first == where:
                collector.groups[category, DEFAULT_MODE].append(image)


def _unknown_id(unknown: Id, name: str, known: Container[Id]) -> str:
    """What is wrong with an id that no element of the list `name` has, and what to do."""
    other: Id | None = str(unknown)
    if isinstance(unknown, str):
        other = int(unknown) if unknown.isascii() and unknown.isdecimal() else None
    if other in known:
        return (
            f"the id {got(unknown)} is {got(other)} in the list {name}: write ids of both lists as "
            "numbers, or both as text"
        )
    return (
        f"no element of the list {name} has the id {got(unknown)}: add it there, or remove the "
        "annotation"
    )


def _read_coco(
    reader: JsonReader, report: Callable[[str], None]
) -> dict[str, list[tuple[Any, ...]]]:
    """The number and the fields of each element with valid ids, by list; reports the others."""
    rows: dict[str, list[tuple[Any, ...]]] = {}
    for name in reader.members() if reader.peek() == "{" else ():
        fields = COCO_FIELDS.get(name)
        if fields is None or reader.peek() != "[":
            reader.value()
            continue
        if name in rows:
            report(f"{name}: given more than once.")
        rows[name] = []
        for number, _ in enumerate(reader.elements()):
            item = reader.value()
            if not isinstance(item, dict):
                report(f"{name}[{number}]: expected an object, got {got(item)}.")
                continue
            row = [item.get(field) for field in fields]
            ids = dict(zip(fields, row[:-1], strict=False))
            wrong = [field for field, found in ids.items() if type(found) not in (int, str)]
            for field in wrong:
                report(
                    f"{name}[{number}].{field}: expected a number or a text, got {got(ids[field])}."
                )
            if not wrong:
                rows[name].append((number, *row))
    if rows.keys() == COCO_FIELDS.keys():
        reader.end()
    return rows


def _coco_corners(bbox: Any) -> tuple[Corners, str]:
    """x1, y1, x2 and y2 of [x, y, width, height], and what is wrong with it or ""."""
    if not isinstance(bbox, list) or len(bbox) != 4:
        return (), f"expected [x, y, width, height], got {got(bbox)}"
    for value in bbox:
        if problem := coordinate_problem(value):
            return (), problem
    x, y, width, height = map(float, bbox)
    corners = x, y, x + width, y + height
    return corners, box_problem(*corners)
