"""An index on this machine: its lists, classes and memory-mapped vectors, read and checked."""

import json
import posixpath
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from common.names import identifier
from dataset.arrays import DIMENSIONS
from local_forager.indexes.image_sizes import Sizes, SizesProblem, read_sizes
from local_forager.indexes.vectors import Vectors
from weights.safe_pickle import MAX_READS, UnsafePickleError, read_pickle

LISTS = ("labels.json", "identifiers.json", "val_identifiers.json")
CLASSES = "imagenet.pickle"
MAX_CLASS = 2**31 - 1
READS_PER_CLASS = 10  # limit for the pickle; Python writes up to 8 parts per entry


class IndexProblem(Exception):
    """Why there is no usable index, in one sentence for the person at the page."""


@dataclass(frozen=True)
class Index:
    """A complete index: row i is the image names[i], training images first."""

    directory: Path
    names: list[str]
    num_train: int
    classes: np.ndarray  # int32 (n,), the ImageNet class of each image, -1 where there is none
    failed: np.ndarray  # bool (n,), images whose vectors are all zero
    embeddings: dict[str, Vectors]
    rows_of: dict[str, list[int]]  # identifier -> rows; several only where identifiers collide
    sizes: Sizes | None = None
    no_sizes: str = ""  # why they are not known, in one sentence

    def split(self, row: int) -> str:
        return "train" if row < self.num_train else "val"

    def pixels(self, row: int) -> tuple[int, int] | None:
        """Width and height of an image; None where they are not known."""
        if self.sizes is None or self.sizes.width[row] < 0:
            return None
        return int(self.sizes.width[row]), int(self.sizes.height[row])


def vectors_path(directory: Path, embedding: str) -> Path:
    """The file with the vectors of one embedding, headerless."""
    return directory / f"{embedding}.f32"


def read_classes(path: Path, images: int) -> dict[str, int]:
    """{basename: ImageNet class} of an aux_labels pickle; {} if there is no such file."""
    try:
        classes = read_pickle(path, MAX_READS + READS_PER_CLASS * images)
    except FileNotFoundError:
        return {}
    except OSError as error:
        problem = f"cannot be read ({error.strerror})"
        raise IndexProblem(f"The ImageNet classes of the index {problem}.") from error
    except UnsafePickleError as error:
        raise IndexProblem(f"The file of ImageNet classes of the index {error}.") from error
    if not isinstance(classes, dict) or not all(
        type(name) is str and type(number) is int and 0 <= number <= MAX_CLASS
        for name, number in classes.items()
    ):
        raise IndexProblem("The ImageNet classes of the index are not a dict of names to numbers.")
    return classes


def _read_list(path: Path) -> object:
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise IndexProblem(f"{path.name} of the index cannot be read: {error}.") from error


def read_names(directory: Path) -> tuple[list[str], int]:
    """All object names in row order, and how many of them are training images."""
    names = _read_list(directory / LISTS[0])
    if not isinstance(names, list) or not all(type(name) is str for name in names):
        raise IndexProblem(f"{LISTS[0]} of the index is not a list of object names.")
    num_train = len(names)
    for name in LISTS[1:]:
        rows = _read_list(directory / name)
        if not isinstance(rows, dict) or not all(
            type(row) is int and 0 <= row < len(names) for row in rows.values()
        ):
            raise IndexProblem(f"{name} of the index is not a dict of identifiers to rows.")
        num_train = min(rows.values(), default=len(names))  # the last list is of validation
    return names, num_train


def _open_vectors(directory: Path, rows: int) -> dict[str, Vectors]:
    embeddings = {}
    for name, dimensions in DIMENSIONS.items():
        path, expected = vectors_path(directory, name), rows * dimensions * 4
        size = path.stat().st_size if path.exists() else 0
        if size != expected:
            raise IndexProblem(
                f"The {name} array of the index has {size:,} bytes; {rows:,} images with "
                f"{dimensions:,} numbers each need {expected:,}."
            )
        embeddings[name] = Vectors(path, rows, dimensions)
    return embeddings


def read_index(directory: Path) -> Index:
    """The index in a directory; raises IndexProblem if a file is damaged or has the wrong size."""
    names, num_train = read_names(directory)
    embeddings = _open_vectors(directory, len(names))
    by_name = read_classes(directory / CLASSES, len(names))
    classes = np.array([by_name.get(posixpath.basename(name), -1) for name in names], np.int32)
    failed = classes < 0
    for row in np.flatnonzero(failed).tolist():
        failed[row] = not embeddings["imagenet"].array[row].any()
    rows_of: dict[str, list[int]] = {}
    for row, name in enumerate(names):
        rows_of.setdefault(identifier(name), []).append(row)
    sizes, no_sizes = None, ""
    try:
        sizes = read_sizes(directory, names)
    except SizesProblem as error:
        no_sizes = str(error)
    return Index(directory, names, num_train, classes, failed, embeddings, rows_of, sizes, no_sizes)
