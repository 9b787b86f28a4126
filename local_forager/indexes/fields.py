"""Fields: one number or date per image, with its name, how it is compared, and its distribution.

They come from the manifest of the index, a listing of the bucket, or columns of one's own.
"""

import datetime
import enum
import functools
import math
import re
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np

from dataset.quality import Quality

BINS = 40  # of a histogram, about
DAY_S, MINUTE_S = 86_400, 60
STEPS_IN_SPREAD = 100  # steps, at least, between the quartiles of numbers
HEAVY_TAIL = 20  # times the median: from here on bins have logarithmic width
DECIMAL = re.compile(r"-?[0-9]{1,20}(\.[0-9]{1,20})?(e[-+]?[0-9]{1,2})?")


class Kind(enum.Enum):
    WHOLE = "whole"
    NUMBER = "number"
    DATE = "date"  # in seconds since 1970, UTC


QUALITY = Quality._fields


def read_number(text: str) -> float:
    """A number as an address has it; ValueError with the end of a sentence if it is none."""
    if not DECIMAL.fullmatch(text):
        raise ValueError("is not a number")
    return float(text)


class Bins(NamedTuple):
    """Bin i holds the values from edges[i] up to, not including, edges[i + 1]."""

    edges: np.ndarray  # float64, ascending, in steps; empty if no value is known
    of_row: np.ndarray  # uint8 (n,): the number of the bin from 1; 0 where the value is not known


@dataclass(frozen=True, kw_only=True, eq=False)
class Field:
    """One value per image. Limits and bins compare it in steps, as it is shown."""

    name: str  # in addresses: min_NAME, max_NAME, sort=NAME and sort=-NAME
    title: str
    unit: str
    group: str  # "size", "quality" or "column"
    kind: Kind
    step: float  # two values that differ by less are shown as equal
    is_logarithmic: bool = False  # the width of the bins
    # pyarrow.Array (n,), null where the value is not known; dates are timestamp("ms")
    column: Any = None

    def values(self) -> np.ndarray:
        """float64 (n,), NaN where it is not known; a date in seconds since 1970."""
        import pyarrow as pa

        is_date = self.kind is Kind.DATE
        column = self.column.cast(pa.int64()) if is_date else self.column
        values = column.cast(pa.float64(), safe=False).to_numpy(zero_copy_only=False)
        return np.where(np.isfinite(values), values / (1000 if is_date else 1), np.nan)

    def steps(self, values: np.ndarray | float) -> np.ndarray:
        """Values as whole numbers of steps: rounded, but a time belongs to the day it is on."""
        return np.floor(np.asarray(values) / self.step + (0 if self.kind is Kind.DATE else 0.5))

    def limit(self, text: str) -> float:
        """A limit as an address has it; ValueError as read_number."""
        if self.kind is Kind.DATE:
            try:
                date = datetime.datetime.fromisoformat(text)
            except ValueError:
                raise ValueError("is not a date such as 2026-05-31") from None
            return (date if date.tzinfo else date.replace(tzinfo=datetime.timezone.utc)).timestamp()
        return read_number(text)

    @functools.cached_property
    def bins(self) -> Bins:
        """The distribution; it is computed once."""
        steps = self.steps(self.values())
        edges = self._edges(steps[~np.isnan(steps)])
        of_row = np.searchsorted(edges, steps, side="right") if len(edges) else np.zeros(len(steps))
        of_row[np.isnan(steps)] = 0
        return Bins(edges, of_row.astype(np.uint8))

    def _edges(self, known: np.ndarray) -> np.ndarray:
        if not len(known):
            return np.zeros(0)
        low, after = float(known.min()), float(known.max()) + 1
        if self.is_logarithmic:
            inner = np.rint(np.geomspace(max(low, 1), after, BINS + 1))
        else:
            first, width = low, math.ceil((after - low) / BINS)
            if self.kind is not Kind.DATE:
                power = 10 ** math.floor(math.log10(width))
                width = next(m * power for m in (1, 2, 5, 10) if m * power >= width)
                first = math.floor(low / width) * width
            inner = np.arange(first, after, width)
        return np.unique([low, *inner[(inner > low) & (inner < after)], after])

    def shown(self, steps: np.ndarray) -> list[float]:
        """Whole numbers of steps as values, without the noise of floating point."""
        digits = max(0, -math.floor(math.log10(self.step)))
        return [round(value, digits) for value in (steps * self.step).tolist()]

    def text(self, row: int) -> str:
        """The value of one image with its unit, "" if it is not known."""
        value = self.column[row].as_py()
        if value is None:
            return ""
        if self.kind is Kind.DATE:
            return str(value.date() if self.step == DAY_S else value)
        if self.kind is Kind.WHOLE:
            return f"{value:,.0f} {self.unit}".strip()
        return f"{self.shown(self.steps(value)[None])[0]:,}"


ABOUT = {  # the fields of an index, without values, in the order in which the page shows them
    name: Field(
        name=name,
        title=title,
        unit=unit,
        group=group,
        kind=Kind.WHOLE if step == 1 else Kind.NUMBER,
        step=step,
        is_logarithmic=is_logarithmic,
    )
    for name, title, unit, group, step, is_logarithmic in (
        ("width", "Width", "pixels", "size", 1, True),
        ("height", "Height", "pixels", "size", 1, True),
        ("aspect", "Aspect", "width / height", "size", 0.001, True),
        ("bytes", "File size", "bytes", "size", 1, True),
        ("brightness", "Brightness", "0 to 255", "quality", 0.1, False),
        ("contrast", "Contrast", "0 to 127.5", "quality", 0.1, False),
        ("sharpness", "Sharpness", "", "quality", 0.1, True),
        ("colourfulness", "Colourfulness", "", "quality", 0.1, False),
    )
}


def own_field(name: str, column: Any) -> Field | None:
    """The field that a column of one's own is; None if it has no known value.

    column: an array of int64, float64 or timestamp("ms") of pyarrow.
    """
    import pyarrow as pa

    is_date = pa.types.is_timestamp(column.type)
    kind = Kind.DATE if is_date else Kind.WHOLE
    whole = Field(name=name, title=name, unit="", group="column", kind=kind, step=1, column=column)
    values = whole.values()
    known = values[~np.isnan(values)]
    if not len(known):
        return None
    low, lower, median, upper, high = np.quantile(known, (0, 0.25, 0.5, 0.75, 1)).tolist()
    if is_date:
        span = high - low
        days = span >= BINS * DAY_S or not (known % DAY_S).any()
        return replace(whole, step=DAY_S if days else MINUTE_S if span >= BINS * MINUTE_S else 1)
    skewed = low >= 0 and high > HEAVY_TAIL * median
    if not (known % 1).any() and max(-low, high) < 2**53:
        return replace(whole, is_logarithmic=skewed)
    spread = (upper - lower) or (high - low) or abs(high)
    digits = math.floor(math.log10(max(spread / STEPS_IN_SPREAD, max(-low, high) / 2**50)))
    return replace(whole, kind=Kind.NUMBER, step=float(f"1e{digits}"), is_logarithmic=skewed)
