"""Names of datasets, images and gs:// paths: what is allowed, and how to print what is not.

The limits are those of the Forager server: a longer name is a 500 there and leaves an empty dataset
that blocks the name.
"""

import re
from typing import NamedTuple

from common.terminal import printable

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png")  # the server takes these, in lower case, and no others
DATASET_NAME = re.compile(r"[-a-zA-Z0-9_]{1,50}")
BUCKET_NAME = re.compile(r"[a-z0-9][-_.a-z0-9]{1,220}[a-z0-9]")
MAX_IDENTIFIER_LENGTH = 300  # characters
MAX_OBJECT_NAME_LENGTH = 600  # characters


class GsPath(NamedTuple):
    """A directory on Google Cloud Storage; `prefix` is "" or ends with exactly one slash."""

    bucket: str
    prefix: str

    def __str__(self) -> str:
        return f"gs://{self.bucket}/{self.prefix}"


def parse_gs_path(text: str) -> GsPath:
    """The bucket and the prefix of `gs://bucket/directory`, however many slashes it ends with.

    The server lists by plain string prefix: `d/train` would take `d/train2/x.jpg` too, and
    `d/train//` nothing, hence exactly one slash.

    Raises:
        ValueError: with one sentence for the user.
    """
    shown = printable(text)
    if not text.startswith("gs://"):
        raise ValueError(f"{shown} is not a Cloud Storage path: write gs://BUCKET/DIRECTORY.")
    bucket, _, directory = text.removeprefix("gs://").partition("/")
    if not BUCKET_NAME.fullmatch(bucket):
        raise ValueError(
            f"{shown} names no bucket: bucket names are 3 to 222 lower-case letters, digits, "
            "dashes, underscores and dots."
        )
    if not encodable(directory):
        raise ValueError(f"{shown} is not valid UTF-8 text: object names on Cloud Storage are.")
    directory = directory.rstrip("/")
    if len(directory) >= MAX_OBJECT_NAME_LENGTH:
        raise ValueError(f"{shown} is longer than {MAX_OBJECT_NAME_LENGTH} characters.")
    return GsPath(bucket, directory + "/" if directory else "")


def dataset_name_error(name: str) -> str | None:
    """One sentence if the server could not open a dataset of this name, else None."""
    if DATASET_NAME.fullmatch(name):
        return None
    return (
        f"The dataset name {printable(name)!r} is not valid: "
        "use 1 to 50 letters, digits, dashes and underscores."
    )


def identifier(object_name: str) -> str:
    """The basename without its last extension, as the server computes it.

    `a/img.v1.jpg` is `img.v1`; a name that is all extension keeps it: `a/.jpg` is `.jpg`.
    """
    # os.path.splitext(os.path.basename(...)), five times as fast: a million names are common.
    base = object_name.rpartition("/")[2]
    stem = base.rpartition(".")[0]
    return stem if stem.strip(".") else base


def encodable(text: str) -> bool:
    """Whether the text can be written as UTF-8 (a lone surrogate cannot)."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
