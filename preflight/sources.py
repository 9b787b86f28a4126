"""What --reuse names: indexes of datasets and work directories, checked before they are used."""

from __future__ import annotations

import asyncio
import re
import sqlite3
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import google_crc32c

from common.errors import DamagedState, Findings, IngestError
from common.names import DATASET_NAME, INDEX_ID
from common.precision import Precision, fastest_precision
from common.terminal import count, printable
from dataset import manifest
from dataset.arrays import ROW_BYTES, arrays_complete
from dataset.lists import thumbnail_name
from dataset.matches import Matched, Matches
from dataset.state import State
from dataset.work_directory import REUSE, STATE, WorkDirectory
from engine.reuse import Source
from forager.client import ask_for_dataset
from gcs import ListedObject
from preflight.request import Request
from storage.async_client import AsyncStorage

DIGEST = re.compile(r"[0-9a-f]{64}")
RANGE_BYTES = 8 << 20  # of a manifest in one request
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


class Computed(NamedTuple):
    """How the vectors of an ingest are computed."""

    resnet_weights: str  # SHA-256 of the file, in hexadecimal
    clip_weights: str
    backend: str
    precisions: frozenset[Precision]  # that are accepted of a source

    def difference(self, made: Mapping[str, str]) -> str | None:
        """What keeps vectors from being used that were made with these options, if anything."""
        if made["resnet_weights"] != self.resnet_weights:
            return "other ResNet-50 weights"
        if made["clip_weights"] != self.clip_weights:
            return "other CLIP weights"
        if (backend := made.get("backend", "")) != self.backend:
            return f"--backend {printable(backend)}"
        if (precision := made["precision"]) not in self.precisions:
            return f"--precision {precision}, which is less exact"
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
    work = request.work_dir.resolve()
    for value in request.mode.reuse:
        option = f"--reuse {printable(value)}"
        if value == request.target.name:
            findings.add(
                f"{option} names the dataset itself: name an earlier one, whose images are copied "
                "into this one."
            )
        elif not is_dataset(value) and Path(value).resolve() == work:
            findings.add(
                f"{option} is the work directory of this ingest: it continues there without "
                "--reuse."
            )
        elif not is_dataset(value) and not Path(value, STATE).is_file():
            findings.add(
                f"{option} is neither a dataset name nor the work directory of an ingest: there is "
                f"no {STATE} in it."
            )


async def find_sources(
    findings: Findings,
    request: Request,
    work: WorkDirectory,
    digests: tuple[str, str],
    precisions: frozenset[Precision],
) -> Reuse:
    """Check the sources and read their images. What is wrong with them becomes findings.

    `digests` are those of both weights files, `precisions` those that are accepted.
    """
    wanted = Computed(*digests, request.models.backend, precisions)
    matches = work.new_matches(REUSE)
    sources = []
    async with AsyncStorage(1) as objects:
        bucket = request.target.bucket
        reader = SourceReader(
            objects=objects, bucket=bucket, work=work.path, wanted=wanted, matches=matches
        )
        for value in request.mode.reuse:
            if is_dataset(value):
                reading = reader.dataset(value, request.target.server_url)
            else:
                reading = reader.directory(value)
            if source := await findings.gather(reading):
                sources.append(source)
    return Reuse(sources=sources, matches=matches)


@dataclass(frozen=True, kw_only=True)
class SourceReader:
    """Opens sources one after the other, and adds their images to the matches."""

    objects: AsyncStorage
    bucket: str  # of the indexes of datasets
    work: Path  # has space for a manifest
    wanted: Computed
    matches: Matches

    async def dataset(self, name: str, server_url: str) -> Source:
        """The index of a dataset on the server.

        Raises:
            IngestError: it cannot be used.
        """
        info = await ask_for_dataset(server_url, name)
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
            IngestError: it cannot be used.
        """
        path, object_name = self.work / "reuse.parquet", f"indexes/{index_id}/{manifest.NAME}"
        try:
            await self._download(name, object_name, path)
            metadata = await asyncio.to_thread(manifest.read_metadata, path)
            # The digests get the names that the options of a state have.
            made = {name.removesuffix("_sha256"): value for name, value in metadata.items()}
            rows = await asyncio.to_thread(manifest.row_count, path)
            if made.get("index_id") != index_id:
                raise ValueError(f"is that of index {printable(made.get('index_id', 'unknown'))}")
            if rows != images:
                raise ValueError(f"has {rows:,} rows, and the dataset {images:,} images")
            source = self._source(name, index_id, self.bucket, rows, made)
            for array, row_bytes in ROW_BYTES.items():
                source.arrays[array] = await self._array(index_id, array, rows * row_bytes)
            usable = source.difference is None
            await asyncio.to_thread(self.matches.add, manifest.read_images(path), usable=usable)
        except ValueError as error:
            raise IngestError(
                f"--reuse {name}: gs://{self.bucket}/{object_name} {error}. It cannot be used for "
                f"this dataset: restore it, or leave --reuse {name} out."
            ) from error
        finally:
            path.unlink(missing_ok=True)
        return source

    async def _download(self, name: str, object_name: str, path: Path) -> None:
        """Write an object to a file, checked against its crc32c."""
        listed = await self.objects.find(self.bucket, object_name)
        if listed is None:
            raise IngestError(
                f"--reuse {name}: there is no gs://{self.bucket}/{object_name}, and "
                f"{NEEDS_MANIFEST}."
            )
        checksum = 0
        with open(path, "wb") as file:
            for start in range(0, listed.size, RANGE_BYTES):
                size = min(RANGE_BYTES, listed.size - start)
                data = await self.objects.fetch_range(self.bucket, listed, start, size)
                checksum = google_crc32c.extend(checksum, data)
                file.write(data)
        if checksum != listed.crc32c:
            raise ValueError("is not what storage has (its crc32c differs)")

    async def _array(self, index_id: str, array: str, size: int) -> ListedObject:
        """The version of an array in the bucket, which has this size."""
        name = f"indexes/{index_id}/local/{array}/embeddings.npy"
        listed = await self.objects.find(self.bucket, name)
        if listed is None or listed.size != size:
            there = f"it has {listed.size:,} bytes" if listed else "it is not there"
            raise ValueError(
                f"has rows for {size:,} bytes of gs://{self.bucket}/{name}, and {there}"
            )
        return listed

    async def directory(self, value: str) -> Source:
        """The images that are done in a work directory, whether it was registered or not.

        Raises:
            IngestError: it cannot be used.
        """
        directory, name = Path(value), printable(value)
        option = f"--reuse {name}"
        advice = "Leave it out, or name the dataset, if it was registered."
        try:
            with closing(State.open_checked(directory / STATE)) as state:
                slots = state.slots(done=True)
                if state.is_abandoned or not state.counts().done:
                    raise IngestError(f"{option}: nothing in it is embedded. Leave it out.")
                is_ordering = state.ordered_arrays() is not None
                if is_ordering or not arrays_complete(directory, slots, exactly=False):
                    raise IngestError(
                        f"{option}: its arrays do not have its {count(slots, 'image')}. {advice}"
                    )
                options = {**state.options(), "precision": manifest.precision_of_rows(state) or ""}
                source = replace(
                    self._source(name, state.index_id, options.get("bucket", ""), slots, options),
                    directory=directory,
                )
                first = next(iter(state.found())).object
                # Can the thumbnails be read? One that is gone is made again.
                await self.objects.find(source.bucket, thumbnail_name(source.index_id, first))
                usable = source.difference is None
                await asyncio.to_thread(self.matches.add, state.found(), usable=usable)
                return source
        except DamagedState as error:
            reason = error.reason
        except (sqlite3.Error, OSError, ValueError) as error:
            reason = printable(str(error))
        raise IngestError(f"{option}: its state cannot be used ({reason}). {advice}")

    def _source(
        self, name: str, index_id: str, bucket: str, rows: int, options: Mapping[str, str]
    ) -> Source:
        """A source whose vectors were computed as these options say. Raises ValueError."""
        digests = [options.get(name, "") for name in ("resnet_weights", "clip_weights")]
        if not all(map(DIGEST.fullmatch, digests)):
            raise ValueError("has no digests of the weights")
        if options.get("precision") not in list(Precision):
            raise ValueError("names no precision")
        return Source(
            name=name,
            index_id=index_id,
            bucket=bucket,
            rows=rows,
            precision=Precision(options["precision"]),
            difference=self.wanted.difference(options),
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
    left = sum(matched.left.values())
    reasons = ", ".join(f"{number:,} {reason}" for reason, number in matched.left.items())
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
