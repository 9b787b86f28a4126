"""The text of a label file: its bytes, its encoding, and large JSON read value by value.

The json module parses. It reads one image, or one element of a list, at a time, so that memory
holds only what a caller keeps: the whole of a file of 1,000,000 images takes 1.35 GB. ijson, which
also reads in parts, stores a lone surrogate as "?", names no line, and takes 1 GB for 20,000 nested
lists.
"""

from __future__ import annotations

import codecs
import json
import os
import re
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from common.files import file_kind
from common.terminal import size
from labels.file.checks import LabelFileError

MEMORY_PER_BYTE = 8  # of the file, at most: its bytes, its text, and the labels
SPACE = re.compile(r"[ \t\n\r]*")
TRAILING_COMMA = re.compile(r",\s*([]}])")
# The json module's words for what is wrong, in words for people who did not write a parser.
MEANINGS = {
    "Expecting value": "a value is expected here",
    "Expecting property name enclosed in double quotes": "a key in double quotes is expected here",
    "Expecting ':' delimiter": "a colon is expected here",
    "Expecting ',' delimiter": "a comma or a closing bracket is expected here",
    "Extra data": "something follows the end of the document",
    "Unterminated string starting at": "the string that begins here has no end",
}

Progress = Callable[[int], object]  # is told how many characters of the file were read so far


def read_bytes(path: Path, memory_bytes: int) -> bytes:
    """The bytes of a regular file that is small enough for this memory.

    Raises:
        OSError: the file cannot be read.
        LabelFileError: it is not a regular file, or too large.
    """
    file = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    with open(file, "rb") as opened:
        status = os.fstat(file)
        if kind := file_kind(status.st_mode):
            raise LabelFileError(f"it is {kind}: write the labels to a file.")
        limit = memory_bytes // MEMORY_PER_BYTE
        if status.st_size > limit:
            raise LabelFileError(
                f"it has {size(status.st_size)}, and with {size(memory_bytes)} of memory, "
                f"files of up to {size(limit)} can be read: split it."
            )
        return opened.read(status.st_size)


def decode(data: bytes) -> str:
    """The text of a file's bytes.

    Raises:
        LabelFileError: it is not UTF-8, with the line and column.
    """
    if data.startswith((b"\xff\xfe", b"\xfe\xff")) or b"\0" in data[:4]:
        raise LabelFileError("the file is UTF-16 or UTF-32 text: save it as UTF-8.")
    data = data.removeprefix(codecs.BOM_UTF8)
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        before = data[: error.start].decode()
        what = (
            f"byte 0x{data[error.start]:02x} is not UTF-8 text. If the file is Latin-1, `iconv -f "
            "LATIN1 -t UTF-8` writes it as UTF-8."
        )
        raise LabelFileError(f"{_place(before, len(before))}: {what}") from None


class Repeated(dict[str, Any]):
    """A JSON object with a repeated key; the json module alone keeps the last value of a key."""

    def __init__(self, pairs: list[tuple[str, Any]]) -> None:
        super().__init__(pairs)
        counts = Counter(key for key, _ in pairs)
        self.repeated_keys = [key for key, count in counts.items() if count > 1]


def _checked_object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    return found if len(found) == len(pairs) else Repeated(pairs)


DECODER = json.JSONDecoder(object_pairs_hook=_checked_object)


class JsonReader:
    """A place in a JSON text. Every method reads on from there.

    Raises:
        LabelFileError: the text is not valid JSON; says the line and column.
    """

    def __init__(self, text: str, progress: Progress) -> None:
        self._text = text
        self._at = 0
        self._progress = progress
        self._skip(0)

    def peek(self) -> str:
        """The next character that is no white space, or "" at the end."""
        return self._text[self._at : self._at + 1]

    def matches(self, pattern: re.Pattern[str]) -> bool:
        """Whether the text that comes next matches."""
        return pattern.match(self._text, self._at) is not None

    def value(self) -> Any:
        """The next value, whole."""
        try:
            value, self._at = DECODER.raw_decode(self._text, self._at)
        except json.JSONDecodeError as error:
            raise self._error(error.msg, error.pos) from None
        except RecursionError:
            raise LabelFileError(
                "lists or objects are nested far too deep: see the README for the format."
            ) from None
        except ValueError:  # Python refuses to read a number of more than 4,300 digits
            raise LabelFileError("a number in the file has thousands of digits.") from None
        self._skip(0)
        return value

    def members(self) -> Iterator[str]:
        """The keys of the object that comes next. The caller reads the value after each key."""
        for _ in self.elements("{", "}"):
            if self.peek() != '"':
                raise self._error("Expecting property name enclosed in double quotes", self._at)
            key = self.value()
            self._take(":")
            yield key

    def elements(self, opening: str = "[", closing: str = "]") -> Iterator[None]:
        """Once for each element of the list that comes next. The caller reads it."""
        self._take(opening)
        more = self.peek() != closing
        while more:
            yield
            self._progress(self._at)
            more = self.peek() != closing
            if more:
                self._take(",")
        self._take(closing)

    def end(self) -> None:
        """Check that nothing follows."""
        if self.peek():
            raise self._error("Extra data", self._at)

    def _take(self, mark: str) -> None:
        if self.peek() != mark:
            raise self._error(f"Expecting '{mark}' delimiter", self._at)
        self._skip(1)

    def _skip(self, characters: int) -> None:
        """Go on by that many characters, and behind the white space after them."""
        found = SPACE.match(self._text, self._at + characters)
        self._at = found.end() if found else self._at

    def _error(self, what: str, at: int) -> LabelFileError:
        at, cause = _cause(self._text, at, what)
        return LabelFileError(f"{_place(self._text, at)}: not valid JSON ({cause}).")


def _cause(text: str, at: int, what: str) -> tuple[int, str]:
    """Where the mistake is, and which it is, given what the json module says of a place."""
    before = len(text[:at].rstrip()) - 1
    for comma in (at, before):  # Python 3.13 names the comma, earlier ones what follows it
        if comma >= 0 and (found := TRAILING_COMMA.match(text, comma)):
            return comma, f"there is a comma before the closing {found[1]}: delete it"
    if not text[at:].strip():
        return at, "the file ends here, before its last bracket: is it complete?"
    if text[at] == "'":
        return at, "strings are written in double quotes"
    return at, MEANINGS.get(what, what)


def _place(text: str, at: int) -> str:
    """Line and column of a position in a text, both from 1, in words."""
    return f"line {text.count(chr(10), 0, at) + 1}, column {at - text.rfind(chr(10), 0, at)}"
