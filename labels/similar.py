"""Names that are probably misspelt: they differ from others in case or white space only."""

import itertools
from collections import defaultdict
from collections.abc import Iterable

from common.terminal import printable, say
from forager.payloads import Group
from labels.images import KnownImages

SHOWN = 10  # notes


def notes_on_names(groups: Iterable[Group]) -> list[str]:
    """Sentences about categories of a file that are probably misspelt."""
    notes = []
    for same in _alike(category for category, _ in groups).values():
        notes += [
            f"{printable(one)!r} and {printable(other)!r} are two categories."
            for one, other in itertools.pairwise(same)
        ]
        notes += [
            f"The category {printable(category)!r} begins or ends with white space."
            for category in same
            if category != category.strip()
        ]
    return notes


def notes_on_categories(groups: Iterable[Group], on_server: Iterable[str]) -> list[str]:
    """Sentences about categories of a file that are probably others which the server has."""
    there = set(on_server)
    alike = _alike(there)
    return [
        f"{printable(category)!r} is not the category {printable(other)!r}, which the server has."
        for key, categories in _alike(category for category, _ in groups).items()
        for category in categories
        if category not in there
        for other in alike.get(key, [])
    ]


def show_notes(notes: list[str]) -> None:
    """Print the first notes on standard error."""
    for note in notes[:SHOWN]:
        say(f"Note: {note}")
    if len(notes) > SHOWN:
        say(f"Note: there are {len(notes) - SHOWN:,} more notes on names.")


def similar_image(unknown: Iterable[str], known: KnownImages) -> str:
    """A sentence if the dataset has one of these images but for the case of letters, or ""."""
    wanted = {image.casefold(): image for image in unknown}
    for image in itertools.chain(*known):
        if (other := wanted.get(image.casefold())) is not None:
            return (
                f"The dataset has {printable(image)}, and the file {printable(other)}: the case "
                "of letters counts."
            )
    return ""


def _alike(texts: Iterable[str]) -> dict[str, list[str]]:
    """The texts in lists of those that differ in case and white space only."""
    alike: defaultdict[str, list[str]] = defaultdict(list)
    for text in sorted(set(texts)):
        alike[" ".join(text.casefold().split())].append(text)
    return alike
