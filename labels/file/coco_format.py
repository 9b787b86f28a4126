"""COCO's format of instances: a JSON object with images, annotations and categories."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from forager.payloads import Box
from labels.file.collector import (
    Collector,
    box_problem,
    category_problem,
    coordinate_problem,
)
from labels.file.describe import got
from labels.file.json_stream import JsonReader, Progress
from labels.file.modes import DEFAULT_MODE

EXPECTED = (
    "expected a COCO file of instances: an object with the lists images (id, file_name), "
    "annotations (image_id, category_id, bbox) and categories (id, name)"
)
Corners = tuple[float, ...]  # x1, y1, x2, y2; () for a label of the whole image
Id = int | str


def collect(text: str, collector: Collector, progress: Progress, as_labels: bool = False) -> None:
    """Add all boxes of a file in this format to the collector.

    Args:
        as_labels: add labels of whole images instead, one per image and category.

    Raises:
        LabelFileError: the text is not valid JSON.
    """
    images: dict[Id, str] = {}
    categories: dict[Id, str] = {}
    annotations: list[tuple[int, Id, Id, Corners]] = []

    def image(number: int, item: dict[str, Any]) -> str:
        if type(path := item.get("file_name")) is not str:
            return f"file_name: expected a string, got {got(path)}"
        if item["id"] in images:
            return f"id: another image has the id {got(item['id'])}"
        images[item["id"]] = collector.image(path, f"images[{number}].file_name")
        return ""

    def category(number: int, item: dict[str, Any]) -> str:
        if problem := category_problem(item.get("name")):
            return f"name: {problem}"
        if item["id"] in categories:
            return f"id: another category has the id {got(item['id'])}"
        categories[item["id"]] = item["name"]
        return ""

    def annotation(number: int, item: dict[str, Any]) -> str:
        corners: Corners = ()
        if not as_labels:
            corners, problem = _corners(item.get("bbox"))
            if problem:
                return f"bbox: {problem}"
        annotations.append((number, item["image_id"], item["category_id"], corners))
        return ""

    lists: dict[str, tuple[tuple[str, ...], Callable[[int, dict[str, Any]], str]]] = {
        "images": (("id",), image),
        "categories": (("id",), category),
        "annotations": (("image_id", "category_id"), annotation),
    }
    reader = JsonReader(text, progress)
    missing = set(lists)
    for name in reader.members() if reader.peek() == "{" else ():
        if name not in lists or reader.peek() != "[":
            reader.value()
            continue
        missing.discard(name)
        ids, take = lists[name]
        for number in reader.elements():
            collector.stop_after_many_findings()
            item = reader.value()
            problem = _item_problem(item, ids) or f".{take(number, item)}"
            if problem != ".":
                collector.findings.append(f"{name}[{number}]{problem}.")
    if missing:
        collector.findings.append(
            f"{EXPECTED}; there is no list {' and no '.join(sorted(missing))}."
        )
        return
    reader.end()
    _resolve(annotations, images, categories, collector)


def _item_problem(item: Any, ids: tuple[str, ...]) -> str:
    """What is wrong with an element of one of the lists, or ""."""
    if not isinstance(item, dict):
        return f": expected an object, got {got(item)}"
    for name in ids:
        if type(item.get(name)) not in (int, str):
            return f".{name}: expected a number, got {got(item.get(name))}"
    return ""


def _corners(bbox: Any) -> tuple[Corners, str]:
    """x1, y1, x2 and y2 of [x, y, width, height], and what is wrong with it or ""."""
    if not isinstance(bbox, list) or len(bbox) != 4:
        return (), f"expected [x, y, width, height], got {got(bbox)}"
    for value in bbox:
        if problem := coordinate_problem(value):
            return (), problem
    x, y, width, height = map(float, bbox)
    corners = x, y, x + width, y + height
    return corners, box_problem(*corners)


def _resolve(
    annotations: list[tuple[int, Id, Id, Corners]],
    images: dict[Id, str],
    categories: dict[Id, str],
    collector: Collector,
) -> None:
    """Replace the ids by images and categories, and add what they give."""
    seen: dict[tuple[Any, ...], int] = {}
    for number, image_id, category_id, corners in annotations:
        image, category = images.get(image_id), categories.get(category_id)
        if image is None or category is None:
            what = ("image_id", image_id) if image is None else ("category_id", category_id)
            collector.findings.append(
                f"annotations[{number}].{what[0]}: nothing in the file has the id {got(what[1])}."
            )
            continue
        first = seen.setdefault((image, category, *corners), number)
        if not corners:
            if first == number:
                collector.groups[category, DEFAULT_MODE].append(image)
            continue
        if first != number:
            collector.findings.append(f"annotations[{first}] and [{number}]: the same box twice.")
        collector.boxes.append(Box(image, category, DEFAULT_MODE, *corners))
