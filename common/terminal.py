"""Text for the terminal: escaped names, tables, shortened lists, sizes, durations and counts."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from common.errors import IngestError

PRINTED_LENGTH = 120  # characters of an untrusted name that go to the terminal
SHOWN_LINES = 10  # of a list, on the screen

warned: list[str] = []  # the warnings of this process so far, for report.json


def printable(text: str, limit: int = PRINTED_LENGTH) -> str:
    """The text with unprintable characters escaped; longer than `limit`, its middle is left out.

    A name from outside could otherwise act on the terminal.
    """
    if len(text) > 4 * limit:
        text = text[: 2 * limit] + text[-2 * limit :]
    safe = _escaped(text)
    half = (limit - 3) // 2
    return safe if len(safe) <= limit else f"{safe[:half]}...{safe[-half:]}"


def escaped(text: str) -> str:
    """Lines of text with unprintable characters escaped, whatever they name."""
    return "\n".join(map(_escaped, text.split("\n")))


def _escaped(text: str) -> str:
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


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


def first_lines(
    lines: Sequence[str],
    list_file: Path | None = None,
    content: str | None = None,
    *,
    most: int | None = None,
    indent: str = " " * 6,
) -> str:
    """The first `most` lines (SHOWN_LINES), indented, and then how many more there are.

    If there are more, all go to `list_file`, where one is given, and the text says so. `content` is
    what the file gets instead of the lines. A file that cannot be written is no error.
    """
    most = SHOWN_LINES if most is None else most
    shown = "\n".join(f"{indent}{line}" for line in lines[:most])
    more = len(lines) - most
    if more <= 0:
        return shown
    if list_file is None:
        return f"{shown}\n{indent}... and {more:,} more"
    where = f"are in {printable(str(list_file))}"
    try:
        list_file.write_text(content or "".join(f"{line}\n" for line in lines), encoding="utf-8")
    except OSError as error:
        where = f"could not be written to {printable(str(list_file))} ({error.strerror})"
    return f"{shown}\n{indent}... and {more:,} more; all {where}"


def first_of(names: Sequence[str], most: int = SHOWN_LINES) -> str:
    """The first names, in one line, and how many more there are."""
    more = f" and {len(names) - most:,} more" if len(names) > most else ""
    return ", ".join(map(printable, names[:most])) + more


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

    tqdm.write(escaped(message), file=sys.stderr)


def print_result(text: str, done: str) -> None:
    """Print on stdout what a command was asked for.

    Raises:
        IngestError: it cannot be written. `done` says what is done all the same.
    """
    try:
        print(text, flush=True)
    except OSError as error:
        raise IngestError(
            f"{done}\nOnly the summary cannot be printed ({error.strerror})."
        ) from error


def warn(message: str) -> None:
    """Print a message that belongs into the report too: something is not as it should be."""
    say(message)
    warned.append(message)
