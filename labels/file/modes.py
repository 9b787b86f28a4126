"""The modes of labels: those that Forager has built in, and what is nearly one of them."""

from __future__ import annotations

import shlex
from collections.abc import Collection, Iterator, Mapping

from common.terminal import count, printable
from labels.file.describe import quoted

DEFAULT_MODE = "POSITIVE"
BUILT_IN = (DEFAULT_MODE, "NEGATIVE", "HARD_NEGATIVE", "UNSURE")


def misspelled(labels: Mapping[str, int], allowed: Collection[str]) -> Iterator[str]:
    """A sentence for each mode that is nearly a built-in one, but not allowed.

    `labels` has the number of labels of each mode.
    """
    for mode, number in labels.items():
        meant = nearly(mode)
        if meant and mode not in allowed:
            yield (
                f"the mode {quoted(mode)} of {count(number, 'label')} is nearly {meant}, and "
                f"Forager would store it as another mode: write {meant}, or add --allow_mode "
                f"{shlex.quote(printable(mode))} if it is right."
            )


def nearly(mode: str) -> str:
    """The built-in mode that another mode differs from by one letter, case or spaces; or ""."""
    if mode in BUILT_IN:
        return ""
    folded = mode.strip().upper().replace(" ", "_").replace("-", "_")
    return next((name for name in BUILT_IN if _within_one_letter(folded, name)), "")


def _within_one_letter(text: str, other: str) -> bool:
    """Whether one letter more, less, changed or swapped with the next makes the texts equal."""
    same = 0
    while same < min(len(text), len(other)) and text[same] == other[same]:
        same += 1
    rest, others = text[same:], other[same:]
    swapped = others[1:2] + others[:1] + others[2:]
    return rest[1:] == others or rest == others[1:] or rest[1:] == others[1:] or rest == swapped
