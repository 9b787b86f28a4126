"""A script that renames objects which Forager takes as images only under another name.

These are images whose extension it does not take, and images that share a basename.
"""

from __future__ import annotations

import shlex
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from common.errors import DiskError
from common.files import write_atomically
from common.names import (
    IMAGE_SUFFIXES,
    MAX_IDENTIFIER_LENGTH,
    MAX_OBJECT_NAME_LENGTH,
    GsPath,
    encodable,
    identifier,
)
from common.terminal import count, duration, printable
from storage.listing import listed

# What an extension becomes, in lower case: JPEG files have more of them than Forager takes.
NEW_SUFFIXES = {**{suffix: suffix for suffix in IMAGE_SUFFIXES}, ".jpe": ".jpg", ".jfif": ".jpg"}
NOT_FOR_GCLOUD = set("*?[]\0")  # gcloud takes a name with one of the first four for a pattern
AT_ONCE = 8  # commands that run at the same time
RENAME_S = 1.0  # one command
HEAD = f"""\
#!/usr/bin/env bash
# Renames {{what}}, so that Forager takes each as an image with a basename of its own.
# This takes about {{time}}: {AT_ONCE} objects at a time, a second each. With more CPU cores, set
# AT_ONCE. Nothing is replaced: an object whose new name is there already stays as it is.
"""
RELABEL = "# Label files know images by their basenames: write the new ones there too.\n"
TAIL = f"""\
}} | xargs -0 -n 2 -P "${{AT_ONCE:-{AT_ONCE}}}" gcloud storage mv --no-clobber
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
    return "" if is_image or not suffix else stem + suffix


def find_renames(names: Iterable[str]) -> Renames:
    """Which of these objects to rename: all that are in both directories, images and others."""
    new_names = {name: new_name(name) or name for name in names if encodable(name)}
    wanted = Counter(new for old, new in new_names.items() if old != new)
    groups: defaultdict[str, list[tuple[str, str]]] = defaultdict(list)  # by future identifier
    renames = Renames([], [])
    for old, new in sorted(new_names.items()):
        if old != new and new in new_names:
            renames.kept.append((old, f"{printable(new, 1000)} is there already"))
        elif wanted[new] > 1 and old != new:
            renames.kept.append((old, "another object would get the same name"))
        elif new.endswith(IMAGE_SUFFIXES):
            groups[identifier(new)].append((old, new))
    used = set(groups)
    for _, group in sorted(groups.items()):
        renamed = _made_unique(group, used) if len(group) > 1 else group
        if not renamed:
            why = "its directories give it no short name of its own"
            renames.kept.extend((old, why) for old, _ in group)
        for old, new in renamed:
            if old != new and NOT_FOR_GCLOUD & set(old):
                renames.kept.append((old, "gcloud takes *, ?, [ and ] in names for patterns"))
            elif old != new:
                renames.new_names.append((old, new))
    return renames


def _made_unique(group: list[tuple[str, str]], used: set[str]) -> list[tuple[str, str]]:
    """Old and new names of images of one identifier, made unique by their directories.

    As few directories are taken as are enough for the group: cat/cat_1.jpg, or train_cat_1.jpg;
    where none are enough, all of them and the extension. `used` are the identifiers of all images,
    to which the new ones are added. The result is empty where the names would be too long.
    """
    deepest = max(new.count("/") for _, new in group)
    for depth in range(1, deepest + 2):
        names = [_longer_name(new, depth, with_extension=depth > deepest) for _, new in group]
        identifiers = [identifier(name) for name in names]
        found = zip(identifiers, names, group, strict=True)
        added = {short for short, name, (_, new) in found if name != new}
        if len(set(identifiers)) == len(group) and used.isdisjoint(added):
            if (
                max(map(len, names)) > MAX_OBJECT_NAME_LENGTH
                or max(map(len, identifiers)) > MAX_IDENTIFIER_LENGTH
            ):
                break
            used |= added
            return [(old, name) for (old, _), name in zip(group, names, strict=True)]
    return []


def _longer_name(name: str, depth: int, *, with_extension: bool) -> str:
    """The object name with its last `depth` directories before the basename, joined by _."""
    *directories, base = name.split("/")
    if with_extension:
        stem, _, extension = base.rpartition(".")
        base = f"{stem}_{extension}.{extension}"
    return "/".join([*directories, "_".join([*directories[-depth:], base])])


def script(renames: Renames, bucket: str) -> Iterator[str]:
    """The lines that rename the objects; those that keep their names are comments in it."""
    objects = len(renames.new_names)
    what = f"{count(objects, 'object')} in gs://{bucket}"
    yield HEAD.format(what=what, time=_time(objects))
    if any(identifier(old) != identifier(new) for old, new in renames.new_names):
        yield RELABEL
    for name, why in renames.kept:
        yield f"# Not renamed: {printable(name, 1000)} ({why}).\n"
    yield "set -euo pipefail\n{\n"
    for old, new in renames.new_names:
        words = (_quoted(f"gs://{bucket}/{name}") for name in (old, new))
        yield f"    printf '%s\\0' {' '.join(words)}\n"
    yield TAIL


def _time(objects: int) -> str:
    return duration(max(1, objects * RENAME_S / AT_ONCE))


def _quoted(text: str) -> str:
    """The text as a word of bash. Nothing in it acts on a terminal that shows the script."""
    if text.isprintable():
        return shlex.quote(text)
    plain = (
        chr(byte) if 32 <= byte < 127 and chr(byte) not in "'\\" else f"\\x{byte:02x}"
        for byte in text.encode()
    )
    return f"$'{''.join(plain)}'"


def write_renames(path: Path, directories: Sequence[GsPath]) -> str:
    """Write the script for all objects in these directories; returns what to do with it.

    It lists them again, and keeps all names in memory. This function blocks.

    Raises:
        StorageError: storage cannot be reached.
        DiskError: the script cannot be written.
    """
    names = (o.name for directory in directories for page in listed(directory) for o in page)
    renames = find_renames(names)
    kept = len(renames.kept)
    if not renames.new_names:
        why = f": {printable(renames.kept[0][0])}, because {renames.kept[0][1]}" if kept else ""
        return f"{path} was not written: it would rename nothing{why}."
    try:
        write_atomically(path, map(str.encode, script(renames, directories[0].bucket)))
    except OSError as error:
        reason = f"--write_renames {printable(str(path))} cannot be written ({error.strerror})"
        raise DiskError(f"{reason}: name another file.") from error
    rest = f" (and names {count(kept, 'other')} that it cannot rename)" if kept else ""
    return (
        f"Wrote a script that renames {count(len(renames.new_names), 'object')}{rest}, which takes "
        f"about {_time(len(renames.new_names))}. Read it, then run: bash {_quoted(str(path))}"
    )
