"""What the page's answers are made from: index copies, pictures, labels, jobs and threads."""

import asyncio
from collections.abc import Awaitable, Callable, Hashable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from aiohttp import web

from common.errors import StorageError
from local_forager.analysis.health import PAIRS_ROWS, Health
from local_forager.analysis.jobs import BackgroundJob, Jobs, result_of
from local_forager.analysis.maps import saved_projection
from local_forager.analysis.picture_search import find_weights
from local_forager.analysis.text_search import TextTower, text_tower, text_vector, why_not
from local_forager.indexes.copies import IndexCopies
from local_forager.indexes.fields import ABOUT, Field
from local_forager.indexes.index import NO_LABELS, Index, LabelTable, table_of
from local_forager.indexes.own_columns import columns_path, columns_version, read_columns
from local_forager.page.pictures import Pictures
from local_forager.page.questions import Questions
from local_forager.server.api import BUCKETS, DATABASE, dataset_of
from local_forager.server.database import Dataset
from local_forager.types import PageError

Result = TypeVar("Result")


@dataclass(frozen=True, kw_only=True)
class PageOptions:
    """The options of the command that concern the page."""

    data_dir: Path
    bucket: str
    clip_weights: Path | None
    resnet_weights: Path | None
    exact_rows: int
    note: str  # above the images of each dataset


class PageState:
    """The parts that the page's handlers share; close() ends their threads."""

    def __init__(self, app: web.Application, options: PageOptions) -> None:
        buckets = self._buckets = app[BUCKETS]
        self.options, self.database = options, app[DATABASE]
        self.copies = IndexCopies(buckets, options.bucket, options.data_dir)
        self.pictures = Pictures(buckets, options.bucket, options.data_dir)
        self.jobs = Jobs()
        self.no_text_search = why_not(options.clip_weights)
        self._compute = ThreadPoolExecutor(2, thread_name_prefix="compute")
        self._models = Jobs()
        weights = find_weights(options.resnet_weights, options.clip_weights)
        self.questions = Questions(self._models, weights)
        self._tables: dict[int, tuple[Index | None, LabelTable]] = {}
        self._tasks: dict[Hashable, asyncio.Future[Any]] = {}

    async def compute(self, function: Callable[[], Result]) -> Result:
        """Call a function that computes for long in a thread."""
        return await asyncio.get_running_loop().run_in_executor(self._compute, function)

    async def result_of(self, job: BackgroundJob) -> Any:
        """What a job finds; StillWorking if that takes longer."""
        return await result_of(job.future, lambda: f"Comparing images: {self.jobs.progress():.0%}")

    def _once(self, key: Hashable, start: Callable[[], Awaitable[Any]]) -> asyncio.Future[Any]:
        """The task of this key; it is started if it is new, or has failed."""
        task = self._tasks.get(key)
        if task is None or (task.done() and task.exception()):
            task = self._tasks[key] = asyncio.ensure_future(start())
        return task

    async def table(self, dataset: Dataset, index: Index) -> LabelTable:
        """The current labels and columns; each are read again only when they have changed."""
        version = await self.database.label_version()
        path = columns_path(self.options.data_dir, dataset.id)
        of_index, table = self._tables.get(dataset.id, (None, NO_LABELS))
        if of_index is not index or table.version != version:
            labels = await self.database.labels(dataset.id)
            boxes = await self.database.boxes(dataset.id)
            read_labels = partial(table_of, labels, boxes, index, table.columns, version)
            table = await self.compute(read_labels)
        if of_index is not index or table.columns.version != columns_version(path):
            read = partial(read_columns, path, dataset.index_id, len(index.names))
            table = table._replace(columns=await self.compute(read))
        self._tables[dataset.id] = index, table
        return table

    async def object_sizes(self, dataset: Dataset, index: Index) -> Field:
        """The size of each image's object, from a listing made once; unknown if it is gone."""
        try:
            list_sizes = partial(self._list_sizes, dataset, index)
            await asyncio.shield(self._once(("sizes", index), list_sizes))
            return index.fields["bytes"]
        except StorageError as error:
            raise PageError(502, f"The file sizes are not known. {error}") from error

    async def _list_sizes(self, dataset: Dataset, index: Index) -> None:
        import pyarrow as pa

        sizes = await self._buckets.sizes(dataset.train_path)
        sizes |= await self._buckets.sizes(dataset.val_path)
        column = pa.array([sizes.get(name) for name in index.names], pa.int64())
        index.fields["bytes"] = replace(ABOUT["bytes"], column=column)

    def text_model(self) -> Future[TextTower]:
        """The loading of the model for text search, which begins when it is first asked for.

        Raises PageError where text search is not possible.
        """
        clip = self.options.clip_weights
        if clip is None or self.no_text_search:
            raise PageError(409, self.no_text_search or "")
        return self._models.start("text model", lambda _: text_tower(clip)).future

    async def text_vector(self, text: str) -> np.ndarray:
        """The text as a unit vector of CLIP; StillWorking while its model is being loaded."""
        tower = await result_of(self.text_model(), lambda: "Loading the model for text search")
        job = self._models.start(("text", text), lambda _: text_vector(tower, text))
        vector: np.ndarray = await result_of(job.future, lambda: "Reading the text")
        return vector

    def map(self, index: Index, by: str, method: str) -> asyncio.Future[bytes]:
        """The map of an index; its computation starts when it is first asked for."""
        path = index.directory / f"map-{by}-{method}.npz"
        project = partial(saved_projection, path, index.embeddings[by], index.failed, method)
        return self._once((index, by, method), partial(self.compute, project))

    def close(self) -> None:
        self.jobs.close()
        self._models.close()
        self._compute.shutdown(wait=False, cancel_futures=True)


PAGE: web.AppKey[PageState] = web.AppKey("page", PageState)


@dataclass(frozen=True, kw_only=True)
class View:
    """A dataset whose index has been copied, with its labels, and the state it is part of."""

    page: PageState
    dataset: Dataset
    index: Index
    table: LabelTable

    @property
    def fields(self) -> dict[str, Field]:
        """Those of the index, and one's own."""
        return {**self.index.fields, **self.table.columns.fields}

    def health(
        self, by: str, distance: float | None = None, threshold: float | None = None
    ) -> Health:
        return Health(
            jobs=self.page.jobs,
            index=self.index,
            by=by,
            table=self.table,
            exact_rows=min(self.page.options.exact_rows, PAIRS_ROWS),
            distance=distance,
            threshold=threshold,
        )


async def index_of(request: web.Request) -> tuple[Dataset, Index]:
    """The dataset in the address and its index; PageError 409 while the index is not here."""
    dataset = await dataset_of(request)
    copy = request.app[PAGE].copies.get(dataset.index_id)
    if copy.index is None:
        raise PageError(409, copy.problem or "The index is still being copied.")
    return dataset, copy.index


async def view_of(request: web.Request) -> View:
    """The dataset in the address with its index and labels."""
    page = request.app[PAGE]
    dataset, index = await index_of(request)
    return View(page=page, dataset=dataset, index=index, table=await page.table(dataset, index))
