"""The images of a trial: a few of both splits, from the beginning to the end of the order."""

from __future__ import annotations

import contextlib
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path

from dataset.state.rows import SPLITS, TRAIN, VAL, State
from dataset.work_directory import TRIAL

ROWS_AT_ONCE = 500


@contextlib.contextmanager
def sampled(listing: State, images: int, work: Path) -> Iterator[State]:
    """A state of some of the listed images; its directory is deleted after the `with` block."""
    directory = work / TRIAL
    shutil.rmtree(directory, ignore_errors=True)  # of a trial that was killed
    directory.mkdir()
    try:
        sample = State.create(directory / "state.sqlite")
        try:
            counts = {split: listing.counts(split).images for split in SPLITS}
            for split, rows in zip(SPLITS, spread(counts[TRAIN], counts[VAL], images), strict=True):
                for first in range(0, len(rows), ROWS_AT_ONCE):
                    found = listing.rows(rows[first : first + ROWS_AT_ONCE])
                    sample.add(split, [row.listed for row in found])
            sample.number_rows()
            sample.set_options({"index_id": str(uuid.uuid4())})
            yield sample
        finally:
            sample.close()
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def spread(training: int, validation: int, images: int) -> tuple[list[int], list[int]]:
    """The rows of a sample: both splits by their share, each from its beginning to its end."""
    images = min(images, training + validation)
    share = round(images * validation / max(1, training + validation))
    of_val = min(max(share, 1 if images > 1 else 0), validation)
    of_train = min(images - of_val, training)
    return _evenly(training, of_train, 0), _evenly(validation, images - of_train, training)


def _evenly(count: int, wanted: int, first: int) -> list[int]:
    """`wanted` of the `count` rows from `first` on, at equal distances."""
    return [first + (2 * i + 1) * count // (2 * wanted) for i in range(wanted)]
