"""The images that are dark, bright, blurred or flat by what an ingest measured of their pixels."""

from typing import NamedTuple

import numpy as np

from local_forager.indexes.index import Index
from local_forager.types import PageError


class Limit(NamedTuple):
    """A set: the images whose field is at most, or at least, a value."""

    field: str
    value: float  # the threshold unless another is asked for
    is_most: bool
    title: str


# Crops of scikit-image's photographs, without the one of stars, have a brightness of 53 to 129, a
# contrast above 27 and a sharpness above 130. With 30% of their light, brightness is below 36;
# blurred by 2 pixels in 200, sharpness is below 21; with 10% of the contrast, contrast is below 8.
# A photograph of the moon has a contrast of 13, and one of a page of text a brightness of 172.
LIMITS = {
    "dark": Limit("brightness", 40.0, True, "Dark images"),
    "bright": Limit("brightness", 215.0, False, "Bright images"),
    "blurred": Limit("sharpness", 25.0, True, "Blurred images"),
    "flat": Limit("contrast", 10.0, True, "Flat images"),
}


def beyond(index: Index, name: str, threshold: float | None = None) -> np.ndarray:
    """int64, ascending: the rows of a set; PageError if the index lacks the field."""
    limit = LIMITS[name]
    field = index.fields.get(limit.field)
    if field is None:
        raise PageError(409, index.lacks["quality"])
    steps = field.steps(field.values())  # NaN, which is beyond nothing, where it is not known
    end = field.steps(limit.value if threshold is None else threshold)
    return np.flatnonzero(steps <= end if limit.is_most else steps >= end)
