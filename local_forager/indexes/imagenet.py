"""The names of the 1,000 ImageNet classes, in the order of ResNet-50's outputs."""

import functools
from pathlib import Path


@functools.cache
def class_names() -> tuple[str, ...]:
    return tuple(Path(__file__).with_name("imagenet_classes.txt").read_text("utf-8").splitlines())


def class_name(number: int) -> str:
    """The name of a class; other numbers, of another model's classes, stay numbers."""
    names = class_names()
    return names[number] if 0 <= number < len(names) else f"class {number}"
