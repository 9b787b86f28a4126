"""Copy images that are computed elsewhere: vectors in ranges, thumbnails inside the bucket.

Elsewhere is another index, or this one under other names. The vectors of every image are checked
against their crc32c. An image is recorded when its vectors are written and its thumbnail is copied,
as an embedded image is: so resuming needs nothing more. One that cannot be copied stays pending and
is embedded.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from common.precision import Precision
from dataset.arrays import ROW_BYTES, Arrays, array_path, grouped, row_checksum
from dataset.lists import thumbnail_directory, thumbnail_name
from dataset.matches import Match
from dataset.state import Outcome, State
from engine.checkpoint import CHECKPOINT_S, Recorder
from engine.stages import together
from gcs import ListedObject
from storage.async_client import AsyncStorage
from storage.pace import WritePace

CHUNKS_AT_ONCE = 8
CHUNK_ROWS = 256  # of a source, read at once: 3.7 MB
GAP_ROWS = 16  # not needed between two rows, and read all the same: a request costs more
READS = 2  # of a chunk whose rows do not match their checksums


@dataclass(frozen=True, kw_only=True)
class Source:
    """An index whose images can be copied: of a registered dataset, or of a work directory."""

    name: str  # as the user wrote it
    index_id: str
    bucket: str  # of its thumbnails and, without a directory, of its arrays
    rows: int
    precision: Precision
    difference: str | None = None  # what was computed otherwise; None if its images can be used
    directory: Path | None = None  # of its arrays
    arrays: dict[str, ListedObject] = field(default_factory=dict)  # those in the bucket, by name


class Copier:
    """Copies the images of matches into the arrays of an ingest, which may be the source too."""

    def __init__(
        self,
        state: State,
        arrays: Arrays,
        sources: Sequence[Source],
        matches: Iterable[Match],
        index_bucket: str,
        *,
        checkpoint_s: float = CHECKPOINT_S,
        chunk_rows: int = CHUNK_ROWS,
        pace: WritePace | None = None,
    ) -> None:
        self._index_id, self._arrays, self._bucket = state.index_id, arrays, index_bucket
        self._sources, self._matches, self._chunk_rows = sources, matches, chunk_rows
        self._recorder, self._pace = Recorder(state, arrays, checkpoint_s=checkpoint_s), pace
        self.copied = self.damaged = self.without_thumbnail = 0

    async def run(self) -> float:
        """Copy everything; returns the seconds. What is copied when this stops is recorded.

        Raises:
            StorageError: storage refuses or cannot be reached.
            OSError, sqlite3.OperationalError: the disk is full or fails.
        """
        start = time.monotonic()
        chunks = chunked(self._matches, self._chunk_rows)
        # Each chunk has a request for each array, or one for its thumbnails.
        connections = CHUNKS_AT_ONCE * len(ROW_BYTES)
        async with AsyncStorage(connections, pace=self._pace) as self._objects:
            work = (self._copy_chunks(chunks) for _ in range(CHUNKS_AT_ONCE))
            await self._recorder.during(together(*work))
        return time.monotonic() - start

    async def _copy_chunks(self, chunks: Iterator[list[Match]]) -> None:
        for chunk in chunks:
            source = self._sources[chunk[0].source]
            blocks, good = await self._read(source, chunk)
            self.damaged += len(chunk) - len(good)
            whole = await self._with_thumbnail(source, good)
            self.without_thumbnail += len(good) - len(whole)
            self._write(blocks, chunk[0].image.row, whole)
            self._recorder.copied([self._outcome(source, match) for match in whole])
            self.copied += len(whole)

    async def _read(
        self, source: Source, chunk: list[Match]
    ) -> tuple[list[memoryview], list[Match]]:
        """The vectors from the first to the last row of a chunk for each array, and the matches
        whose vectors are those that were written.
        """
        first, count = chunk[0].image.row, chunk[-1].image.row - chunk[0].image.row + 1
        for _ in range(READS):
            data = await together(*(self._range(source, name, first, count) for name in ROW_BYTES))
            blocks = [memoryview(block) for block in data]
            good = [
                m
                for m in chunk
                if row_checksum(blocks, m.image.row - first) == m.image.vectors_crc32c
            ]
            if len(good) == len(chunk):
                break
        return blocks, good

    async def _range(self, source: Source, name: str, first: int, count: int) -> bytes:
        size = ROW_BYTES[name]
        if source.directory:
            path = array_path(source.directory, name)
            return await asyncio.to_thread(_read_part, path, first * size, count * size)
        listed = source.arrays[name]
        return await self._objects.fetch_range(source.bucket, listed, first * size, count * size)

    async def _with_thumbnail(self, source: Source, matches: list[Match]) -> list[Match]:
        """Copy the thumbnails of these rows; returns those that had one."""
        target = thumbnail_directory(self._index_id)
        # One source row can have several matches: each needs a thumbnail of its own.
        left = {
            name: copied
            for match in matches
            for name in [f"{target}{match.identifier}.jpg"]
            for copied in [thumbnail_name(source.index_id, match.image.object)]
            if name != copied
        }
        missing = await self._objects.copy(source.bucket, self._bucket, left)
        return [m for m in matches if f"{target}{m.identifier}.jpg" not in missing]

    def _write(self, blocks: list[memoryview], first: int, matches: list[Match]) -> None:
        """Write the vectors of these rows, those of consecutive rows at once."""
        for run in grouped(matches, _follows):
            start, count = run[0].image.row - first, len(run)
            vectors = [
                block[start * size : (start + count) * size]
                for block, size in zip(blocks, ROW_BYTES.values(), strict=True)
            ]
            self._arrays.write_block(run[0].slot, vectors)

    def _outcome(self, source: Source, match: Match) -> Outcome:
        image, is_own = match.image, source.index_id == self._index_id
        return Outcome(
            match.slot,
            image.imagenet_class,
            None,
            image.vectors_crc32c,
            image.width,
            image.height,
            image.origin if is_own else f"{source.index_id}/{image.row}",
            image.quality,
        )


def chunked(matches: Iterable[Match], rows: int, gap: int = GAP_ROWS) -> Iterator[list[Match]]:
    """Matches that are near each other in one source, within `rows` rows of it."""

    def is_near(chunk: list[Match], match: Match) -> bool:
        return (
            match.source == chunk[0].source
            and match.image.row - chunk[0].image.row < rows
            and match.image.row - chunk[-1].image.row <= gap
            and len(chunk) < rows
        )

    return grouped(matches, is_near)


def _follows(run: list[Match], match: Match) -> bool:
    """Whether the vectors of a match follow those of a run, both in the source and here."""
    return (match.image.row, match.slot) == (run[-1].image.row + 1, run[-1].slot + 1)


def _read_part(path: Path, start: int, size: int) -> bytes:
    """A part of a file; shorter where the file ends before."""
    with open(path, "rb") as file:
        return os.pread(file.fileno(), size, start)
