"""Reads a large JSON text value by value, so that memory holds only what a caller keeps."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

from labels.file.describe import LabelFileError

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
PROGRESS_EVERY = 1000  # values

Progress = Callable[[int], object]  # is told how many more characters were read


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

    def __init__(self, text: str, progress: Progress = lambda characters: None) -> None:
        self._text = text
        self._at = 0
        self._progress = progress
        self._told = 0
        self._skip_space()

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
                ["lists or objects are nested far too deep: see the README for the format."]
            ) from None
        except ValueError:  # Python refuses to read a number of more than 4,300 digits
            raise LabelFileError(["a number in the file has thousands of digits."]) from None
        self._skip_space()
        return value

    def members(self) -> Iterator[str]:
        """The keys of the object that comes next. The caller reads the value after each key."""
        for _ in self._parts("{", "}"):
            if self.peek() != '"':
                raise self._error("Expecting property name enclosed in double quotes", self._at)
            key = self.value()
            if self.peek() != ":":
                raise self._error("Expecting ':' delimiter", self._at)
            self._skip(1)
            yield key

    def elements(self) -> Iterator[int]:
        """The numbers of the elements of the list that comes next. The caller reads each."""
        return self._parts("[", "]")

    def end(self) -> None:
        """Check that nothing follows."""
        if self.peek():
            raise self._error("Extra data", self._at)
        self._progress(len(self._text) - self._told)

    def _parts(self, opening: str, closing: str) -> Iterator[int]:
        """A number for each part between brackets and commas; the caller reads the part."""
        if self.peek() != opening:
            raise self._error(f"Expecting '{opening}'", self._at)
        self._skip(1)
        if self.peek() == closing:
            self._skip(1)
            return
        number = 0
        while True:
            yield number
            number += 1
            if number % PROGRESS_EVERY == 0:
                self._progress(self._at - self._told)
                self._told = self._at
            mark = self.peek()
            if mark not in (",", closing) or not mark:
                raise self._error("Expecting ',' delimiter", self._at)
            self._skip(1)
            if mark == closing:
                return

    def _skip(self, characters: int) -> None:
        self._at += characters
        self._skip_space()

    def _skip_space(self) -> None:
        found = SPACE.match(self._text, self._at)
        self._at = found.end() if found else self._at

    def _error(self, what: str, at: int) -> LabelFileError:
        at, cause = _cause(self._text, at, what)
        line, column = place(self._text, at)
        return LabelFileError([f"line {line}, column {column}: not valid JSON ({cause})."])


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


def place(text: str, at: int) -> tuple[int, int]:
    """Line and column of a position in a text, both from 1."""
    return text.count("\n", 0, at) + 1, at - text.rfind("\n", 0, at)
