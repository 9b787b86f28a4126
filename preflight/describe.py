"""What an ingest says of a listing, of what changed in it, and of its plan."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from common.names import IMAGE_SUFFIXES
from common.terminal import count, printable, size, table
from dataset.arrays import BYTES_PER_ROW
from dataset.images import Changes
from dataset.listing import Listing, Split
from preflight.renames import NEW_SUFFIXES

THUMBNAIL_BYTES = 8_000  # of a usual thumbnail
LISTED_BYTES = 200  # of a usual image in the lists
PASSIVE = ("renamed", "replaced")  # kinds of change
CONVERTIBLE = (".webp", ".gif", ".bmp", ".tif", ".tiff", ".heic")


def describe_plan(
    listing: Listing, image_bucket: str, index_bucket: str, reuse: str = "", reused_bytes: int = 0
) -> str:
    """What an ingest would read, store and upload, for --dry_run.

    `reuse` says which rows would be reused; their images have `reused_bytes`.
    """
    total = listing.counts()
    array_bytes = total.images * BYTES_PER_ROW
    upload = array_bytes + total.images * (THUMBNAIL_BYTES + LISTED_BYTES)
    rows = [
        (split.word, f"{counts.images:,}", size(counts.size))
        for split in Split
        for counts in [listing.counts(split)]
    ]
    skipped = [(f"skipped: {printable(kind)}", f"{n:,}", "-") for kind, n, _ in listing.skipped()]
    return "\n".join(
        (
            table(("objects", "number", "size"), [*rows, *skipped]),
            *([reuse] if reuse else []),
            f"Would read {size(total.size - reused_bytes)} from gs://{image_bucket}, keep "
            f"{size(array_bytes)} on this disk, and upload about {size(upload)} to gs://{index_bucket}.",
            "Every check passed. This was a dry run: nothing was changed.",
        )
    )


def describe_skipped(listing: Listing, script: Path | None) -> Iterator[str]:
    """A line for each kind of object that is not taken as an image, with what would change that.

    `script` is the file for the renames, if one was asked for.
    """
    renamable = 0
    for kind, objects, example in listing.skipped():
        line = (
            f"Skipped {count(objects, 'object')} ({printable(kind)}, such as {printable(example)})"
        )
        if kind.lower() in IMAGE_SUFFIXES:
            line += ": the server takes lower-case names only"
        elif kind.lower() in NEW_SUFFIXES:
            line += ": the server takes .jpg, .jpeg and .png only"
        elif kind.lower() in CONVERTIBLE:
            line += ": the server takes .jpg, .jpeg and .png only. Convert them to include them"
        renamable += objects if kind.lower() in NEW_SUFFIXES else 0
        yield line + "."
    if renamable and not script:
        yield (
            f"Under another name {renamable:,} of them would be images: --dry_run --write_renames "
            "FILE writes a script that renames them."
        )


def describe_changes(changes: Changes, since: str) -> str:
    """One line, such as "Since the last run: 3 images appeared, 2 were renamed. ..."."""
    parts: list[str] = []
    for kind, (number, _) in changes.kinds.items():
        images = f"{number:,}" if parts else count(number, "image")
        verb = "was " if number == 1 else "were "
        parts.append(f"{images} {verb if kind in PASSIVE else ''}{kind}")
    lost = changes.lost
    kept = (
        f"{count(lost, 'computed image')} {'is' if lost == 1 else 'are'} computed again."
        if lost
        else "Nothing that is computed is lost."
    )
    return f"Since {since}: {', '.join(parts)}. {kept}"


def list_changes(changes: Changes) -> str:
    """A line for each kind of change, with some of the names."""
    return "".join(
        f"\n  {number:,} {kind}: {', '.join(map(printable, names))}"
        + (", ..." if number > len(names) else "")
        for kind, (number, names) in changes.kinds.items()
    )
