"""What a trial of a few images says of the whole collection: time, requests, disk, and the cost.

Prices are examples, or those of a JSON file that the user gives with --prices.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from common.errors import IngestError
from common.terminal import printable
from dataset.arrays import BYTES_PER_ROW, ROW_BYTES
from preflight.checks import WORK_BYTES_PER_ROW
from storage.pace import least_seconds
from storage.uploads import part_count

WARM_UP = 0.1  # of the images: the first ones wait for connections, and for kernels of their size
LISTINGS = 4  # of all images: at the start, before and after the registration, and by the server
NAMES_PER_PAGE = 1000  # of a listing
LISTED_BYTES = 300  # per image in the lists and the manifest
UPLOAD_BYTES_PER_S = 125e6  # that is assumed for the index: a trial uploads nothing
INDEX_FILES = 5  # beside the arrays
# List prices of Standard storage in us-east1: https://cloud.google.com/storage/pricing
EXAMPLES_DATE = "2025"
EXAMPLES = {
    "class_a_per_1000": 0.005,
    "class_b_per_1000": 0.0004,
    "read_per_gb": 0.12,  # to a machine outside Google; nothing within the bucket's region
    "stored_per_gb_month": 0.020,
    "machine_per_hour": 1.0,
}
TEXTS = ("currency", "date")


class Pace(NamedTuple):
    """How fast images were finished, with the start apart from it."""

    startup_s: float  # until the first image, beyond its own share of the time
    images_per_s: float


@dataclass(frozen=True, kw_only=True)
class Forecast:
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


@dataclass(frozen=True, kw_only=True)
class Prices:
    """What things cost, by the names in EXAMPLES."""

    values: dict[str, float]
    currency: str = "USD"
    date: str = EXAMPLES_DATE
    examples: tuple[str, ...] = tuple(EXAMPLES)  # those of the values that are no user's


@dataclass(frozen=True, kw_only=True)
class Conclusions:
    """What report.json has under `trial`, beside the counts of the report."""

    sizes: dict[str, Any] | None
    forecast: Forecast
    prices: Prices
    cost: dict[str, float]


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


def forecast(
    images: int, size: int, pace: Pace, *, before_s: float, failed: int, thumbnail_bytes: int
) -> Forecast:
    """What `images` images of together `size` bytes take, `failed` of them without a thumbnail.

    `pace` is that of the embedding, `before_s` the time before it.
    """
    index_bytes = images * (BYTES_PER_ROW + LISTED_BYTES)
    upload_s = index_bytes / UPLOAD_BYTES_PER_S
    paced_s = pace.startup_s + images / pace.images_per_s
    embedding_s = max(paced_s, least_seconds(images))
    written, checked = index_requests([images * size for size in ROW_BYTES.values()])
    return Forecast(
        images=images,
        seconds=before_s + embedding_s + upload_s,
        startup_s=before_s + pace.startup_s,
        images_per_s=pace.images_per_s,
        upload_s=upload_s,
        read_bytes=size,
        thumbnail_bytes=thumbnail_bytes,
        index_bytes=index_bytes,
        class_a=LISTINGS * math.ceil(images / NAMES_PER_PAGE) + images - failed + written,
        class_b=images + checked,
        disk_bytes=images * WORK_BYTES_PER_ROW,
        failed=failed,
    )


def index_requests(arrays: Sequence[int]) -> tuple[int, int]:
    """Class A and Class B requests that the upload of an index with arrays of these sizes takes.

    Each part is looked for and written; a file is looked for before and after.
    """
    parts = [count for size in arrays if (count := part_count(size)) > 1]
    files = len(arrays) + INDEX_FILES  # one write each: sent whole, or composed
    return files + sum(parts), 2 * files + sum(parts)


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


def read_prices(path: Path | None) -> Prices:
    """The prices of a JSON object with any of the names in EXAMPLES; without a file the examples.

    Raises:
        IngestError: it cannot be read, or has something else than prices.
    """
    if path is None:
        return Prices(values=EXAMPLES)
    shown = f"--prices {printable(str(path))}"
    try:
        content = json.loads(path.read_bytes())
    except OSError as error:
        raise IngestError(
            f"{shown} cannot be read ({error.strerror}): correct the path, or leave it out for "
            "example prices."
        ) from error
    except (ValueError, RecursionError):
        content = None
    form = f"write a JSON object of numbers from 0, such as {json.dumps(EXAMPLES)}."
    if not isinstance(content, dict):
        raise IngestError(f"{shown} has no prices: {form}")
    texts = {name: printable(str(content.pop(name)), 40) for name in TEXTS if name in content}
    for name, value in content.items():
        if name not in EXAMPLES or type(value) not in (int, float) or not 0 <= value < math.inf:
            entry = printable(json.dumps({name: value})[1:-1])
            raise IngestError(f"{shown}: {entry} is no price: {form}")
    examples = tuple(name for name in EXAMPLES if name not in content)
    return Prices(values=EXAMPLES | content, examples=examples, **{"date": "no date"} | texts)
