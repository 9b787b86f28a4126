"""From the command line to rows that wait to be embedded: check, say the plan, begin or resume."""

from __future__ import annotations

import asyncio
import contextlib
import shlex
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import click

import gcs
from common.findings import Findings
from common.names import IMAGE_SUFFIXES, GsPath, dataset_name_error
from common.options import Request
from common.terminal import printable, size, table
from dataset import arrays
from dataset.rows import TRAIN, VAL, State
from dataset.work_directory import WorkDirectory
from engine.loading import start_loading
from preflight import checks
from preflight.checks import SHOWN, SPLITS
from storage.bucket import Bucket
from weights.reader import WeightsReader

if TYPE_CHECKING:
    from embeddings import Embedder

THUMBNAIL_BYTES = 8_000  # of a usual one
LISTED_BYTES = 200  # of a usual image in the lists
WAYS_OUT = (
    "start over with --restart, which deletes what the earlier run uploaded, or keep both with "
    "another --work_dir"
)


class Models(NamedTuple):
    """What was found of the models, and the embedder that may be on its way."""

    resnet_digest: str  # SHA-256 of the file, in hexadecimal
    clip_digest: str
    clip_directory: Path
    embedder: asyncio.Future[Embedder] | None


class Plan(NamedTuple):
    """What the checks found: everything the run needs to know."""

    train: GsPath
    val: GsPath
    listing: State
    options: dict[str, str]  # what the numbers and the index depend on
    clip_weights: Path
    embedder: asyncio.Future[Embedder] | None  # on its way, if images are to be embedded here


@contextlib.contextmanager
def work_directory(request: Request) -> Iterator[WorkDirectory]:
    """The locked work directory; a run that begins nothing leaves nothing behind."""
    with contextlib.ExitStack() as stack:
        path = request.work_dir or Path(request.name)
        if dataset_name_error(request.name) and not request.work_dir:
            path = Path(stack.enter_context(tempfile.TemporaryDirectory()), "work")
        work = stack.enter_context(WorkDirectory(path))
        try:
            yield work
        finally:
            work.remove_if_unused()


async def check(request: Request, work: WorkDirectory) -> Plan:
    """Every check at once.

    Raises:
        click.ClickException: all that is in the way, in one message.
    """
    findings = Findings()
    if error := dataset_name_error(request.name):
        findings.add(error)
    paths = checks.check_paths(findings, request.train_path, request.val_path)
    earlier = work.state()
    if earlier and _starts_over(request, earlier):
        earlier.close()
        earlier = None
    ours = earlier.index_id if earlier and not earlier.option("registered") else None
    with WeightsReader(request.resnet_weights, request.clip_weights) as reader:
        # Before the others: importing torch keeps the interpreter busy, and nothing takes longer.
        # The others' imports then go on beside the loading of the models, which needs none.
        check_machine = _check_cluster if request.engine == "ray" else _check_device
        device = await findings.gather_in_thread(check_machine, request)
        listing, models, *_ = await asyncio.gather(
            _list_and_check(request, findings, work, paths),
            _check_and_load(request, findings, earlier, reader, device),
            findings.gather_in_thread(checks.check_write_access, request.bucket),
            checks.check_server(findings, request.server_url, request.name, ours),
        )
    if paths and listing and models:
        options = {
            "dataset": request.name,
            "train_path": str(paths[0]),
            "val_path": str(paths[1]),
            "bucket": request.bucket,
            "resnet_weights": models.resnet_digest,
            "clip_weights": models.clip_digest,
            "backend": request.backend,
        }
        if request.precision != "auto":
            options["precision"] = request.precision
        if earlier:
            _check_same(findings, earlier, options, listing)
            earlier.close()
        findings.raise_if_any()
        return Plan(*paths, listing, options, models.clip_directory, models.embedder)
    findings.raise_if_any()
    raise AssertionError("a check failed without a finding")


async def _check_and_load(
    request: Request,
    findings: Findings,
    earlier: State | None,
    reader: WeightsReader,
    device: str | None,
) -> Models | None:
    """Take what was found of the weights, and begin to load the models where they are needed here.

    Returns None after a finding.
    """
    clip = await findings.gather_in_thread(reader.clip_directory)
    arrays = await findings.gather_in_thread(reader.resnet_arrays)
    if device is None or arrays is None or clip is None:
        return None
    here = request.engine == "local" and not request.dry_run
    embedder = None
    if here and (earlier is None or earlier.has_pending()):
        precision = precision_of(request, earlier)
        embedder = start_loading(request, precision, clip, arrays)
    del arrays  # the loader's now: a tenth of a gigabyte
    digests = await asyncio.to_thread(reader.digests)
    return Models(*digests, clip, embedder)


def precision_of(request: Request, state: State | None) -> str:
    """The precision to load the models in: what auto came to when an ingest began holds for it."""
    begun_in = state.option("precision") if state else None
    return begun_in if begun_in and request.precision == "auto" else request.precision


def _check_cluster(request: Request) -> str:
    """Where Ray is to run.

    Raises:
        ClusterError: Ray is not installed, or nothing answers there.
    """
    from engine.ray import cluster as ray_cluster

    ray_cluster.check(request.ray_address)
    return request.ray_address or "this machine"


def _check_device(request: Request) -> str:
    """The device, if this machine has it and it computes in the precision.

    Raises:
        DeviceError: it has not, or does not.
    """
    from models import devices

    device = devices.choose_device(request.device)
    devices.check_precision(request.precision, device)
    return str(device)


async def _list_and_check(
    request: Request, findings: Findings, work: WorkDirectory, paths: tuple[GsPath, GsPath] | None
) -> State | None:
    if paths is None:
        return None
    listing: State | None = await findings.gather_in_thread(
        checks.list_images, paths, work.path / "listing.sqlite"
    )
    if listing is None:
        return None
    work.keep(listing)
    checks.check_images(findings, listing, paths, request.allow_empty_val)
    checks.check_disk(findings, listing, work.path)
    await checks.check_public(findings, listing, paths[0].bucket)
    counts = [listing.counts(split) for split in (TRAIN, VAL)]
    click.echo(
        f"Listed {counts[0].images:,} training and {counts[1].images:,} validation images "
        f"({size(counts[0].size + counts[1].size)}).",
        err=True,
    )
    for line in describe_skipped(listing, paths[0].bucket):
        click.echo(line, err=True)
    return listing


def describe_skipped(listing: State, bucket: str) -> Iterator[str]:
    """A line for each kind of object that is no image here, with what would make it one."""
    for kind, objects, example in listing.skipped():
        line = f"Skipped {objects:,} {printable(kind)} (such as {printable(example)})"
        renamed = kind.lower()
        if renamed in IMAGE_SUFFIXES:
            stem = example.removesuffix(kind)
            # Quoted: a name may hold a whole shell command.
            old, new = (
                shlex.quote(f"gs://{bucket}/{printable(name)}")
                for name in (example, stem + renamed)
            )
            line += (
                ": the server takes lower-case names only; rename them, such as "
                f"`gcloud storage mv {old} {new}`"
            )
        elif renamed in (".jpe", ".jfif", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".heic"):
            line += ": the server takes .jpg, .jpeg and .png only; convert them to join"
        yield line + "."


def _check_same(
    findings: Findings, earlier: State, options: dict[str, str], listing: State
) -> None:
    """That the earlier run in this work directory was the same ingest of the same objects."""
    where = earlier.path.parent
    for name, now in options.items():
        before = earlier.option(name)
        if before not in (None, now):
            findings.add(
                f"{where} holds an ingest with another {name} ({printable(str(before))}, now "
                f"{printable(now)}): {WAYS_OUT}."
            )
    for what, objects in earlier.changes(listing.path).items():
        examples = "".join(f"\n      {printable(name)}" for name in objects[:SHOWN])
        findings.add(
            f"{len(objects):,} objects {what} in the bucket since the ingest in {where} began: "
            f"{WAYS_OUT}.{examples}"
        )
    counts = earlier.counts()
    if counts.done and not arrays.arrays_complete(where, counts.images):
        findings.add(
            f"The arrays of {counts.done:,} images that are done are missing or cut short in "
            f"{where}: {WAYS_OUT}."
        )


def describe(request: Request, plan: Plan) -> str:
    """The plan, for --dry_run."""
    state = plan.listing
    total = state.counts()
    array_bytes = total.images * arrays.BYTES_A_ROW
    upload = array_bytes + total.images * (THUMBNAIL_BYTES + LISTED_BYTES)
    rows = [
        (SPLITS[split], f"{counts.images:,}", size(counts.size))
        for split in (TRAIN, VAL)
        for counts in [state.counts(split)]
    ]
    skipped = [(f"skipped: {printable(kind)}", f"{n:,}", "-") for kind, n, _ in state.skipped()]
    return "\n".join(
        (
            table(("objects", "number", "size"), [*rows, *skipped]),
            f"Would read {size(total.size)} from gs://{plan.train.bucket}, keep "
            f"{size(array_bytes)} on this disk, and upload about {size(upload)} to gs://{request.bucket}.",
            "Every check passed; this was a dry run, and nothing was changed.",
        )
    )


def _starts_over(request: Request, earlier: State) -> bool:
    """Whether the earlier run is to be forgotten; a --restart that was interrupted goes on."""
    return request.restart or earlier.option("abandoned") is not None


async def begin(request: Request, work: WorkDirectory, plan: Plan) -> State:
    """The state to go on with: the earlier run's, or a new one from the listing."""
    earlier = work.state()
    if earlier and not _starts_over(request, earlier):
        replaced = earlier.take_replaced(plan.listing.path)
        plan.listing.close()
        plan.listing.path.unlink()
        if not request.skip_bad_images:
            earlier.retry_failed()
        counts = earlier.counts()
        click.echo(
            f"Continuing in {work.path}: {counts.done:,} of {counts.images:,} images are done"
            + (f", {replaced:,} that failed were replaced." if replaced else "."),
            err=True,
        )
        return earlier
    if earlier:
        await _abandon(earlier, request.bucket)
    plan.listing.set_options({**plan.options, "index_id": str(uuid.uuid4())})
    return work.keep(plan.listing.move(work.path / "state.sqlite"))


async def _abandon(earlier: State, bucket: str) -> None:
    """Delete what an earlier run made, here and, unless it was registered, in the index bucket.

    It is marked first: were this interrupted, its rows would count as done without thumbnails.
    """
    earlier.set_options({"abandoned": "yes"})
    if not earlier.option("registered"):
        client = await asyncio.to_thread(gcs.make_client)
        with Bucket(client, earlier.option("bucket") or bucket) as calls:
            deleted = await calls.delete_index(earlier.index_id)
        click.echo(f"Deleted {deleted:,} objects of the earlier run.", err=True)
    earlier.close()
    for name in ("index", "aux"):
        shutil.rmtree(earlier.directory / name, ignore_errors=True)
