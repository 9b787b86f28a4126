"""What a trial of a few images says of the whole collection."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from common.network.activity import CLASSES, LIST, READ, Requests
from dataset.arrays import BYTES_PER_ROW, DIMENSIONS, DTYPE
from report.prices import Prices
from storage.pace import least_seconds
from storage.uploads import part_count

WARM_UP = 0.1  # of the images: the first ones wait for connections, and for kernels of their size
LISTINGS = 4  # of all images: at the start, before and after the registration, and by the server
LISTED_BYTES = 300  # per image in the lists and the manifest
UPLOAD_BYTES_PER_S = 125e6  # that is assumed for the index: a trial uploads nothing
INDEX_FILES = 5  # beside the arrays


class Pace(NamedTuple):
    """How fast images were finished, with the start apart from it."""

    startup_s: float  # until the first image, beyond its own share of the time
    images_per_s: float

    def seconds(self, images: int) -> float:
        return self.startup_s + images / self.images_per_s


class Trial(NamedTuple):
    """What a trial measured."""

    images: int
    pace: Pace  # of the embedding
    before_s: float  # for the checks and the loading of the models
    thumbnail_bytes: int  # of all thumbnails
    during: Mapping[str, Requests]  # requests while embedding
    before: Mapping[str, Requests]  # requests of the checks


class Forecast(NamedTuple):
    """What the whole collection takes."""

    images: int
    seconds: float
    startup_s: float  # of these: checks, loading the models, the first image
    images_per_s: float
    upload_s: float  # of the index, at UPLOAD_BYTES_PER_S
    read_bytes: int
    thumbnail_bytes: int
    index_bytes: int
    class_a: int
    class_b: int
    disk_bytes: int
    failed: int


def measured_pace(start: float, finished: Sequence[float]) -> Pace:
    """The pace of images that were finished at these times, in seconds, after `start`.

    The rate is taken after the first images. The start-up is what the others take longer.
    """
    first = int(WARM_UP * len(finished))
    times = sorted(finished)
    between = times[-1] - times[first]
    if len(times) - first < 2 or between <= 0:
        return Pace(0.0, len(times) / max(times[-1] - start, 1e-6))
    rate = (len(times) - 1 - first) / between
    return Pace(max(0.0, times[-1] - start - len(times) / rate), rate)


def forecast(trial: Trial, failed: int, images: int, size: int, disk_bytes: int) -> Forecast:
    """What `images` images of `size` bytes take; in the trial, `failed` images failed."""
    share = images / trial.images
    thumbnail_bytes = round(trial.thumbnail_bytes * share)
    arrays = [images * dimension * DTYPE.itemsize for dimension in DIMENSIONS.values()]
    index_bytes = images * (BYTES_PER_ROW + LISTED_BYTES)
    a, b = index_requests(arrays)
    a += LISTINGS * trial.before.get(LIST, Requests()).requests
    a += round(images - failed * share)  # a thumbnail each
    b += round(trial.during.get(READ, Requests()).requests * share)
    b += sum(n.requests for kind, n in trial.before.items() if CLASSES.get(kind) == "B")
    embedding_s = max(trial.pace.seconds(images), least_seconds(images))
    upload_s = index_bytes / UPLOAD_BYTES_PER_S
    return Forecast(
        images,
        trial.before_s + embedding_s + upload_s,
        trial.before_s + trial.pace.startup_s,
        trial.pace.images_per_s,
        upload_s,
        size,
        thumbnail_bytes,
        index_bytes,
        a,
        b,
        disk_bytes,
        round(failed * share),
    )


def index_requests(arrays: Sequence[int]) -> tuple[int, int]:
    """Class A and Class B requests that the upload of an index with arrays of these sizes takes.

    Each part is looked for and written; a file is looked for before and after.
    """
    parts = [part_count(size) for size in arrays]
    in_parts = [count for count in parts if count > 1]
    files = len(arrays) + INDEX_FILES
    writes = files - len(in_parts) + sum(in_parts) + len(in_parts)  # the last: composing
    return writes, 2 * files + sum(in_parts)


def cost(found: Forecast, prices: Prices) -> dict[str, float]:
    """What each part of a forecast costs; the storage for a month."""
    price, stored = prices.values, found.thumbnail_bytes + found.index_bytes
    return {
        "class_a": found.class_a / 1000 * price["class_a_per_1000"],
        "class_b": found.class_b / 1000 * price["class_b_per_1000"],
        "read": found.read_bytes / 1e9 * price["read_per_gb"],
        "machine": found.seconds / 3600 * price["machine_per_hour"],
        "stored_month": stored / 1e9 * price["stored_per_gb_month"],
    }


class Sizes(NamedTuple):
    """The sizes of the images of a trial, in pixels."""

    smallest: tuple[int, int]
    median: tuple[int, int]
    largest: tuple[int, int]
    different: int
    mean_megapixels: float


def describe_sizes(sizes: Sequence[tuple[int, int]]) -> Sizes | None:
    """Of (width, height) pairs, by the number of pixels; None without any."""
    if not sizes:
        return None
    ordered = sorted(sizes, key=lambda size: (size[0] * size[1], size))
    mean = statistics.fmean(width * height for width, height in sizes) / 1e6
    middle = ordered[len(ordered) // 2]
    return Sizes(ordered[0], middle, ordered[-1], len(set(sizes)), mean)
