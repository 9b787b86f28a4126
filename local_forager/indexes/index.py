"""An index on this machine, checked: its lists, ImageNet classes, vectors, fields and labels.

Row i of everything is the image names[i].
"""

import contextlib
import functools
import json
import posixpath
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from common.files import write_atomically
from common.names import identifier
from dataset import manifest
from dataset.arrays import DIMENSIONS, array_path
from local_forager.indexes.fields import ABOUT, QUALITY, Field
from local_forager.indexes.own_columns import NO_COLUMNS, OwnColumns
from local_forager.indexes.vectors import InvertedFile, Progress, Vectors, open_or_build
from local_forager.types import BoxText, CategoryCount, ClassCount, LabelText, PageError
from weights.safe_pickle import MAX_READS, UnsafePickleError, read_pickle

LISTS = ("labels.json", "identifiers.json", "val_identifiers.json")
CLASSES = "imagenet.pickle"
POSITIVE = "POSITIVE"
MAX_CLASS = 2**31 - 1
READS_PER_CLASS = 10  # limit for the pickle; Python writes up to 8 parts per entry
NOT_FINITE = "not-finite.json"  # the rows whose vectors hold NaN or infinity, once looked for
NO_MANIFEST = f"the index has no {manifest.NAME}, as those of older versions have none."
NO_QUALITY = "the index was made by an older version, which did not measure them."
GROUPS = {  # of fields -> their names in a sentence
    "size": "Width, height and aspect",
    "quality": "Brightness, contrast, sharpness and colourfulness",
}
NAMED_BY: dict[str, Callable[[str], str]] = {  # what names an image, looked for in this order
    "object": lambda name: name,
    "file name": lambda name: name.rpartition("/")[2],
    "identifier": identifier,
}
COLUMNS = {"size": "bytes", "width": "width", "height": "height"}  # of a manifest -> field


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)  # asyncio.run writes what it returns
class Index:
    """A complete index, training images first. Only the same object is equal."""

    directory: Path
    names: list[str]
    num_train: int
    classes: np.ndarray  # int32 (n,), the ImageNet class of each image, -1 where there is none
    failed: np.ndarray  # bool (n,), images whose vectors are all zero or not finite
    not_finite: list[int]  # rows; of these images nothing can be computed
    embeddings: dict[str, Vectors]
    rows_of: dict[str, list[int]]  # identifier -> rows; several only where identifiers collide
    fields: dict[str, Field]  # those that are known, by name; a listing of the bucket adds bytes
    lacks: dict[str, str]  # of the GROUPS of fields that are not known: why, in one sentence

    def split(self, row: int) -> str:
        return "train" if row < self.num_train else "val"

    def in_split(self, split: str) -> np.ndarray:
        """bool (n,): the images of a split, train or val."""
        is_train: np.ndarray = np.arange(len(self.names)) < self.num_train
        return is_train if split == "train" else ~is_train

    def measure(self, name: str) -> np.ndarray | None:
        """float64 (n,): a field of each image, NaN where it is not known; None without the field.

        name: bytes, width, height or aspect, or one of QUALITY.
        """
        return self.fields[name].values() if name in self.fields else None

    @functools.cached_property
    def metadata(self) -> dict[str, str]:
        """How the vectors were computed; {} if there is no manifest that says so."""
        try:
            return manifest.read_metadata(self.directory / manifest.NAME)
        except ValueError:
            return {}

    def pixels(self, row: int) -> tuple[int, int] | None:
        """Width and height of an image; None where they are not known."""
        if "width" not in self.fields:
            return None
        width, height = (self.fields[name].column[row].as_py() for name in ("width", "height"))
        return None if width is None or height is None else (width, height)

    def class_counts(self, chosen: np.ndarray) -> list[ClassCount]:
        """The ImageNet classes of the images that are chosen, bool (n,), the commonest first."""
        classes = self.classes[chosen & (self.classes >= 0)]
        numbers, counts = np.unique(classes, return_counts=True)
        order = np.argsort(-counts, kind="stable")
        return [
            {"imagenet_class": number, "name": class_name(number), "count": count}
            for number, count in zip(numbers[order].tolist(), counts[order].tolist(), strict=True)
        ]

    def inverted_file(self, by: str, progress: Progress) -> InvertedFile:
        """The inverted file of an embedding, built and kept beside the vectors at its first use."""
        path = self.directory / f"neighbours-{by}.faiss"
        return open_or_build(path, self.embeddings[by], self.failed, progress)

    def is_whole(self) -> bool:
        """Whether the directory is still there, with every array as long as when it was opened."""
        is_there = (self.directory / LISTS[0]).exists()  # another process may delete the dataset
        return is_there and all(vectors.is_whole() for vectors in self.embeddings.values())


def images_named(
    texts: Iterable[str], names: list[str]
) -> Iterator[tuple[str, list[tuple[str, int]]]]:
    """What of NAMED_BY some texts are, in turn, and these texts, each with the row of an image.

    names: of all objects. A text that is, say, an object name is not looked for as a file name.
    """
    left = set(texts)
    for what, name_of in NAMED_BY.items():
        found = [(text, row) for row, name in enumerate(names) if (text := name_of(name)) in left]
        left.difference_update(text for text, _ in found)
        yield what, found


@functools.cache
def class_names() -> tuple[str, ...]:
    """The names of the 1,000 ImageNet classes, in the order of ResNet-50's outputs."""
    return tuple(Path(__file__).with_name("imagenet_classes.txt").read_text("utf-8").splitlines())


def class_name(number: int) -> str:
    """The name of a class; other numbers, of another model's classes, stay numbers."""
    names = class_names()
    return names[number] if 0 <= number < len(names) else f"class {number}"


def vectors_path(directory: Path, embedding: str) -> Path:
    """The file with the vectors of one embedding in a copy of an index, headerless."""
    return directory / f"{embedding}.f32"


def read_classes(path: Path, images: int) -> dict[str, int]:
    """{basename: ImageNet class} of an aux_labels pickle; {} if there is no such file."""
    try:
        classes = read_pickle(path, MAX_READS + READS_PER_CLASS * images)
    except FileNotFoundError:
        return {}
    except (OSError, UnsafePickleError) as error:
        reason = f"cannot be read ({error.strerror})" if isinstance(error, OSError) else error
        raise PageError(409, f"The file of ImageNet classes of the index {reason}.") from error
    if not isinstance(classes, dict) or not all(
        type(name) is str and type(number) is int and 0 <= number <= MAX_CLASS
        for name, number in classes.items()
    ):
        raise PageError(409, "The ImageNet classes of the index are no dict of names to numbers.")
    return classes


def _read_json(path: Path) -> object:
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise PageError(409, f"{path.name} of the index cannot be read: {reason}.") from error


def read_names(directory: Path) -> tuple[list[str], int]:
    """All object names in row order, and how many of them are training images."""
    names = _read_json(directory / LISTS[0])
    if not isinstance(names, list) or not all(type(name) is str for name in names):
        raise PageError(409, f"{LISTS[0]} of the index is not a list of object names.")
    num_train = len(names)
    for name in LISTS[1:]:
        rows = _read_json(directory / name)
        if not isinstance(rows, dict) or not all(
            type(row) is int and 0 <= row < len(names) for row in rows.values()
        ):
            raise PageError(409, f"{name} of the index is not a dict of identifiers to rows.")
        num_train = min(rows.values(), default=len(names))  # the last list is of validation
    return names, num_train


def _open_vectors(array_of: Callable[[str], Path], rows: int) -> dict[str, Vectors]:
    embeddings = {}
    for name, dimensions in DIMENSIONS.items():
        path, expected = array_of(name), rows * dimensions * 4
        size = path.stat().st_size if path.exists() else 0
        if size != expected:
            reason = f"has {size:,} bytes, but those of {rows:,} images are {expected:,}"
            raise PageError(409, f"The {name} array of the index {reason}.")
        embeddings[name] = Vectors(path, rows, dimensions)
    return embeddings


def _not_finite(directory: Path, embeddings: dict[str, Vectors]) -> list[int]:
    """Rows with NaN, infinity or a length beyond float32. Read through once, then remembered."""
    path = directory / NOT_FINITE
    if path.exists():
        known: list[int] = json.loads(path.read_bytes())
        return known
    rows: set[int] = set()
    with np.errstate(over="ignore", invalid="ignore"):
        for vectors in embeddings.values():
            for start, block in vectors.blocks():
                squares = np.einsum("ij,ij->i", block, block)
                rows.update((start + np.flatnonzero(~np.isfinite(squares))).tolist())
    with contextlib.suppress(OSError):  # a disk that is read-only or full
        write_atomically(path, [json.dumps(sorted(rows)).encode()])
    return sorted(rows)


def lacking(reason: str, groups: Iterable[str] = GROUPS) -> dict[str, str]:
    """{group of fields: why they are not known}"""
    return {group: f"{GROUPS[group]} are not known: {reason}" for group in groups}


def read_fields(path: Path, names: list[str]) -> tuple[dict[str, Field], dict[str, str]]:
    """The fields of the images with these object names, and why others are not known.

    path: a manifest, perhaps missing, damaged or of other images.
    """
    import pyarrow as pa
    from pyarrow import parquet

    columns = ["object", *COLUMNS, *QUALITY]  # those of QUALITY only if they are there
    try:
        with parquet.ParquetFile(path, page_checksum_verification=True) as file:
            table = file.read(columns) if file.metadata.num_rows == len(names) else None
        if table is None or table["object"].to_pylist() != names:
            return {}, lacking(f"the {manifest.NAME} of the index is of other images.")
        fields = _fields_of(table)
    except FileNotFoundError:
        return {}, lacking(NO_MANIFEST)
    except (pa.ArrowException, OSError, KeyError):
        return {}, lacking(f"the {manifest.NAME} of the index is damaged.")
    return fields, {} if fields.keys() >= set(QUALITY) else lacking(NO_QUALITY, ["quality"])


def _fields_of(table: Any) -> dict[str, Field]:
    """The fields in the columns of a manifest, a pyarrow.Table; negative sizes are not known."""
    import pyarrow as pa
    from pyarrow import compute

    found = {}
    for column, name in COLUMNS.items():
        known = table[column].combine_chunks().cast(pa.int64())
        found[name] = compute.if_else(compute.less(known, 0), None, known)
    found["aspect"] = compute.divide(found["width"].cast(pa.float64()), found["height"])
    for name in QUALITY:
        if name in table.column_names and table[name].null_count < len(table):
            found[name] = table[name].combine_chunks().cast(pa.float32())
    return {
        name: replace(about, column=found[name]) for name, about in ABOUT.items() if name in found
    }


def read_copy(directory: Path) -> Index:
    """The index in a copy from the bucket; see read_index."""
    array_of = functools.partial(vectors_path, directory)
    return read_index(directory, directory / CLASSES, array_of)


def read_work_directory(directory: Path) -> Index:
    """The index in the work directory of an ingest that is finished; see read_index."""
    array_of = functools.partial(array_path, directory)
    return read_index(directory / "index", directory / "aux" / CLASSES, array_of)


def read_index(directory: Path, classes_path: Path, array_of: Callable[[str], Path]) -> Index:
    """An index on this machine; raises PageError if a file is damaged or has the wrong size.

    directory: has the lists and the manifest. array_of: the headerless array of each embedding.
    """
    names, num_train = read_names(directory)
    embeddings = _open_vectors(array_of, len(names))
    not_finite = _not_finite(directory, embeddings)
    by_name = read_classes(classes_path, len(names))
    classes = np.array([by_name.get(posixpath.basename(name), -1) for name in names], np.int32)
    failed = classes < 0
    for row in np.flatnonzero(failed).tolist():
        failed[row] = not embeddings["imagenet"].array[row].any()
    failed[not_finite] = True
    rows_of: dict[str, list[int]] = {}
    for row, name in enumerate(names):
        rows_of.setdefault(identifier(name), []).append(row)
    fields, lacks = read_fields(directory / manifest.NAME, names)
    return Index(
        directory=directory,
        names=names,
        num_train=num_train,
        classes=classes,
        failed=failed,
        not_finite=not_finite,
        embeddings=embeddings,
        rows_of=rows_of,
        fields=fields,
        lacks=lacks,
    )


class LabelTable(NamedTuple):
    """What people say of the images: labels, boxes, and columns of their own."""

    of_row: dict[int, list[LabelText]]
    rows: dict[str, dict[str, np.ndarray]]  # category -> mode -> rows, int64 ascending
    boxes: dict[int, list[BoxText]]
    columns: OwnColumns = NO_COLUMNS
    version: int = 0  # of labels and boxes in the database

    def marked(self, category: str, mode: str | None, images: int) -> np.ndarray:
        """bool (images,): those with a label of the category in this mode; None is any mode."""
        found = np.zeros(images, bool)
        for name, rows in self.rows.get(category, {}).items():
            if mode in (name, None):
                found[rows] = True
        return found

    def positive(self) -> dict[str, np.ndarray]:
        return {
            category: modes[POSITIVE] for category, modes in self.rows.items() if POSITIVE in modes
        }

    def labelled(self, images: int) -> np.ndarray:
        """bool (images,): those with at least one label."""
        found = np.zeros(images, bool)
        found[list(self.of_row)] = True
        return found

    def counts(self, chosen: np.ndarray) -> list[CategoryCount]:
        """Categories sorted by name, each with its modes: POSITIVE first, the others by name.

        Only the images that are chosen, bool (n,), are counted.
        """
        return [
            {
                "category": category,
                "count": int((chosen & self.marked(category, None, len(chosen))).sum()),
                "modes": [
                    {"mode": mode, "count": int(chosen[modes[mode]].sum())}
                    for mode in sorted(modes, key=lambda mode: (mode != POSITIVE, mode))
                ],
            }
            for category, modes in sorted(self.rows.items())
        ]


NO_LABELS = LabelTable({}, {}, {})


def table_of(
    labels: list[tuple[str, LabelText]],
    boxes: list[tuple[str, BoxText]],
    index: Index,
    columns: OwnColumns = NO_COLUMNS,
    version: int = 0,
) -> LabelTable:
    """The labels of the images in the index, as the database has them; others have no row."""
    of_row: dict[int, list[LabelText]] = {}
    found: dict[str, dict[str, list[int]]] = {}
    for known, label in labels:
        for row in index.rows_of.get(known, ()):
            texts = of_row.setdefault(row, [])
            if label not in texts:  # on A, images that share an identifier have each label twice
                texts.append(label)
            modes = found.setdefault(label["category"], {})
            modes.setdefault(label["mode"], []).append(row)
    boxes_of: dict[int, list[BoxText]] = {}
    for known, box in boxes:
        for row in index.rows_of.get(known, ()):
            boxes_of.setdefault(row, []).append(box)
    rows = {
        category: {mode: np.unique(places) for mode, places in modes.items()}
        for category, modes in found.items()
    }
    return LabelTable(of_row, rows, boxes_of, columns, version)
