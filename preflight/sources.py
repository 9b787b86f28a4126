"""What --reuse names: indexes of datasets and work directories, checked before they are used."""

from __future__ import annotations

import asyncio
import re
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import google_crc32c

from common.errors import DamagedState, Findings, IngestError
from common.names import DATASET_NAME, INDEX_ID
from common.precision import Precision, fastest_precision
from common.terminal import count, printable
from dataset import manifest
from dataset.arrays import DIMENSIONS, DTYPE, arrays_complete
from dataset.lists import thumbnail_name
from dataset.matches import Found, Matched, Matches
from dataset.state import State
from dataset.work_directory import REUSE, STATE, WorkDirectory
from engine.reuse import Source
from forager.client import Forager
from preflight.request import Request
from storage.async_client import AsyncStorage

DIGEST = re.compile(r"[0-9a-f]{64}")
RANGE_BYTES = 8 << 20  # of a manifest in one request
COLUMNS = ("object", "size", "crc32c", "imagenet_class", "width", "height", "vectors_crc32c")
NEEDS_MANIFEST = (
    "a manifest tells which images and weights its vectors belong to. Indexes of older versions "
    "and of the original scripts have none: ingest these images once with this version, and reuse "
    "that"
)


@dataclass(frozen=True, kw_only=True)
class Reuse:
    """The sources of an ingest, in the order in which they are searched, and all their images."""

    sources: list[Source]
    matches: Matches


@dataclass(frozen=True, kw_only=True)
class Computed:
    """How the vectors of an ingest are computed, and those of a source were."""

    resnet_weights: str  # SHA-256 of the file, in hexadecimal
    clip_weights: str
    backend: str
    precisions: frozenset[Precision]  # that are accepted; of a source, the least exact of its rows

    def differs_from(self, wanted: Computed) -> str | None:
        """What keeps these vectors from being used for an ingest, if anything."""
        if self.resnet_weights != wanted.resnet_weights:
            return "other ResNet-50 weights"
        if self.clip_weights != wanted.clip_weights:
            return "other CLIP weights"
        if self.backend != wanted.backend:
            return f"--backend {printable(self.backend)}"
        if not self.precisions <= wanted.precisions:
            return f"--precision {', '.join(self.precisions)}, which is less exact"
        return None


def accepted_precisions(asked: str, on_gpu: bool) -> frozenset[Precision]:
    """The precisions that are at least as exact as that of an ingest, for vectors to be copied."""
    own = fastest_precision(on_gpu) if asked == "auto" else Precision(asked)
    return frozenset({Precision.FLOAT32, own})


def is_dataset(value: str) -> bool:
    """Whether a value of --reuse names a dataset; else it is a directory, such as ./birds."""
    return DATASET_NAME.fullmatch(value) is not None


def check_reuse(findings: Findings, request: Request) -> None:
    """That no source is the ingest itself, and that directories are work directories."""
    work = request.work_dir.absolute()
    for value in request.mode.reuse:
        shown = printable(value)
        if value == request.target.name:
            findings.add(
                f"--reuse {shown} names the dataset itself: name an earlier one, whose rows are "
                "copied into this one."
            )
        elif not is_dataset(value) and Path(value).resolve() == work.resolve():
            findings.add(
                f"--reuse {shown} is the work directory of this ingest: it continues there "
                "without --reuse."
            )
        elif not is_dataset(value) and not Path(value, STATE).is_file():
            findings.add(
                f"--reuse {shown} is neither a dataset name nor the work directory of an ingest: "
                f"there is no {STATE} in it."
            )


async def find_sources(
    findings: Findings,
    request: Request,
    work: WorkDirectory,
    wanted: Computed,
) -> Reuse:
    """Check the sources and read their rows. What is wrong with them becomes findings."""
    matches = work.keep_open(Matches(work.path / REUSE))
    sources = []
    async with AsyncStorage(1) as objects:
        reader = SourceReader(objects, request.target.bucket, work.path, wanted, matches)
        for value in request.mode.reuse:
            read = (
                reader.dataset(value, request.target.server_url)
                if is_dataset(value)
                else reader.directory(value)
            )
            if source := await findings.gather(read):
                sources.append(source)
    return Reuse(sources=sources, matches=matches)


class SourceReader:
    """Opens sources one after the other, and adds their rows to the matches."""

    def __init__(
        self,
        objects: AsyncStorage,
        bucket: str,
        work: Path,
        wanted: Computed,
        matches: Matches,
    ) -> None:
        """`bucket` has the indexes of datasets; `work` has space for a manifest."""
        self._objects, self._bucket, self._work, self._matches = objects, bucket, work, matches
        self._wanted = wanted

    async def dataset(self, name: str, server_url: str) -> Source:
        """The index of a dataset on the server.

        Raises:
            IngestError, StorageError, ServerError: it cannot be used.
        """
        async with Forager(server_url) as forager:
            info = await forager.dataset(name)
        if info is None:
            hint = f" For the work directory, write ./{name}." if Path(name, STATE).exists() else ""
            raise IngestError(
                f"--reuse {name}: the server has no dataset of this name. Correct it, or leave it "
                f"out.{hint}"
            )
        if not INDEX_ID.fullmatch(info.index_id):
            raise IngestError(
                f"--reuse {name}: its index id {printable(info.index_id)!r} is not that of an "
                "index that was made here: leave it out."
            )
        return await self.index(name, info.index_id, info.num_train + info.num_val)

    async def index(self, name: str, index_id: str, images: int) -> Source:
        """The index of a dataset in the bucket, which has this number of images.

        Raises:
            IngestError, StorageError: it cannot be used.
        """
        path = self._work / "reuse.parquet"
        try:
            await self._download(name, f"indexes/{index_id}/{manifest.NAME}", path)
            source = await self._described(name, index_id, path)
            if source.rows != images:
                raise _foreign(name, f"has {source.rows:,} rows, the dataset {images:,} images")
            for array, dimension in DIMENSIONS.items():
                await self._find_array(source, array, source.rows * dimension * DTYPE.itemsize)
            await asyncio.to_thread(self._add, source, _images_of_manifest(path))
        except ValueError as error:
            reason = str(error).removeprefix(f"{path} ")
            raise IngestError(
                f"--reuse {name}: gs://{self._bucket}/indexes/{index_id}/{manifest.NAME} "
                f"{reason}: restore it, or leave --reuse {name} out."
            ) from error
        finally:
            path.unlink(missing_ok=True)
        return source

    async def _download(self, name: str, object_name: str, path: Path) -> None:
        """Write an object to a file, checked against its crc32c."""
        bucket = self._bucket
        listed = await self._objects.find(bucket, object_name)
        if listed is None:
            raise IngestError(
                f"--reuse {name}: there is no gs://{bucket}/{object_name}, and {NEEDS_MANIFEST}."
            )
        checksum = 0
        with open(path, "wb") as file:
            for start in range(0, listed.size, RANGE_BYTES):
                size = min(RANGE_BYTES, listed.size - start)
                data = await self._objects.fetch_range(bucket, listed, start, size)
                checksum = google_crc32c.extend(checksum, data)
                file.write(data)
        if checksum != listed.crc32c:
            raise ValueError(f"{path} is not what storage has (crc32c differs)")

    async def _described(self, name: str, index_id: str, path: Path) -> Source:
        """What the metadata of a manifest says. Raises ValueError or IngestError."""
        metadata = await asyncio.to_thread(manifest.read_metadata, path)
        if metadata.get("index_id") != index_id:
            raise _foreign(
                name, f"is that of index {printable(metadata.get('index_id', 'unknown'))}"
            )
        digests = [metadata.get(f"{model}_weights_sha256", "") for model in ("resnet", "clip")]
        if not all(map(DIGEST.fullmatch, digests)):
            raise _foreign(name, "has no digests of the weights")
        if metadata.get("precision") not in list(Precision):
            raise _foreign(name, "names no precision")
        precision = Precision(metadata["precision"])
        computed = Computed(
            resnet_weights=digests[0],
            clip_weights=digests[1],
            backend=metadata.get("backend", ""),
            precisions=frozenset({precision}),
        )
        rows = await asyncio.to_thread(manifest.row_count, path)
        return Source(
            name=name,
            index_id=index_id,
            bucket=self._bucket,
            rows=rows,
            precision=precision,
            difference=computed.differs_from(self._wanted),
        )

    async def _find_array(self, source: Source, array: str, size: int) -> None:
        """Note the version of an array in the bucket, which has this size."""
        name = f"indexes/{source.index_id}/local/{array}/embeddings.npy"
        listed = await self._objects.find(source.bucket, name)
        if listed is None or listed.size != size:
            what = f"it has {listed.size:,} bytes" if listed else "it is not there"
            raise _foreign(
                source.name,
                f"has {source.rows:,} rows, so gs://{source.bucket}/{name} must have {size:,} "
                f"bytes, and {what}",
            )
        source.arrays[array] = listed

    async def directory(self, value: str) -> Source:
        """The rows that are done in a work directory, whether it was registered or not.

        Raises:
            IngestError, StorageError: it cannot be used.
        """
        shown, directory = printable(value), Path(value)
        try:
            with closing(State.open_checked(directory / STATE)) as state:
                return await self._of_state(shown, directory, state)
        except DamagedState as error:
            raise IngestError(
                f"--reuse {shown}: its state cannot be used ({error.reason}). Leave it out, or "
                "name the dataset, if it was registered."
            ) from error
        except (sqlite3.Error, OSError, ValueError) as error:
            raise IngestError(
                f"--reuse {shown}: its state cannot be read ({printable(str(error))}). Leave it "
                "out, or name the dataset, if it was registered."
            ) from error

    async def _of_state(self, shown: str, directory: Path, state: State) -> Source:
        slots = state.slots()
        if state.is_abandoned or not state.counts().done:
            raise IngestError(f"--reuse {shown}: nothing in it is embedded. Leave it out.")
        if state.ordered_arrays() is not None or not arrays_complete(
            directory, slots, exactly=False
        ):
            raise IngestError(
                f"--reuse {shown}: its arrays do not have its {count(slots, 'image')}. Leave it "
                "out, or name the dataset, if it was registered."
            )
        precision = manifest.precision_of_rows(state) or Precision.BFLOAT16
        computed = Computed(
            resnet_weights=state.option("resnet_weights") or "",
            clip_weights=state.option("clip_weights") or "",
            backend=state.option("backend") or "",
            precisions=frozenset({precision}),
        )
        source = Source(
            name=shown,
            index_id=state.index_id,
            bucket=state.option("bucket") or "",
            rows=slots,
            precision=precision,
            difference=computed.differs_from(self._wanted),
            directory=directory,
        )
        first = next(iter(state.found())).object
        # Can the thumbnails be read? One that is gone is made again.
        await self._objects.find(source.bucket, thumbnail_name(source.index_id, first))
        await asyncio.to_thread(self._add, source, state.found())
        return source

    def _add(self, source: Source, images: Iterator[Found]) -> None:
        self._matches.add(images, usable=source.difference is None)


def _images_of_manifest(path: Path) -> Iterator[Found]:
    """The images of a manifest, in row order. Raises ValueError if it is damaged."""
    for row, (*values, failure) in enumerate(manifest.read_rows(path, *COLUMNS, "failure")):
        known = dict(zip(COLUMNS, values, strict=True))
        yield Found(row=row, failed=failure is not None, **known)


def _foreign(name: str, what: str) -> IngestError:
    return IngestError(
        f"--reuse {name}: its manifest {what}. It does not belong to this index: restore it, or "
        f"leave --reuse {name} out."
    )


def describe_reuse(reuse: Reuse, matched: Matched, *, would: bool) -> str:
    """How many rows are reused from each source, and why the others are not.

    `would` is for a dry run.
    """
    reused = sum(matched.reused.values())
    origins = ", ".join(
        f"{matched.reused[number]:,} from {source.name}"
        for number, source in enumerate(reuse.sources)
        if matched.reused.get(number)
    )
    others = {
        "new": matched.new,
        "changed": matched.changed,
        "failed there": matched.failed,
        "computed otherwise": matched.otherwise,
    }
    left = sum(others.values())
    reasons = ", ".join(f"{number:,} {reason}" for reason, number in others.items() if number)
    verb = "Would reuse" if would else "Reusing"
    lines = [f"{verb} {count(reused, 'image')}" + (f" ({origins})." if origins else ".")]
    if left:
        verb = "Would embed" if would else "Embedding"
        lines.append(f"{verb} {count(left, 'image')}: {reasons}.")
    lines += [
        f"Nothing is taken from {source.name}: it was computed with {source.difference}."
        for source in reuse.sources
        if source.difference
    ]
    return "\n".join(lines)
