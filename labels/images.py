"""Which images the dataset has, according to its index in the bucket."""

import itertools
import json

import click

import gcs
from common.terminal import printable
from labels.requests import Group


def known_images(bucket: str, index_id: str) -> set[str] | None:
    """The identifiers of the dataset's images.

    If the index cannot be read, prints why and returns None. This function blocks.
    """
    known: set[str] = set()
    try:
        for file in ("identifiers.json", "val_identifiers.json"):
            rows = json.loads(gcs.read_bytes(bucket, f"indexes/{index_id}/{file}"))
            if not isinstance(rows, dict):
                raise ValueError(f"{file} is not a JSON object")
            known |= rows.keys()
    except gcs.StorageError as error:
        reason = error.message
    except (ValueError, RecursionError) as error:
        reason = f"{printable(str(error))}."
    else:
        return known
    click.echo(
        f"The dataset's index in gs://{printable(bucket)} cannot be read: {reason} Unknown images "
        "are therefore found only by comparing how many labels the server stores.",
        err=True,
    )
    return None


def split_unknown(
    groups: dict[Group, list[str]], known: set[str]
) -> tuple[dict[Group, list[str]], list[str]]:
    """The groups without unknown images, and the unknown images, sorted."""
    wanted = set(itertools.chain.from_iterable(groups.values()))
    if wanted <= known:
        return groups, []
    kept = {
        group: [image for image in images if image in known] for group, images in groups.items()
    }
    return {group: images for group, images in kept.items() if images}, sorted(wanted - known)
