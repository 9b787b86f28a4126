"""What the page's answers are made from, and the reading of its questions."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from aiohttp import web

from local_forager.analysis.health_jobs import Jobs
from local_forager.analysis.index_copy import DIMENSIONS, Index, IndexCopies
from local_forager.analysis.label_table import LabelTable, table_of
from local_forager.analysis.projection import saved_projection
from local_forager.analysis.text_search import TextTower, why_not
from local_forager.page.images import Originals, Thumbnails
from local_forager.server.api import BUCKETS, DATABASE, dataset_of
from local_forager.server.database import Dataset

Result = TypeVar("Result")


class PageError(Exception):
    """An answer that is no data: a status and one sentence."""

    def __init__(self, status: int, sentence: str) -> None:
        super().__init__(sentence)
        self.status = status


@dataclass(frozen=True)
class View:
    """A dataset whose index is here."""

    dataset: Dataset
    index: Index
    table: LabelTable
    version: int


class Page:
    """What the page's answers are made from."""

    def __init__(
        self, app: web.Application, data_dir: Path, bucket: str, clip: Path | None
    ) -> None:
        buckets = app[BUCKETS]
        self.bucket = bucket
        self.database = app[DATABASE]
        self.copies = IndexCopies(buckets, bucket, data_dir)
        self.thumbnails = Thumbnails(buckets, bucket, data_dir)
        self.originals = Originals(buckets)
        self.jobs = Jobs()
        self.no_text_search = why_not(clip)
        self.text_tower = TextTower(clip) if clip and not self.no_text_search else None
        self._compute = ThreadPoolExecutor(2, thread_name_prefix="compute")
        self._text = ThreadPoolExecutor(1, thread_name_prefix="text")
        self._tables: dict[int, tuple[int, Index, LabelTable]] = {}
        self._maps: dict[tuple[str, str, str], asyncio.Future[bytes]] = {}

    async def compute(self, function: Callable[..., Result], *arguments: Any) -> Result:
        return await asyncio.get_running_loop().run_in_executor(self._compute, function, *arguments)

    async def table(self, dataset: Dataset, index: Index) -> tuple[LabelTable, int]:
        """The labels as they are now and the version of them; read again when they changed."""
        version = await self.database.label_version()
        kept = self._tables.get(dataset.id)
        if kept is None or kept[0] != version or kept[1] is not index:
            labels = await self.database.labels(dataset.id)
            kept = (version, index, await self.compute(table_of, labels, index))
            self._tables[dataset.id] = kept
        return kept[2], version

    async def text_vector(self, text: str) -> np.ndarray:
        if self.text_tower is None:
            raise PageError(409, self.no_text_search or "")
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._text, self.text_tower.vector, text)

    def map(self, index_id: str, index: Index, by: str, method: str) -> asyncio.Future[bytes]:
        """The map of an index, from the moment it is first asked for."""
        key = (index_id, by, method)
        if key not in self._maps or (self._maps[key].done() and self._maps[key].exception()):
            path = index.directory / f"map-{by}-{method}.f32"
            self._maps[key] = asyncio.get_running_loop().run_in_executor(
                self._compute, saved_projection, path, index.embeddings[by], index.failed, method
            )
        return self._maps[key]

    def close(self) -> None:
        self.jobs.close()
        for executor in (self._compute, self._text):
            executor.shutdown(wait=False, cancel_futures=True)


PAGE: web.AppKey[Page] = web.AppKey("page", Page)


async def index_of(request: web.Request) -> tuple[Dataset, Index]:
    """The dataset in the address and its index; PageError 409 while that is not here."""
    dataset = await dataset_of(request)
    copy = request.app[PAGE].copies.get(dataset.index_id)
    if copy.index is None:
        raise PageError(409, copy.problem or "The index is still being copied.")
    return dataset, copy.index


async def view_of(request: web.Request) -> View:
    """The dataset in the address with its index and labels."""
    dataset, index = await index_of(request)
    table, version = await request.app[PAGE].table(dataset, index)
    return View(dataset, index, table, version)


def number(request: web.Request, name: str, default: int, low: int, high: int) -> int:
    """A whole number from the query, between low and high."""
    text = request.query.get(name, str(default))
    if not text.isascii() or not text.isdigit() or not low <= int(text[:12]) <= high:
        raise PageError(400, f"{name} is not a number from {low:,} to {high:,}.")
    return int(text[:12])


def choice(request: web.Request, name: str, allowed: tuple[str, ...]) -> str:
    """One of the allowed words from the query; the first where there is none."""
    word = request.query.get(name, allowed[0])
    if word not in allowed:
        raise PageError(400, f"{name} is none of {', '.join(allowed)}.")
    return word


def embedding_choice(request: web.Request) -> str:
    return choice(request, "by", ("clip", *(name for name in DIMENSIONS if name != "clip")))


def row_of(request: web.Request, index: Index) -> int:
    row = int(request.match_info["row"])
    if row >= len(index.names):
        raise PageError(404, f"There is no row {row:,}: the index has {len(index.names):,} images.")
    return row


def answer_bytes(data: bytes) -> web.Response:
    return web.Response(body=data, headers={"Cache-Control": "no-store"})
