"""Thumbnails and full images from the buckets; kept on disk and in memory, respectively."""

import os
from pathlib import Path
from typing import Any

from aiohttp import web
from PIL import ExifTags

from common.errors import ImageError, StorageError
from engine.decode import fault_of_image, open_image
from local_forager.indexes.copies import thumbnail_path
from local_forager.server.buckets import Buckets
from local_forager.types import PageError

KEPT_BYTES = 64 * 1024 * 1024  # of full images, in memory
FOREVER = "private, max-age=31536000, immutable"
SIGNATURES = {
    b"\xff\xd8\xff": "image/jpeg",
    b"\x89PNG\r\n\x1a\n": "image/png",
    b"GIF8": "image/gif",
    b"BM": "image/bmp",
}


class Pictures:
    """Thumbnails, each kept as a file under data_dir after its first use, and full images.

    The most recent full images are kept in memory.
    """

    def __init__(self, buckets: Buckets, bucket: str, data_dir: Path) -> None:
        self._buckets, self._bucket, self._data_dir = buckets, bucket, data_dir
        self._kept: dict[tuple[str, str], bytes] = {}

    async def _fetch(self, bucket: str, name: str) -> bytes:
        """The object; PageError with status 404 if there is none, 502 if it cannot be had."""
        try:
            return await self._buckets.read(bucket, name)
        except StorageError as error:
            if error.status == 404:
                raise PageError(404, "It is not in the bucket.") from None
            raise PageError(502, f"It cannot be downloaded. {error}") from error
        except ValueError as error:  # an object name that no request can hold
            raise PageError(502, f"It cannot be downloaded: {error}.") from error

    async def thumbnail(self, index_id: str, identifier: str) -> Path:
        """The file with a thumbnail, downloaded if needed; PageError if there is none."""
        path = thumbnail_path(self._data_dir, index_id, identifier)
        if not path.exists():
            data = await self._fetch(self._bucket, f"thumbnails/{index_id}/{identifier}.jpg")
            path.parent.mkdir(parents=True, exist_ok=True)
            partial = path.with_suffix(f".{id(data)}")
            partial.write_bytes(data)
            os.replace(partial, path)
        return path

    async def original(self, bucket: str, name: str) -> bytes:
        """The full image in a training bucket; PageError if it cannot be had."""
        data = self._kept.pop((bucket, name), b"") or await self._fetch(bucket, name)
        self._kept[bucket, name] = data  # the last to be left out
        while len(self._kept) > 1 and sum(map(len, self._kept.values())) > KEPT_BYTES:
            del self._kept[next(iter(self._kept))]
        return data


def content_type(data: bytes) -> str:
    """The media type of these bytes, by their signature: a web page must not pass for an image."""
    for signature, kind in SIGNATURES.items():
        if data.startswith(signature):
            return kind
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "image/webp"
    return "application/octet-stream"


def image_facts(data: bytes) -> tuple[int, int, int]:
    """Width and height in pixels, before any rotation, and EXIF orientation (1 to 8, 1 is upright).

    Raises PageError if an ingest cannot open the image either.
    """
    try:
        with open_image(data) as image, fault_of_image("its EXIF data cannot be read"):
            orientation: Any = image.getexif().get(ExifTags.Base.Orientation)
            return *image.size, orientation if orientation in range(1, 9) else 1
    except ImageError as error:
        raise PageError(409, f"It cannot be read: {error}.") from error


def image_response(data: bytes, forever: bool) -> web.Response:
    """An image for the browser, which may not run anything in it, and may keep it forever."""
    headers = {
        "Cache-Control": FOREVER if forever else "no-cache",
        "Content-Security-Policy": "default-src 'none'; sandbox",
    }
    return web.Response(body=data, content_type=content_type(data), headers=headers)
