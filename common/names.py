"""Names of datasets and images, gs:// paths, texts and addresses: what is valid, what is shown.

The limits of names are those of the Forager server. Beyond them it answers with status 500; a
dataset whose images exceed them stays empty there and blocks its name.
"""

import os
import re
from typing import NamedTuple

from common.terminal import printable

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png")  # the only ones that the server accepts
MAX_NAME_LENGTH = 50  # characters of the name of a dataset
DATASET_NAME = re.compile(rf"[-a-zA-Z0-9_]{{1,{MAX_NAME_LENGTH}}}")
INDEX_ID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
BUCKET_NAME = re.compile(r"[a-z0-9][-_.a-z0-9]{1,220}[a-z0-9]")
# What a browser shows of a directory on Cloud Storage; the group is BUCKET/DIRECTORY.
WEB_ADDRESS = re.compile(
    r"https?://(?:storage\.googleapis\.com|storage\.cloud\.google\.com"
    r"|console\.cloud\.google\.com/storage/browser)/([^;?#]+)"
)
BUCKET_NAME_RULE = (
    "bucket names are 3 to 222 lower-case letters, digits, dashes, underscores and dots"
)
LOCAL = ("/", "./", "../", "~", "file://")  # so paths of this machine begin
COPIED = ("s3",)  # schemes of other places that gcloud copies from
MAX_IDENTIFIER_LENGTH = 300  # characters
MAX_OBJECT_NAME_LENGTH = 600  # characters
MAX_TEXT_LENGTH = 300  # characters of a category, a mode or an e-mail address


class GsPath(NamedTuple):
    """A directory on Google Cloud Storage; `prefix` is "" or ends with exactly one slash."""

    bucket: str
    prefix: str

    def __str__(self) -> str:
        return f"gs://{self.bucket}/{self.prefix}"


def parse_gs_path(text: str) -> GsPath:
    """The bucket and the prefix of `gs://bucket/directory`, with any number of final slashes.

    The prefix ends with exactly one slash, because the server lists by plain string prefix:
    `d/train` would include `d/train2/x.jpg`, and `d/train//` would match nothing.

    Raises:
        ValueError: with one sentence for the user.
    """
    shown = printable(text)
    scheme = text.partition("://")[0]
    is_local = text.startswith(LOCAL) or ("://" not in text and os.path.exists(text))
    if is_local or ("://" in text and scheme in COPIED):
        raise ValueError(
            f"{shown} is not on Cloud Storage, where Forager reads images: copy it there, such as "
            f"with `gcloud storage rsync --recursive {shown} gs://BUCKET/DIRECTORY`."
        )
    if not text.startswith("gs://"):
        address = WEB_ADDRESS.match(text)
        form = f"gs://{printable(address[1])}" if address else "gs://BUCKET/DIRECTORY"
        if BUCKET_NAME.fullmatch(text.partition("/")[0]):
            form = f"gs://{shown}"
        shown = printable(text.partition("?")[0])  # what follows may be a signature
        raise ValueError(f"{shown} is not a Cloud Storage path: write {form}.")
    bucket, _, directory = text.removeprefix("gs://").partition("/")
    parent, _, last = directory.rpartition("/")
    if "*" in last:
        raise ValueError(
            f"{shown} names files by a pattern, where a directory is expected: write "
            f"{printable(f'gs://{bucket}/{parent}')}."
        )
    if not BUCKET_NAME.fullmatch(bucket):
        raise ValueError(f"{shown} names no bucket: {BUCKET_NAME_RULE}.")
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
    if name.startswith("gs://"):
        return f"{printable(name)} stands where the dataset name is expected: write NAME first."
    return (
        f"The dataset name {printable(name)!r} is not valid: "
        "use 1 to 50 letters, digits, dashes and underscores."
    )


def identifier(object_name: str) -> str:
    """The basename without its last extension, as the server computes it.

    `a/img.v1.jpg` is `img.v1`; a name that is only an extension keeps it: `a/.jpg` is `.jpg`.
    """
    # Five times as fast as os.path.splitext(os.path.basename(...)), for millions of names.
    base = object_name.rpartition("/")[2]
    stem = base.rpartition(".")[0]
    return stem if stem.strip(".") else base


def checked_index_id(text: str) -> str:
    """The text, if it is a UUID as an index has it. Raises ValueError otherwise.

    Everything of an index has this id in its object name: without it, one index would overwrite or
    delete what belongs to others.
    """
    if not INDEX_ID.fullmatch(text):
        raise ValueError(f"{printable(text)!r} is no index id: 8-4-4-4-12 hexadecimal digits")
    return text


def encodable(text: str) -> bool:
    """Whether the text can be written as UTF-8 (a lone surrogate cannot)."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def text_problem(text: str) -> str | None:
    """What keeps the server's database from storing this text, or None."""
    if text.isascii() and text.isprintable():
        return None
    if "\0" in text:
        return "holds a NUL character"
    return None if encodable(text) else "holds half of a surrogate pair, which is no character"
