"""Text for the terminal: escaped names, tables, sizes, durations and counts; warnings."""

from __future__ import annotations

import sys
from collections.abc import Sequence

PRINTED_LENGTH = 120  # characters of an untrusted name that go to the terminal
SHOWN_LINES = 10  # of a long list

warned: list[str] = []  # the warnings of this process so far, for report.json


def printable(text: str, limit: int = PRINTED_LENGTH) -> str:
    """The text with unprintable characters escaped; longer than `limit`, its middle is left out.

    A name from outside could otherwise act on the terminal.
    """
    if len(text) <= limit and text.isprintable():
        return text
    safe = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text[: 4 * limit])
    if len(text) > 4 * limit or len(safe) > limit:
        half = (limit - 3) // 2
        tail = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text[-half:])
        safe = f"{safe[:half]}...{tail[-half:]}"
    return safe


def table(header: Sequence[str], rows: Sequence[Sequence[str]], text_columns: int = 1) -> str:
    """Aligned columns, two spaces apart: the first `text_columns` to the left, the rest right."""
    widths = [max(len(cells[i]) for cells in (header, *rows)) for i in range(len(header))]

    def line(cells: Sequence[str]) -> str:
        aligned = (
            cell.ljust(width) if column < text_columns else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(cells, widths, strict=True))
        )
        return "  ".join(aligned).rstrip()

    return "\n".join(line(cells) for cells in (header, *rows))


def first_lines(lines: Sequence[str], where: str | None = None, indent: str = "  ") -> str:
    """The first of many lines below a message, and how many more there are; `where` has all."""
    more = len(lines) - SHOWN_LINES
    rest = [f"and {more:,} more{f', in {where}' if where else ''}"] if more > 0 else []
    return "".join(f"\n{indent}{line}" for line in [*lines[:SHOWN_LINES], *rest])


def size(count: float) -> str:
    """Bytes in the largest fitting decimal unit: 12.3 MB."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if round(count, 1) < 1000:
            return f"{count:,.0f} {unit}" if unit == "bytes" else f"{count:,.1f} {unit}"
        count /= 1000
    return f"{count:,.1f} TB"


def duration(seconds: float) -> str:
    """Seconds as 12 s, 3 min 20 s, 5 h 12 min."""
    if seconds < 99.5:
        return f"{seconds:.1f} s" if seconds < 9.95 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 100:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60:,} h {minutes % 60} min"


def count(number: int, noun: str, plural: str = "") -> str:
    """`1 label`, `1,234 labels`; `plural` is for nouns that do not just take an s."""
    return f"{number:,} {noun if number == 1 else plural or noun + 's'}"


def say(message: str) -> None:
    """Print a message on standard error, above a progress bar if there is one."""
    from tqdm import tqdm  # takes a tenth of the time of `ingest_labels.py --help`

    tqdm.write(message, file=sys.stderr)


def warn(message: str) -> None:
    """Print a message that belongs into the report too: something is not as it should be."""
    say(message)
    warned.append(message)
