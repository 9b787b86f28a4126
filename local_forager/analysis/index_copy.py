"""The copy of an index on this machine: fetched from the bucket once, checked, memory-mapped."""

import asyncio
import hashlib
import json
import posixpath
import re
import traceback
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from google.api_core.exceptions import NotFound

from common.names import identifier
from local_forager.analysis.neighbours import Embedding
from local_forager.server.buckets import STORAGE_ERRORS, Buckets
from weights.safe_pickle import MAX_READS, UnsafePickleError, read_pickle

DIMENSIONS = {"imagenet": 2048, "imagenet_early": 1024, "clip": 512}
LISTS = ("labels.json", "identifiers.json", "val_identifiers.json")
ARRAYS = {name: f"local/{name}/embeddings.npy" for name in DIMENSIONS}
CLASSES = "imagenet.pickle"
READS_PER_CLASS = 10  # of the pickle; Python's own take 8
SAFE_DIRECTORY = re.compile(r"[A-Za-z0-9][-_A-Za-z0-9]{0,99}")
RETRY_AFTER = 5.0  # seconds until a failed copy is tried again


class IndexProblem(Exception):
    """Why there is no usable index, in one sentence for the person at the page."""


@dataclass(frozen=True)
class Index:
    """A whole index: row i is the image names[i]; the first num_train rows are for training."""

    directory: Path
    names: list[str]
    num_train: int
    classes: np.ndarray  # int32 (n,), the ImageNet class of each image, -1 where there is none
    failed: np.ndarray  # bool (n,), images whose vectors are all zero
    embeddings: dict[str, Embedding]
    rows_of: dict[str, list[int]]  # identifier -> rows; more than one only where names collide

    def split(self, row: int) -> str:
        return "train" if row < self.num_train else "val"


def read_classes(path: Path, images: int) -> dict[str, int]:
    """{basename: ImageNet class} of an aux_labels pickle; {} if there is none."""
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
        type(name) is str and type(number) is int and 0 <= number < 2**31
        for name, number in classes.items()
    ):
        raise IndexProblem("The ImageNet classes of the index are not a dict of names to numbers.")
    return classes


def read_json(path: Path) -> object:
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise IndexProblem(f"{path.name} of the index cannot be read: {error}.") from error


def read_names(directory: Path) -> tuple[list[str], int]:
    """All object names and how many of them are for training."""
    names = read_json(directory / "labels.json")
    if not isinstance(names, list) or not all(type(name) is str for name in names):
        raise IndexProblem("labels.json of the index is not a list of object names.")
    splits = [read_json(directory / name) for name in LISTS[1:]]
    for name, rows in zip(LISTS[1:], splits, strict=True):
        if not isinstance(rows, dict) or not all(
            type(row) is int and 0 <= row < len(names) for row in rows.values()
        ):
            raise IndexProblem(f"{name} of the index is not a dict of identifiers to rows.")
    val = splits[1]
    assert isinstance(val, dict)
    return names, min(val.values(), default=len(names))


def read_index(directory: Path) -> Index:
    """The index in a directory; IndexProblem where a file is damaged or of the wrong size."""
    names, num_train = read_names(directory)
    embeddings = {}
    for name, dimensions in DIMENSIONS.items():
        path, expected = directory / f"{name}.f32", len(names) * dimensions * 4
        size = path.stat().st_size if path.exists() else 0
        if size != expected:
            raise IndexProblem(
                f"The {name} array of the index has {size:,} bytes; {len(names):,} images of "
                f"{dimensions:,} numbers take {expected:,}."
            )
        embeddings[name] = Embedding(path, len(names), dimensions)
    by_name = read_classes(directory / CLASSES, len(names))
    classes = np.array([by_name.get(posixpath.basename(name), -1) for name in names], np.int32)
    failed = classes < 0
    for row in np.flatnonzero(failed).tolist():
        failed[row] = not embeddings["imagenet"].vectors[row].any()
    rows_of: dict[str, list[int]] = {}
    for row, name in enumerate(names):
        rows_of.setdefault(identifier(name), []).append(row)
    return Index(directory, names, num_train, classes, failed, embeddings, rows_of)


@dataclass
class Copy:
    """One index on its way here: index is None until the task is done."""

    task: asyncio.Task[None]
    directory: Path
    total: int = 0  # bytes, once it is known how many images there are
    index: Index | None = None
    problem: str = ""
    ended: float = field(default=0.0)

    def done(self) -> int:
        """Bytes on this machine so far."""
        return sum(path.stat().st_size for path in self.directory.glob("*.f32*") if path.exists())


class IndexCopies:
    """The indexes that the page shows, each fetched at the first question for it."""

    def __init__(self, buckets: Buckets, bucket: str, data_dir: Path) -> None:
        self._buckets, self._bucket = buckets, bucket
        self._data_dir = data_dir / "indexes"
        self._copies: dict[str, Copy] = {}

    def directory(self, index_id: str) -> Path:
        """Where an index lies: never a path that its id, text from elsewhere, could lead to."""
        if SAFE_DIRECTORY.fullmatch(index_id):
            return self._data_dir / index_id
        return self._data_dir / hashlib.sha256(index_id.encode(errors="replace")).hexdigest()

    def get(self, index_id: str) -> Copy:
        """The copy of an index as far as it is; begins one, or again some time after a failure."""
        loop = asyncio.get_running_loop()
        copy = self._copies.get(index_id)
        if copy is None or (copy.problem and loop.time() - copy.ended > RETRY_AFTER):
            directory = self.directory(index_id)
            task = loop.create_task(self._fetch(index_id))
            copy = self._copies[index_id] = Copy(task, directory)
        return copy

    async def _fetch(self, index_id: str) -> None:
        await asyncio.sleep(0)  # so that get() has put the copy in its place
        copy = self._copies[index_id]
        try:
            if not (copy.directory / "complete").exists():
                await self._download(index_id, copy)
            copy.index = await asyncio.to_thread(read_index, copy.directory)
        except IndexProblem as error:
            copy.problem = str(error)
        except NotFound:
            where = f"gs://{self._bucket}/indexes/{index_id}/"
            copy.problem = f"There is no whole index in {where}: did its ingest finish?"
        except (*STORAGE_ERRORS, OSError) as error:
            copy.problem = f"The index cannot be fetched ({error})."
        except Exception as error:
            traceback.print_exc()
            copy.problem = f"The index cannot be read ({type(error).__name__}: {error})."
        copy.ended = asyncio.get_running_loop().time()

    async def _download(self, index_id: str, copy: Copy) -> None:
        async def fetch(name: str, file: str) -> None:
            await self._buckets.download(self._bucket, name, copy.directory / file)

        for name in LISTS:
            await fetch(f"indexes/{index_id}/{name}", name)
        names, _ = await asyncio.to_thread(read_names, copy.directory)
        copy.total = len(names) * sum(DIMENSIONS.values()) * 4
        for name, path in ARRAYS.items():
            await fetch(f"indexes/{index_id}/{path}", f"{name}.f32")
        try:
            await fetch(f"aux_labels/{index_id}/{CLASSES}", CLASSES)
        except NotFound:
            (copy.directory / CLASSES).unlink(missing_ok=True)
        await asyncio.to_thread(read_index, copy.directory)
        (copy.directory / "complete").touch()
