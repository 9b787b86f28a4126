"""The images of a trial: a few of both splits, from the beginning to the end of the order."""

from __future__ import annotations

import contextlib
import itertools
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path

from dataset.listing import Listing, Split
from dataset.state import State
from dataset.work_directory import LISTING, STATE, TRIAL


@contextlib.contextmanager
def sampled(listing: Listing, images: int, work: Path) -> Iterator[State]:
    """A state of some of the listed images; its directory is deleted after the `with` block."""
    directory = work / TRIAL
    shutil.rmtree(directory, ignore_errors=True)  # of a trial that was killed
    directory.mkdir()
    try:
        train, val = (listing.counts(split).images for split in Split)
        chosen = set(itertools.chain(*spread(train, val, images)))
        with (
            contextlib.closing(Listing(directory / LISTING)) as some,
            contextlib.closing(State.create(directory / STATE)) as sample,
        ):
            for row, (split, image) in enumerate(listing.images()):
                if row in chosen:
                    some.add(split, [image])
            sample.take(some.path)
            sample.set_options({"index_id": str(uuid.uuid4())})
            yield sample
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
