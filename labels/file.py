"""Reads a label file: parses it, checks it, and groups its labels by category and mode."""

import json
from collections import Counter, defaultdict
from collections.abc import Callable
from typing import Any, NamedTuple

from common.names import MAX_IDENTIFIER_LENGTH, MAX_TEXT_LENGTH, identifier, text_problem
from common.terminal import printable
from labels.requests import Group

DEFAULT_MODE = "POSITIVE"
ANNOTATION_KEYS = {"category", "value", "mode", "is_box"}

Report = Callable[[str], None]
Problem = tuple[str, str]  # where in an annotation, what


class Repeated(dict[str, Any]):
    """A JSON object in which a key was given more than once; `json` alone keeps the last."""

    def __init__(self, pairs: list[tuple[str, Any]]) -> None:
        super().__init__(pairs)
        counts = Counter(key for key, _ in pairs)
        self.keys_given_again = [key for key, count in counts.items() if count > 1]


class LabelFileError(Exception):
    """What is wrong with a label file, each finding a sentence that says where."""

    def __init__(self, findings: list[str]) -> None:
        super().__init__(findings[0])
        self.findings = findings


class Labels(NamedTuple):
    """A whole and correct label file: identifiers, sorted, and each image's path in the file."""

    groups: dict[Group, list[str]]
    paths: dict[str, str]


def read_labels(data: bytes) -> Labels:
    """The labels in the bytes of a label file.

    Raises:
        LabelFileError: with everything that is wrong.
    """
    labels, findings = check_labels(parse(data))
    if findings:
        raise LabelFileError(findings)
    return labels


def parse(data: bytes) -> Any:
    """The JSON document in a file's bytes; objects with a repeated key become Repeated.

    Raises:
        LabelFileError: with the line and the column.
    """
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise LabelFileError(["the file is UTF-16 text: save it as UTF-8."])
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line, column = _place(data[: error.start].decode())
        raise LabelFileError(
            [f"line {line}, column {column}: byte 0x{data[error.start]:02x} is not UTF-8 text."]
        ) from None
    if not text.strip():
        raise LabelFileError(["the file is empty."])
    try:
        return json.loads(text, object_pairs_hook=_checked_object)
    except json.JSONDecodeError as error:
        raise LabelFileError(
            [f"line {error.lineno}, column {error.colno}: not valid JSON ({error.msg})."]
        ) from None
    except RecursionError:
        raise LabelFileError(
            ["lists or objects are nested far too deep: see the README for the format."]
        ) from None
    except ValueError:  # Python refuses to read a number of more than 4,300 digits
        raise LabelFileError(["a number in the file has thousands of digits."]) from None


def _place(before: str) -> tuple[int, int]:
    """Line and column, from 1, of what comes after this text."""
    return before.count("\n") + 1, len(before) - before.rfind("\n")


def _checked_object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    return found if len(found) == len(pairs) else Repeated(pairs)


def check_labels(document: Any) -> tuple[Labels, list[str]]:
    """The labels in a JSON document, and what is wrong with it."""
    if not isinstance(document, dict):
        return Labels({}, {}), [
            f"expected an object {{image path: [annotation, ...]}}, got {_got(document)}."
        ]
    findings: list[str] = []
    if isinstance(document, Repeated):
        findings += [f"{_key(path)}: given more than once." for path in document.keys_given_again]
    groups: dict[Group, list[str]] = defaultdict(list)
    paths: dict[str, str] = {}
    for path, annotations in document.items():
        image = identifier(path)
        problem = _image_problem(path, image)
        if problem:
            findings.append(f"{_key(path)}: {problem}.")
        elif image in paths:
            findings.append(
                f"{_key(paths[image])} and {_key(path)} are the same image, {_quoted(image)}: "
                "images are known by the file name without directory and extension."
            )
        else:
            paths[image] = path
        _check_annotations(path, image, annotations, groups, findings.append)
    ordered = {group: sorted(groups[group]) for group in sorted(groups)}
    return Labels(ordered, paths), findings


def _image_problem(path: str, image: str) -> str:
    """What keeps the server from having an image of this name, or ""."""
    if not image:
        return "names no image: it has no file name"
    if len(image) > MAX_IDENTIFIER_LENGTH:
        return f"the file name is longer than {MAX_IDENTIFIER_LENGTH} characters"
    return text_problem(image)


def _check_annotations(
    path: str, image: str, annotations: Any, groups: dict[Group, list[str]], report: Report
) -> None:
    """Put the image in the groups of its annotations; report what is wrong with them."""
    if type(annotations) is not list:
        report(f"{_key(path)}: expected a list of annotations, got {_got(annotations)}.")
        return
    seen: dict[str, int] = {}
    for number, annotation in enumerate(annotations):
        if type(annotation) is str:
            category, mode, problems = annotation, DEFAULT_MODE, _text_problems(annotation)
        else:
            category, mode, problems = _check_object(annotation)
        if problems:
            for place, problem in problems:
                report(f"{_key(path)}[{number}]{place}: {problem}.")
            continue
        if category in seen:
            report(
                f"{_key(path)}[{seen[category]}] and [{number}]: two annotations of the category "
                f"{_quoted(category)} on one image."
            )
        seen.setdefault(category, number)
        groups[category, mode].append(image)


def _check_object(annotation: Any) -> tuple[str, str, list[Problem]]:
    """Category, mode, and what is wrong where in the annotation."""
    if not isinstance(annotation, dict):
        expected = '"CATEGORY" or {"category": "CATEGORY", "value": "MODE"}'
        return "", "", [("", f"expected {expected}, got {_got(annotation)}")]
    problems: list[Problem] = []
    if isinstance(annotation, Repeated):
        problems += [(_step(key), "given more than once") for key in annotation.keys_given_again]
    if not annotation.keys() <= ANNOTATION_KEYS:
        problems += [
            (_step(key), 'unknown; an annotation has a "category" and a "value", which is the mode')
            for key in annotation
            if key not in ANNOTATION_KEYS
        ]
    if annotation.get("is_box", False) is not False:
        problems.append((".is_box", "labels here are for whole images, not for boxes"))
    if "category" not in annotation:
        problems.append(("", 'expected a "category", got an object without'))
    modes = {key: annotation[key] for key in ("value", "mode") if key in annotation}
    texts = {"category": annotation.get("category", "x"), **modes}
    for key, text in texts.items():
        problems += _text_problems(text, f".{key}")
    if len(modes) == 2 and modes["value"] != modes["mode"]:
        both = f"{_got(modes['value'])} and {_got(modes['mode'])}"
        problems.append(("", f'"value" and "mode" are the same thing, but given as {both}'))
    mode = next(iter(modes.values()), DEFAULT_MODE)  # later label files write "mode"
    return texts["category"], mode, problems


def _text_problems(value: Any, place: str = "") -> list[Problem]:
    """What keeps the value from being a category or a mode."""
    if type(value) is not str:
        return [(place, f"expected a string, got {_got(value)}")]
    if not value.strip():
        return [(place, "the text is empty")]
    if len(value) > MAX_TEXT_LENGTH:
        length = f"{len(value):,} characters, at most {MAX_TEXT_LENGTH} are allowed"
        return [(place, f"{_quoted(value)} has {length}")]
    problem = text_problem(value)
    return [(place, f"the text {problem}")] if problem else []


def _key(path: str) -> str:
    return f"[{_quoted(path)}]"


def _step(key: str) -> str:
    return f".{key}" if key.isidentifier() and len(key) < 40 else _key(key)


def _quoted(text: str) -> str:
    return f'"{printable(text)}"'


def _got(value: Any) -> str:
    """A JSON value as it would be written, where it is short."""
    if isinstance(value, dict):
        return "an object"
    if isinstance(value, list):
        return "a list"
    if isinstance(value, str):
        return f'"{printable(value, 40)}"'
    return printable(json.dumps(value), 40)
