"""A script that renames objects which are images by all but their names."""

from __future__ import annotations

import shlex
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from common.files import write_atomically
from common.names import IMAGE_SUFFIXES, GsPath, encodable
from common.terminal import count, printable
from dataset.listing import Listing
from storage.listing import listed

# What an extension becomes, in lower case: JPEG files have more of them than Forager takes.
NEW_SUFFIXES = {**{suffix: suffix for suffix in IMAGE_SUFFIXES}, ".jpe": ".jpg", ".jfif": ".jpg"}
NOT_FOR_GCLOUD = set("*?[]\0")  # gcloud takes a name with one of the first four for a pattern
AT_ONCE = 8  # commands that run at the same time
SCRIPT = f"""\
#!/usr/bin/env bash
# Renames {{what}}, so that Forager takes them as images.
# Each takes about a second; {AT_ONCE} run at a time. Nothing is replaced: an object whose new name
# is there already stays as it is.
{{kept}}set -euo pipefail
{{{{
{{commands}}}}}} | xargs -0 -n 2 -P {AT_ONCE} gcloud storage mv --no-clobber
"""


class Renames(NamedTuple):
    """Objects and what to call them, or why they keep their names."""

    new_names: list[tuple[str, str]]  # old and new name, sorted
    kept: list[tuple[str, str]]  # name and reason


def new_name(name: str) -> str:
    """The name under which Forager takes an object as an image; "" if no name changes that."""
    stem, _, extension = name.rpartition(".")
    suffix = NEW_SUFFIXES.get(f".{extension.lower()}", "")
    is_image = name.endswith(IMAGE_SUFFIXES) or not stem.rpartition("/")[2]
    return "" if is_image or not suffix or not encodable(name) else stem + suffix


def find_renames(names: Iterable[str], images: Iterable[str]) -> Renames:
    """The objects among `names` to rename, given the images that are there already."""
    by_new_name: defaultdict[str, list[str]] = defaultdict(list)
    for name in names:
        if new := new_name(name):
            by_new_name[new].append(name)
    taken = {name for name in images if name in by_new_name}
    renames = Renames([], [])
    for new, olds in sorted(by_new_name.items()):
        for old in sorted(olds):
            if new in taken:
                renames.kept.append((old, f"{printable(new, 1000)} is there already"))
            elif len(olds) > 1:
                renames.kept.append((old, "another object would get the same name"))
            elif NOT_FOR_GCLOUD & set(old):
                renames.kept.append((old, "gcloud takes *, ?, [ and ] in names for patterns"))
            else:
                renames.new_names.append((old, new))
    return renames


def script(renames: Renames, bucket: str) -> str:
    """The script that renames the objects; those that keep their names are comments in it."""
    commands = [
        f"    printf '%s\\0' {_quoted(f'gs://{bucket}/{old}')} {_quoted(f'gs://{bucket}/{new}')}\n"
        for old, new in renames.new_names
    ]
    kept = [f"# Not renamed: {printable(name, 1000)} ({why}).\n" for name, why in renames.kept]
    what = f"{count(len(commands), 'object')} in gs://{bucket}"
    return SCRIPT.format(what=what, kept="".join(kept), commands="".join(commands))


def _quoted(text: str) -> str:
    """The text as a word of bash. Nothing in it acts on a terminal that shows the script."""
    if text.isprintable():
        return shlex.quote(text)
    plain = (
        chr(byte) if 32 <= byte < 127 and chr(byte) not in "'\\" else f"\\x{byte:02x}"
        for byte in text.encode()
    )
    return f"$'{''.join(plain)}'"


def write_renames(path: Path, directories: Sequence[GsPath], listing: Listing) -> str:
    """Write the script for all objects in these directories; returns what to do with it.

    It lists them again, and keeps the names of those to rename in memory. This function blocks.

    Raises:
        StorageError: storage cannot be reached.
        DiskError: the script cannot be written.
    """
    names = (o.name for directory in directories for page in listed(directory) for o in page)
    renames = find_renames(names, (o.name for _, o in listing.images()))
    kept = len(renames.kept)
    if not renames.new_names:
        why = f": {printable(renames.kept[0][0])}, because {renames.kept[0][1]}" if kept else ""
        return f"{path} was not written: it would rename nothing{why}."
    write_atomically(path, [script(renames, directories[0].bucket).encode()])
    rest = f" (and names {count(kept, 'other')} that it cannot rename)" if kept else ""
    return (
        f"Wrote a script that renames {count(len(renames.new_names), 'object')}{rest}. Read it, "
        f"then run: bash {_quoted(str(path))}"
    )
