"""Thumbnails and full images from the buckets; kept on disk and in memory, respectively."""

import io
import os
from collections import OrderedDict
from pathlib import Path

from aiohttp import web
from PIL import ExifTags, Image

from common.errors import StorageError
from local_forager.indexes.copies import thumbnail_path
from local_forager.server.buckets import Buckets
from local_forager.types import PageError

MAX_PIXELS = 178_956_970  # of an image, as in an ingest
KEPT_BYTES = 64 * 1024 * 1024  # of full images, in memory
FOREVER = "private, max-age=31536000, immutable"
SIGNATURES = {
    b"\xff\xd8\xff": "image/jpeg",
    b"\x89PNG\r\n\x1a\n": "image/png",
    b"GIF8": "image/gif",
    b"BM": "image/bmp",
}
FORMATS = ("JPEG", "PNG", "GIF", "BMP", "WEBP", "TIFF")  # content of files whatever their names


async def fetch(buckets: Buckets, bucket: str, name: str) -> bytes:
    """The object; PageError with status 404 if there is none, 502 if it cannot be had."""
    try:
        return await buckets.read(bucket, name)
    except StorageError as error:
        if error.status == 404:
            raise PageError(404, "It is not in the bucket.") from None
        raise PageError(502, f"It cannot be downloaded. {error}") from error
    except ValueError as error:  # an object name that no request can hold
        raise PageError(502, f"It cannot be downloaded: {error}.") from error


class Thumbnails:
    """The index bucket's thumbnails; each is kept as a file under data_dir after its first use."""

    def __init__(self, buckets: Buckets, bucket: str, data_dir: Path) -> None:
        self._buckets, self._bucket = buckets, bucket
        self._data_dir = data_dir

    async def get(self, index_id: str, identifier: str) -> Path:
        """The file with a thumbnail, downloaded if needed; PageError if there is none."""
        path = thumbnail_path(self._data_dir, index_id, identifier)
        if not path.exists():
            name = f"thumbnails/{index_id}/{identifier}.jpg"
            data = await fetch(self._buckets, self._bucket, name)
            path.parent.mkdir(parents=True, exist_ok=True)
            partial = path.with_suffix(f".{id(data)}")
            partial.write_bytes(data)
            os.replace(partial, path)
        return path


class Originals:
    """Full images of the training bucket; the most recent ones are kept in memory."""

    def __init__(self, buckets: Buckets) -> None:
        self._buckets = buckets
        self._kept: OrderedDict[tuple[str, str], bytes] = OrderedDict()

    async def get(self, bucket: str, name: str) -> bytes:
        key = (bucket, name)
        if key not in self._kept:
            self._kept[key] = await fetch(self._buckets, bucket, name)
        self._kept.move_to_end(key)
        data = self._kept[key]
        while len(self._kept) > 1 and sum(map(len, self._kept.values())) > KEPT_BYTES:
            self._kept.popitem(last=False)
        return data


def content_type(data: bytes) -> str:
    """The media type of these bytes, by their signature: a web page must not pass for an image."""
    for signature, kind in SIGNATURES.items():
        if data.startswith(signature):
            return kind
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "image/webp"
    return "application/octet-stream"


class TooLarge(ValueError):
    """The image has more than MAX_PIXELS, so its pixels are not decoded."""


def opened(data: bytes) -> Image.Image:
    """The image with its header read. Pillow has no limit of its own in this process."""
    image = Image.open(io.BytesIO(data), formats=FORMATS)
    if image.width * image.height > MAX_PIXELS:
        raise TooLarge(f"It has more than {MAX_PIXELS / 1e6:.0f} million pixels, the limit.")
    return image


def image_facts(data: bytes) -> tuple[int, int, int]:
    """Width and height in pixels, before any rotation, and EXIF orientation (1 to 8, 1 is upright).

    Raises ValueError if this is no readable image.
    """
    if not data:
        raise ValueError("The object is empty.")
    try:
        with opened(data) as image:
            orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
            known = isinstance(orientation, int) and 1 <= orientation <= 8
            return *image.size, orientation if known else 1
    except TooLarge:
        raise
    except Exception as error:  # Pillow raises many types for damaged files
        raise ValueError("It is not a readable image.") from error


def decoding_problem(data: bytes) -> str:
    """Why the image cannot be decoded, in one sentence."""
    try:
        with opened(data) as image:
            image.load()
    except TooLarge as error:
        return str(error)
    except Exception as error:  # Pillow raises many types for damaged files
        return f"It cannot be decoded: {error}."
    return "It can be decoded now. Perhaps it has been replaced since the ingest."


def image_response(data: bytes, forever: bool) -> web.Response:
    """An image for the browser, which may not run anything in it, and may keep it forever."""
    headers = {
        "Cache-Control": FOREVER if forever else "no-cache",
        "Content-Security-Policy": "default-src 'none'; sandbox",
    }
    return web.Response(body=data, content_type=content_type(data), headers=headers)
