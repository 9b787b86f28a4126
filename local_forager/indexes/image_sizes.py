"""Bytes, width and height of the images of an index, as its manifest has them."""

from pathlib import Path
from typing import NamedTuple

import numpy as np

from dataset.manifest import BATCH_ROWS, NAME

NO_MANIFEST = "no-manifest"  # the file that says that the bucket has none
UNKNOWN = "Width, height and aspect are not known: "
NONE_THERE = f"{UNKNOWN}the index has no {NAME}, as those of older versions have none."
COLUMNS = ("object", "size", "width", "height")


class SizesProblem(Exception):
    """Why the sizes are not known, in one sentence."""


class Sizes(NamedTuple):
    """Each an int64 (n,); -1 where it is not known, as for an image that failed."""

    bytes: np.ndarray
    width: np.ndarray  # pixels
    height: np.ndarray

    def of(self, field: str) -> np.ndarray:
        """One of these by its name, or "aspect": width by height in thousandths."""
        if field != "aspect":
            found: np.ndarray = getattr(self, field)
            return found
        known = (self.width > 0) & (self.height > 0)
        aspect = np.full(len(self.width), -1, np.int64)
        aspect[known] = np.maximum(1, np.rint(1000 * self.width[known] / self.height[known]))
        return aspect


def read_sizes(directory: Path, names: list[str]) -> Sizes:
    """The sizes of the images with these object names; SizesProblem if they are not known."""
    import pyarrow as pa
    from pyarrow import parquet

    path = directory / NAME
    if not path.exists():
        raise SizesProblem(NONE_THERE)
    sizes = Sizes(*(np.empty(len(names), np.int64) for _ in COLUMNS[1:]))
    row = 0
    try:
        with parquet.ParquetFile(path, page_checksum_verification=True) as file:
            if file.metadata.num_rows != len(names):
                raise SizesProblem(f"{UNKNOWN}the {NAME} of the index is of other images.")
            for batch in file.iter_batches(BATCH_ROWS, columns=list(COLUMNS)):
                rows = slice(row, row + len(batch))
                if batch["object"].to_pylist() != names[rows]:
                    raise SizesProblem(f"{UNKNOWN}the {NAME} of the index is of other images.")
                for name, values in zip(COLUMNS[1:], sizes, strict=True):
                    column = batch[name].cast(pa.int64()).fill_null(-1)
                    values[rows] = column.to_numpy(zero_copy_only=False)
                row += len(batch)
    except (pa.ArrowException, OSError, KeyError) as error:
        raise SizesProblem(f"{UNKNOWN}the {NAME} of the index is damaged.") from error
    return sizes
