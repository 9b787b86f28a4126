"""Copies of indexes on this machine: each is downloaded from the bucket once, then checked."""

import asyncio
import contextlib
import hashlib
import re
import shutil
import traceback
from dataclasses import dataclass, field
from pathlib import Path

from common.errors import StorageError
from common.terminal import printable
from dataset import manifest
from dataset.arrays import BYTES_PER_ROW, DIMENSIONS
from local_forager.indexes import index as files
from local_forager.indexes.index import Index
from local_forager.server.buckets import Buckets
from local_forager.types import PageError

SAFE_DIRECTORY = re.compile(r"[a-z0-9][-_a-z0-9]{0,99}")  # on disks that ignore case too
COMPLETE = "complete"  # the file that marks a directory as a whole, checked copy
RETRY_AFTER = 5.0  # seconds after which a failed copy is tried again


def index_directory(data_dir: Path, index_id: str) -> Path:
    """The directory of an index. Its id comes from elsewhere and is used as a path if safe."""
    if SAFE_DIRECTORY.fullmatch(index_id):
        return data_dir / "indexes" / index_id
    digest = hashlib.sha256(index_id.encode(errors="surrogatepass")).hexdigest()
    return data_dir / "indexes" / f"_{digest}"  # no safe id begins with an underscore


def thumbnail_path(data_dir: Path, index_id: str, identifier: str) -> Path:
    """The file of a thumbnail. It is named by a digest: names from the bucket are no safe paths."""
    text = f"{index_id}\0{identifier}".encode(errors="surrogatepass")
    digest = hashlib.sha256(text).hexdigest()
    return data_dir / "thumbnails" / digest[:2] / f"{digest}.jpg"


@dataclass
class IndexCopy:
    """One index that is being copied: index is None until the task has finished."""

    directory: Path
    task: asyncio.Task[None] = field(init=False)
    total: int = 0  # bytes; 0 until the number of images is known
    index: Index | None = None
    problem: str | None = None
    ended: float = 0.0  # time of the event loop

    def done(self) -> int:
        """Bytes on this machine so far."""
        return sum(path.stat().st_size for path in self.directory.glob("*.f32*") if path.exists())


class IndexCopies:
    """The indexes that the page shows. An index is copied when it is first asked for."""

    def __init__(self, buckets: Buckets, bucket: str, data_dir: Path) -> None:
        self._buckets, self._bucket = buckets, bucket
        self._data_dir = data_dir
        self._copies: dict[str, IndexCopy] = {}

    def get(self, index_id: str) -> IndexCopy:
        """The copy of an index in its present state; starts one if none is there or it failed."""
        loop = asyncio.get_running_loop()
        copy = self._copies.get(index_id)
        if (
            copy is None
            or (copy.problem and loop.time() - copy.ended > RETRY_AFTER)
            or (copy.index and not copy.index.is_whole())
        ):
            copy = self._copies[index_id] = IndexCopy(index_directory(self._data_dir, index_id))
            copy.task = loop.create_task(self._fetch(index_id, copy))
        return copy

    async def release(self, index_id: str) -> None:
        """Let go of an index that will be deleted: its copying ends, and it is not handed out."""
        copy = self._copies.pop(index_id, None)
        if copy is not None:
            copy.task.cancel()
            await asyncio.wait([copy.task])

    async def _fetch(self, index_id: str, copy: IndexCopy) -> None:
        try:
            copy.index = await self._open(index_id, copy)
        except PageError as error:
            copy.problem = error.message
        except StorageError as error:
            copy.problem = f"The index cannot be downloaded. {error}"
            if error.status == 404:
                where = f"gs://{self._bucket}/indexes/{printable(index_id)}/"
                advice = "did its ingest finish, with this --bucket?"
                copy.problem = f"There is no complete index in {where}: {advice}"
        except OSError as error:
            copy.problem = f"The index cannot be stored here ({error})."
        except Exception as error:
            traceback.print_exc()
            copy.problem = f"The index cannot be read ({type(error).__name__}: {error})."
        copy.ended = asyncio.get_running_loop().time()

    async def _open(self, index_id: str, copy: IndexCopy) -> Index:
        """The index, from the complete copy; without one, or if it was damaged, from the bucket."""
        complete = copy.directory / COMPLETE
        if complete.exists():
            with contextlib.suppress(PageError):
                return await asyncio.to_thread(files.read_copy, copy.directory)
        await self._download(index_id, copy)
        index = await asyncio.to_thread(files.read_copy, copy.directory)
        complete.touch()
        return index

    async def _download(self, index_id: str, copy: IndexCopy) -> None:
        await asyncio.to_thread(shutil.rmtree, copy.directory, ignore_errors=True)
        for name in files.LISTS:
            path = copy.directory / name
            await self._buckets.download(self._bucket, f"indexes/{index_id}/{name}", path)
        names, _ = await asyncio.to_thread(files.read_names, copy.directory)
        copy.total = len(names) * BYTES_PER_ROW
        for name in DIMENSIONS:
            array = f"indexes/{index_id}/local/{name}/embeddings.npy"
            path = files.vectors_path(copy.directory, name)
            await self._buckets.download(self._bucket, array, path)
        for kind, name in (("indexes", manifest.NAME), ("aux_labels", files.CLASSES)):
            path = copy.directory / name
            try:
                await self._buckets.download(self._bucket, f"{kind}/{index_id}/{name}", path)
            except StorageError as error:
                if error.status != 404:  # an index can do without these
                    raise
