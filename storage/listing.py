"""List a directory of many objects quickly, in disjoint ranges of names at once; delete an index.

A page holds at most 1,000 names and takes as long as a round trip. A range that takes more than one
page is divided among the workers that are idle.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Iterator, Sequence
from typing import NamedTuple

from common.errors import StorageError
from common.names import GsPath, checked_index_id, encodable
from common.terminal import count, warn
from gcs import ListedObject
from storage.async_client import AsyncStorage

WORKERS = 32  # requests at once
INDEX_DIRECTORIES = ("indexes", "aux_labels", "thumbnails")  # each has one directory per index
EXPIRED = 410  # HTTP status of a page token that is too old
EMPTY_PAGES = 4  # per worker, beyond as many as pages with names; then no range is divided
TAIL = 3  # characters after those that all names of a page share, from which others are guessed
GUESSED = "05AMZagmrtz"  # beside the characters that were seen


class Range(NamedTuple):
    """Names from `start` on and, unless it is None, before `end`."""

    start: str
    end: str | None


def listed(path: GsPath, *, workers: int = WORKERS) -> Iterator[list[ListedObject]]:
    """`list_directory` for code that blocks: each page is waited for where it is asked for.

    Call it in a thread without an event loop.
    """
    loop = asyncio.new_event_loop()
    pages = list_directory(path, workers=workers)
    try:
        while (page := loop.run_until_complete(anext(pages, None))) is not None:
            yield page
    finally:
        loop.run_until_complete(loop.shutdown_asyncgens())
        loop.close()


async def list_directory(
    path: GsPath, *, workers: int = WORKERS
) -> AsyncIterator[list[ListedObject]]:
    """Every object under a directory once, a page at a time, the pages in any order.

    Raises:
        StorageError: no such bucket, no access, or storage cannot be reached.
    """
    async with AsyncStorage(workers) as objects:
        listing = _Listing(objects, path, workers)
        run = asyncio.create_task(listing.run())
        try:
            while (page := await listing.pages.get()) is not None:
                if isinstance(page, Exception):
                    raise page
                yield page
        finally:
            run.cancel()
            await asyncio.gather(run, return_exceptions=True)


async def delete_index(bucket: str, index_id: str) -> int:
    """Delete everything that an abandoned ingest uploaded; returns the number of deleted objects.

    What a retention policy or a hold keeps is left, with a warning.

    Raises:
        ValueError: the id is no index id.
        StorageError: no such bucket, no access, or storage cannot be reached.
    """
    checked_index_id(index_id)
    deleted = 0
    held: list[str] = []
    async with AsyncStorage(WORKERS) as objects:
        for directory in INDEX_DIRECTORIES:
            async for page in list_directory(GsPath(bucket, f"{directory}/{index_id}/")):
                held += await objects.delete(bucket, (listed.name for listed in page))
                deleted += len(page)
    if held:
        warn(
            f"{held[0]} {count(len(held), 'object')} of the earlier index in gs://{bucket} "
            "cannot be deleted. They are not used: delete them when the bucket allows it."
        )
    return deleted - len(held)


class _Listing:
    """The ranges that are still to be listed, and what was learned about the names."""

    def __init__(self, objects: AsyncStorage, path: GsPath, workers: int) -> None:
        self._objects, self._path = objects, path
        self._workers, self._busy = workers, 0
        self._characters: set[str] = set()
        self._full = self._empty = 0  # pages with and without new names
        self._ranges: asyncio.Queue[Range] = asyncio.Queue()
        # At the end None; what went wrong in a range takes the place of its pages.
        self.pages: asyncio.Queue[list[ListedObject] | Exception | None] = asyncio.Queue(workers)

    async def run(self) -> None:
        """List all ranges."""
        self._ranges.put_nowait(Range("", None))
        tasks = [asyncio.create_task(self._work()) for _ in range(self._workers)]
        try:
            await self._ranges.join()
            await self.pages.put(None)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _work(self) -> None:
        """List one range after the other."""
        while True:
            names = await self._ranges.get()
            self._busy += 1
            try:
                await self._list(names)
            except Exception as error:
                await self.pages.put(error)
            self._busy -= 1
            self._ranges.task_done()

    async def _list(self, names: Range) -> None:
        start, end = names
        last = ""
        token: str | None = None
        expired_after: str | None = None
        while True:
            try:
                page, following = await self._objects.list_page(
                    self._path, start=start, end=end, token=token
                )
            except StorageError as error:
                if error.status != EXPIRED or not token or expired_after == last:
                    raise
                start, token, expired_after = last, None, last
                continue
            # A repeated name is dropped, and what a server without ranges sends too much.
            found = [
                o
                for o in page
                if o.name > last and o.name >= names.start and (end is None or o.name < end)
            ]
            await self.pages.put(found)
            self._full, self._empty = self._full + bool(found), self._empty + (not found)
            if not following:
                return
            if following == token and not found:
                raise StorageError(f"Listing {self._path}: storage repeats a page without end.")
            token = following
            if not found:
                continue
            last = found[-1].name
            if points := self._divide(found, end):
                for bounds in zip(points, [*points[1:], end], strict=True):
                    self._ranges.put_nowait(Range(*bounds))
                start, end, token = last, points[0], None

    def _divide(self, page: Sequence[ListedObject], end: str | None) -> list[str]:
        """Names at which to divide what follows the page, one for each idle worker."""
        idle = self._workers - self._busy - self._ranges.qsize()
        if idle <= 0 or self._empty > self._full + EMPTY_PAGES * self._workers:
            return []  # no idle worker, or names that are hard to divide
        first, last, skip = page[0].name, page[-1].name, len(self._path.prefix)
        shared = len(os.path.commonprefix([first, last]))
        seen = "".join(o.name[skip : shared + TAIL] for o in page)
        if not encodable(seen + last):
            return []
        self._characters.update(seen)
        points = split_points(last, end, skip, shared, sorted(self._characters), idle)
        if len(points) < idle:
            characters = sorted(self._characters.union(GUESSED))
            points = split_points(last, end, skip, shared, characters, idle)
        return points


def split_points(
    last: str, end: str | None, skip: int, shared: int, characters: Sequence[str], count: int
) -> list[str]:
    """Up to `count` names after `last` and before `end`, in order, at which to divide that range.

    Each is a beginning of `last` with its final character replaced by a later one. A short
    beginning leads far away, a long one stays near: some divide the range well, whatever the
    names are like. The first `skip` characters are those of the directory. A name that differs
    from `last` only after the first `shared` characters is on the next page anyway.
    """
    points = [
        point
        for depth in range(min(shared, len(last) - 1), skip - 1, -1)
        for character in characters
        if character > last[depth]
        for point in [last[:depth] + character]
        if end is None or point < end
    ]
    count = min(count, len(points))
    return [points[(number + 1) * len(points) // (count + 1)] for number in range(count)]
