"""Prices for the forecast of a trial: examples, or those of a file that the user gives.

The file is a JSON object with any of the names in EXAMPLES: what it leaves out is an example.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any, NamedTuple

from common.errors import IngestError
from common.terminal import printable

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


class Prices(NamedTuple):
    """What things cost, by the names in EXAMPLES."""

    values: dict[str, float]
    currency: str = "USD"
    date: str = EXAMPLES_DATE
    examples: tuple[str, ...] = tuple(EXAMPLES)  # those of the values that are no user's


def read_prices(path: Path | None) -> Prices:
    """The prices of a file; the examples without one.

    Raises:
        IngestError: it cannot be read, or has something else than prices.
    """
    if path is None:
        return Prices(dict(EXAMPLES))
    shown = printable(str(path))
    try:
        content = json.loads(path.read_bytes())
    except OSError as error:
        raise IngestError(f"--prices {shown} cannot be read ({error.strerror}).") from error
    except (ValueError, RecursionError) as error:
        raise IngestError(f"--prices {shown} is not JSON: {_form()}.") from error
    if not isinstance(content, dict):
        raise IngestError(f"--prices {shown} is not a JSON object: {_form()}.")
    for name, value in content.items():
        if name in TEXTS:
            continue
        if name not in EXAMPLES:
            raise IngestError(
                f"--prices {shown}: {printable(name)!r} is no price. Prices are "
                f"{', '.join(EXAMPLES)}."
            )
        if not _is_price(value):
            raise IngestError(
                f"--prices {shown}: {name} is {printable(json.dumps(value))}, where a number from "
                "0 is expected."
            )
    given = {name: float(content[name]) for name in EXAMPLES if name in content}
    texts = {name: printable(str(content[name]), 40) for name in TEXTS if name in content}
    date = texts.get("date", "no date")
    examples = tuple(name for name in EXAMPLES if name not in given)
    return Prices({**EXAMPLES, **given}, texts.get("currency", "USD"), date, examples)


def _form() -> str:
    return f"write {json.dumps(EXAMPLES)}"


def _is_price(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < math.inf
