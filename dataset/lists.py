"""The lists of an index beside its arrays, and the objects that all its files become."""

from __future__ import annotations

import itertools
import json
import pickle
import struct
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType

from common.files import FileToUpload, write_atomically
from common.names import checked_index_id, identifier
from dataset import manifest
from dataset.arrays import DIMENSIONS, array_path
from dataset.listing import Split
from dataset.manifest import manifest_path
from dataset.state import State

PICKLE_BATCH = 1000  # entries between two SETITEMS opcodes, as pickle itself writes them


def write_lists(state: State, directory: Path) -> None:
    """Write all files of the index but the arrays, from the state."""
    manifest.write_manifest(state)
    index = directory / "index"
    index.mkdir(parents=True, exist_ok=True)
    write_atomically(index / "labels.json", _json("[]", map(json.dumps, state.objects())))
    for split, name in (Split.TRAIN, "identifiers.json"), (Split.VAL, "val_identifiers.json"):
        rows = (f"{json.dumps(image)}: {row}" for image, row in state.identifiers(split))
        write_atomically(index / name, _json("{}", rows))
    (directory / "aux").mkdir(exist_ok=True)
    classes = ((name.rpartition("/")[2], c) for name, c in state.imagenet_classes())
    write_atomically(directory / "aux" / "imagenet.pickle", pickled_dict(classes))


def index_files(
    directory: Path, index_id: str, checksums: Mapping[str, int] = MappingProxyType({})
) -> list[FileToUpload]:
    """All files of the index except the thumbnails, with their object names; largest first.

    `checksums` has the crc32c of arrays by name, where it is known.
    """
    prefix = f"indexes/{checked_index_id(index_id)}"
    binary, text = "application/octet-stream", "application/json"
    return [
        *(
            FileToUpload(
                array_path(directory, name),
                f"{prefix}/local/{name}/embeddings.npy",
                binary,
                checksums.get(name),
            )
            for name in DIMENSIONS
        ),
        *(
            FileToUpload(directory / "index" / name, f"{prefix}/{name}", text)
            for name in ("labels.json", "identifiers.json", "val_identifiers.json")
        ),
        FileToUpload(manifest_path(directory), f"{prefix}/{manifest.NAME}", binary),
        FileToUpload(
            directory / "aux" / "imagenet.pickle", f"aux_labels/{index_id}/imagenet.pickle", binary
        ),
    ]


def thumbnail_name(index_id: str, object_name: str) -> str:
    """The object that holds the thumbnail of an image."""
    return f"{thumbnail_directory(index_id)}{identifier(object_name)}.jpg"


def thumbnail_directory(index_id: str) -> str:
    """How the names of all thumbnails of an index begin."""
    return f"thumbnails/{checked_index_id(index_id)}/"


def pickled_dict(entries: Iterable[tuple[str, int]]) -> Iterator[bytes]:
    """The pickle (protocol 2) of {text: int}, piece by piece: the dict is never in memory.

    Opcodes as in CPython's Lib/pickletools.py.
    """
    left = iter(entries)
    yield pickle.PROTO + b"\x02" + pickle.EMPTY_DICT
    while batch := list(itertools.islice(left, PICKLE_BATCH)):
        yield pickle.MARK
        for text, number in batch:
            data = text.encode()
            yield pickle.BINUNICODE + struct.pack("<I", len(data)) + data
            yield pickle.BININT + struct.pack("<i", number)
        yield pickle.SETITEMS
    yield pickle.STOP


def _json(brackets: str, items: Iterable[str]) -> Iterator[bytes]:
    """The list or the object in these brackets that has these items, piece by piece."""
    yield brackets[:1].encode()
    for number, item in enumerate(items):
        yield f"{', ' if number else ''}{item}".encode()
    yield brackets[1:].encode()
