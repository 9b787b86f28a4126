"""A storage server for benchmarks: prepared answers from asyncio, faster than what they measure.

    python -m testing.servers.storage_server --images 2000 --image FILE [--delay_ms 50]

It speaks the part of Cloud Storage's JSON API that the ingest uses. The images are a few files
under many names. Of uploads it keeps the size and the checksum, which it sends back.
"""

from __future__ import annotations

import asyncio
import base64
import bisect
import functools
import json
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

import click
import google_crc32c

from dataset import manifest
from dataset.arrays import DIMENSIONS, DTYPE, ROW_BYTES
from testing.embedders import CONSTANT

PAGE = 1000  # objects in a page of a listing
ARRAY = "/embeddings.npy"  # the end of an array's name; its vectors are those of CONSTANT
ROWS_KEPT = 1024  # of an array, in memory


def checksum(data: bytes) -> str:
    """CRC-32C as the JSON API writes it."""
    return base64.b64encode(google_crc32c.value(data).to_bytes(4, "big")).decode()


class Objects:
    """What the server has: images by number; the size and checksum of uploaded objects."""

    def __init__(self, images: list[bytes], count: int, index_rows: int) -> None:
        self.images = [(data, checksum(data)) for data in images]
        self.count = count
        self.manifests: dict[str, bytes] = {}
        self.index_rows = index_rows
        self.rows = {
            name: vector.astype(DTYPE).tobytes() * ROWS_KEPT
            for name, vector in zip(DIMENSIONS, CONSTANT.vectors, strict=True)
        }
        self.uploaded: dict[str, tuple[int, str]] = {}
        self.parts: dict[str, bytearray] = {}

    def listing(self, query: dict[str, str]) -> dict[str, object]:
        """A page of the images, nine of ten for training. A page token is the next name.

        Uploaded thumbnails are all in one page.
        """
        prefix, split = query.get("prefix", ""), self.count * 9 // 10
        if prefix.startswith("thumbnails/"):
            first, end = query.get("startOffset", ""), query.get("endOffset", chr(0x10FFFF))
            found = [n for n in sorted(self.uploaded) if n.startswith(prefix) and first <= n < end]
            return {"items": [self.item(name, *self.uploaded[name]) for name in found]}
        numbers = range(0, split) if "train" in prefix else range(split, self.count)

        def name(number: int) -> str:
            return f"{prefix}{number:09}.jpg"

        first = query.get("pageToken", query.get("startOffset", ""))
        numbers = numbers[bisect.bisect_left(numbers, first, key=name) :]
        if "endOffset" in query:
            numbers = numbers[: bisect.bisect_left(numbers, query["endOffset"], key=name)]
        items = []
        for number in numbers[:PAGE]:
            data, crc32c = self.images[number % len(self.images)]
            items.append(self.item(name(number), len(data), crc32c))
        page: dict[str, object] = {"items": items}
        if len(numbers) > PAGE:
            page["nextPageToken"] = name(numbers[PAGE])
        return page

    def item(self, name: str, size: int, crc32c: str) -> dict[str, str]:
        """An object as a listing has it."""
        return {"name": name, "size": str(size), "crc32c": crc32c, "generation": "1"}

    def array(self, name: str) -> tuple[bytes, int]:
        """Rows of an array of the index, and the size of the whole."""
        kind = name.removesuffix(ARRAY).rpartition("/")[2]
        return self.rows[kind], self.index_rows * ROW_BYTES[kind]

    def part(self, name: str, given: str) -> bytes:
        """The bytes of an array or a manifest that a Range header names."""
        first, last = map(int, given.removeprefix("bytes=").split("-"))
        if name in self.manifests:
            return self.manifests[name][first : last + 1]
        rows, _ = self.array(name)
        start = first % (len(rows) // ROWS_KEPT)
        return rows[start : start + last + 1 - first]

    def image(self, name: str) -> bytes:
        number = int(name.rpartition("/")[2].partition(".")[0])
        return self.images[number % len(self.images)][0]


class Connection(asyncio.Protocol):
    """One HTTP/1.1 connection that is kept alive; requests come one after the other."""

    def __init__(self, objects: Objects, delay_s: float, window: int) -> None:
        self.objects, self.delay_s, self.window = objects, delay_s, window
        self.buffer = bytearray()
        self.in_window = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        self.in_window += len(data)
        if self.window and self.in_window >= self.window:
            self.in_window = 0
            self.transport.pause_reading()
            asyncio.get_running_loop().call_later(self.delay_s, self.resume)
        while (end := self.buffer.find(b"\r\n\r\n")) >= 0:
            head = bytes(self.buffer[:end]).decode("latin1").split("\r\n")
            headers = {
                key.lower(): value.strip()
                for key, _, value in (line.partition(":") for line in head[1:])
            }
            length = int(headers.get("content-length", 0))
            if len(self.buffer) < end + 4 + length:
                return
            body = bytes(self.buffer[end + 4 : end + 4 + length])
            del self.buffer[: end + 4 + length]
            method, target, _ = head[0].split(" ")
            answer = self.answer(method, target, headers, body)
            if self.delay_s:
                asyncio.get_running_loop().call_later(self.delay_s, self.transport.write, answer)
            else:
                self.transport.write(answer)

    def resume(self) -> None:
        if not self.transport.is_closing():
            self.transport.resume_reading()

    def answer(self, method: str, target: str, headers: dict[str, str], body: bytes) -> bytes:
        url = urlsplit(target)
        query = {key: values[0] for key, values in parse_qs(url.query).items()}
        name = unquote(url.path.partition("/o/")[2])
        if method == "GET" and query.get("alt") == "media" and "range" in headers:
            content = self.objects.part(name, headers["range"])
            return _http(content, "application/octet-stream", "206 Partial Content")
        if url.path.startswith("/batch/"):
            return batch_answer(body.count(b"/copyTo/"))
        if method == "GET" and name in self.objects.uploaded:
            size, crc32c = self.objects.uploaded[name]
            return _json({"name": name, "size": str(size), "crc32c": crc32c})
        if method == "GET" and name.endswith(ARRAY):
            size = self.objects.array(name)[1]
            return _json({"name": name, "size": str(size), "crc32c": "AAAAAA==", "generation": "1"})
        if method == "GET" and query.get("alt") == "media":
            return _http(self.objects.image(name), "image/jpeg")
        if url.path.endswith("/iam/testPermissions"):
            asked = parse_qs(url.query).get("permissions", [])
            return _json({"permissions": asked})
        if method == "GET" and url.path.endswith("/o"):
            return _json(self.objects.listing(query))
        if url.path.startswith("/upload/"):
            return self.upload(method, url.path, query, headers, body)
        if url.path.endswith("/compose"):
            target_name = name.removesuffix("/compose")
            sources = [source["name"] for source in json.loads(body)["sourceObjects"]]
            data = b"".join(self.objects.parts.pop(source) for source in sources)
            return self.stored(target_name, data)
        if method == "DELETE":
            self.objects.uploaded.pop(name, None)
            return b"HTTP/1.1 204 No Content\r\nContent-Length: 0\r\n\r\n"
        if method == "GET" and url.path.rpartition("/")[2][:1].isdecimal():
            return _http(self.objects.image(url.path), "image/jpeg")
        return b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n"

    def upload(
        self, method: str, path: str, query: dict[str, str], headers: dict[str, str], body: bytes
    ) -> bytes:
        if query["uploadType"] == "media":
            return self.stored(query["name"], body)
        if query["uploadType"] == "multipart":
            boundary = headers["content-type"].partition("boundary=")[2].strip("\"'").encode()
            parts = body.split(b"--" + boundary)
            name = json.loads(parts[1].partition(b"\r\n\r\n")[2])["name"]
            return self.stored(name, parts[2].partition(b"\r\n\r\n")[2][:-2])
        if method == "POST":
            name = json.loads(body)["name"]
            self.objects.parts[name] = bytearray()
            location = f"http://{headers['host']}{path}?uploadType=resumable&name={name}"
            return f"HTTP/1.1 200 OK\r\nLocation: {location}\r\nContent-Length: 0\r\n\r\n".encode()
        name = query["name"]
        part = self.objects.parts[name]
        part += body
        if len(part) < int(headers["content-range"].rpartition("/")[2]):
            last = len(part) - 1
            head = f"HTTP/1.1 308 Incomplete\r\nRange: bytes=0-{last}\r\nContent-Length: 0\r\n\r\n"
            return head.encode()
        return self.stored(name, bytes(part))

    def stored(self, name: str, data: bytes) -> bytes:
        """Remember an object's size and checksum, and a part's bytes until it is composed."""
        size, crc32c = len(data), checksum(data)
        self.objects.uploaded[name] = size, crc32c
        if name.endswith(f"/{manifest.NAME}"):
            self.objects.manifests[name] = data
        if ".part-" in name:
            self.objects.parts[name] = bytearray(data)
        else:
            self.objects.parts.pop(name, None)
        return _json({"name": name, "size": str(size), "crc32c": crc32c, "generation": "1"})


@functools.cache
def batch_answer(calls: int) -> bytes:
    """The answer to this number of calls in one request, all of which succeeded."""
    part = "--batch\r\nContent-Type: application/http\r\nContent-ID: <response-{}>\r\n\r\n"
    part += "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n\r\n{{}}\r\n"
    body = "".join(part.format(number) for number in range(calls)) + "--batch--\r\n"
    return _http(body.encode(), "multipart/mixed; boundary=batch")


def _http(body: bytes, content_type: str, status: str = "200 OK") -> bytes:
    head = (
        f"HTTP/1.1 {status}\r\nContent-Type: {content_type}\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


def _json(content: object) -> bytes:
    return _http(json.dumps(content).encode(), "application/json")


async def serve(objects: Objects, delay_s: float, window: int) -> None:
    """Listen on a free port of 127.0.0.1 and print the address."""
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: Connection(objects, delay_s, window), "127.0.0.1", 0)
    print(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", flush=True)
    await server.serve_forever()


@click.command()
@click.option("--images", default=1000, help="How many objects it says it has.")
@click.option("--image", type=click.Path(path_type=Path), multiple=True, required=True)
@click.option("--index_rows", default=0, help="Rows of the arrays of every index.")
@click.option("--delay_ms", default=0.0, help="Wait before each answer, and after each window.")
@click.option("--window_kb", default=0, help="Taken on a connection a delay, as by TCP.")
def main(
    images: int, image: tuple[Path, ...], index_rows: int, delay_ms: float, window_kb: int
) -> None:
    """Serve prepared images on 127.0.0.1 until killed."""
    objects = Objects([path.read_bytes() for path in image], images, index_rows)
    asyncio.run(serve(objects, delay_ms / 1000, window_kb * 1024))


if __name__ == "__main__":
    main()
