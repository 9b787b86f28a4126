"""What an earlier run left in a work directory: finished, to be continued, or in the way."""

from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path

from common.addresses import shown_server
from common.errors import Findings, ServerError, StorageError, WeightsError
from common.names import MAX_NAME_LENGTH
from common.options import CLIP_WEIGHTS, DEFAULT_BUCKET, RESNET_WEIGHTS
from common.terminal import count, duration, printable, say, warn
from dataset.arrays import arrays_complete
from dataset.images import Changes
from dataset.state import State
from dataset.work_directory import WorkDirectory
from engine.loading import ModelLoader
from forager.client import ask_for_dataset
from preflight.checks import announce_listing, list_images
from preflight.describe import list_changes
from preflight.renames import write_renames
from preflight.request import Request, identity_of
from storage.listing import delete_index

MAX_LEFT_OUT = 0.5  # of the computed images; beyond it someone may be moving the directory
WORTH_SAYING_S = 1.0  # of computing


def finished(request: Request, state: State | None, loader: ModelLoader) -> str | None:
    """What a work directory holds, if this server has just what is requested.

    Blocks: it reads the files of the weights, where all else is the same.
    """
    if state is None or not state.is_registered or request.mode.restart:
        return None
    servers = state.servers()
    if servers and shown_server(request.target.server_url) not in servers:
        return None
    wanted = identity_of(request.target, request.models)
    if any(state.option(name) != value for name, value in wanted.items()):
        return None
    if not _same_weights(state, loader):
        return None
    counts = state.counts()
    return (
        f"{request.target.name} was registered with {counts.training:,} training and "
        f"{counts.validation:,} validation images"
        + (f", of which {counts.failed:,} failed" if counts.failed else "")
        + f" (index {state.index_id})"
    )


async def has_index_of(state: State, server_url: str) -> bool:
    """Whether a server has the dataset of an ingest, with its index."""
    found = await ask_for_dataset(server_url, state.recorded("dataset"))
    return found is not None and found.index_id == state.index_id


async def is_still_there(request: Request, state: State) -> bool:
    """Whether the server still has the dataset of a finished ingest, as far as it answers."""
    try:
        return await has_index_of(state, request.target.server_url)
    except ServerError:
        return True


def changed_since(request: Request, state: State, work: WorkDirectory) -> str:
    """What changed in the bucket since a finished ingest, with the command for it; "" if nothing.

    Blocks. A bucket that cannot be listed is no error: nothing is left to do.
    """
    paths, script = request.target.paths, request.mode.write_renames
    announce_listing(paths)
    try:
        listing = list_images(paths, work)
        if script:
            say(write_renames(script, paths))
    except StorageError as error:
        warn(f"Whether the bucket has changed since then is not known: {error.message}")
        return ""
    changes = state.changes(listing.path)
    if not changes:
        return ""
    return (
        f"\nThe bucket has changed since then:{list_changes(changes)}\nForager cannot change a "
        "dataset. This makes another one of today's images, and copies what is computed:\n"
        f"  {grown(request)}"
    )


def grown(request: Request) -> str:
    """The command that makes a new dataset of the images that a registered one has become."""
    target, models = request.target, request.models
    known = re.fullmatch(r"(.+)-(\d+)", target.name)
    base, number = (known[1], int(known[2]) + 1) if known else (target.name, 2)
    name = f"{base[: MAX_NAME_LENGTH - 1 - len(str(number))]}-{number}"
    words = [name, target.train_path, target.val_path, "--reuse", target.name]
    if request.mode.allow_empty_val:
        words.append("--allow_empty_val")
    for option, value, default in (
        ("--bucket", target.bucket, DEFAULT_BUCKET),
        ("--resnet_weights", str(models.resnet_weights), str(RESNET_WEIGHTS)),
        ("--clip_weights", models.clip_weights, CLIP_WEIGHTS),
        ("--backend", models.backend, "fused"),
    ):
        if value != default:
            words += [option, value]
    server = shown_server(target.server_url)
    return printable(f"SERVER_URL={server} python ingest.py {shlex.join(words)}", 2000)


def _same_weights(state: State, loader: ModelLoader) -> bool:
    """Whether the requested weights are those of a state, or cannot be read."""
    try:
        loader.find_clip()
        return loader.digests() == (state.option("resnet_weights"), state.option("clip_weights"))
    except (WeightsError, OSError):
        return True  # nothing is left to compute


def check_same(findings: Findings, earlier: State, identity: dict[str, str]) -> bool:
    """That the earlier run in this work directory was the same ingest, and its arrays are there.

    Returns whether it was the same.
    """
    where = earlier.directory
    ways_out = (
        f"start over with --restart, which deletes {what_restart_deletes(earlier)}; or keep both "
        "with another --work_dir"
    )
    differences = [name for name in identity if earlier.option(name) not in (None, identity[name])]
    for name in differences:
        before, now = printable(earlier.option(name) or ""), printable(identity[name])
        findings.add(
            f"{where} holds an ingest with another {name} ({before}, now {now}): {ways_out}."
        )
    counts, is_ordering = earlier.counts(), earlier.ordered_arrays() is not None
    slots = counts.images if is_ordering else earlier.slots(done=True)
    if counts.done and not arrays_complete(where, slots, exactly=False):
        findings.add(
            f"The arrays of {count(counts.done, 'finished image')} are missing or cut short in "
            f"{where}: {ways_out}."
        )
    return not differences


def check_left_out(findings: Findings, changes: Changes, accept_changes: bool) -> None:
    """That most of what is computed has a place in the newer listing, or that the user agrees."""
    if accept_changes or changes.left_out <= MAX_LEFT_OUT * changes.computed:
        return
    findings.add(
        f"{changes.left_out:,} of {count(changes.computed, 'computed image')} would be left out, "
        f"because their bytes are not in the bucket any more.{list_changes(changes)}\nNothing was "
        "changed. If someone is moving these directories, run the same command again when that is "
        "done; what is computed is then found under the new names. If the bucket is as it should "
        "be, add --accept_changes."
    )


def check_registered(findings: Findings, name: str, earlier: State, changes: Changes) -> None:
    """That the images of a registered index did not change: Forager cannot change a dataset."""
    if changes:
        findings.add(
            f"{name} is registered with the index in {earlier.directory}, and the images in the "
            f"bucket are others now.{list_changes(changes)}\nForager cannot change a dataset: "
            f"ingest today's images under another name with {reuse_option(earlier.directory)} and "
            "another --work_dir, which copies what is computed; or remove the dataset on the "
            f"server and use --restart, which deletes {what_restart_deletes(earlier)}."
        )


async def settle_taken_name(
    findings: Findings, earlier: State, work: WorkDirectory, registered: str, *, delete: bool
) -> None:
    """Another index has taken the name of an earlier run: say what that uploaded, or delete it.

    `registered` is the id of the index that the server has under the name. It may be that of the
    earlier run itself, if that ended before it recorded the answer: then nothing is deleted.
    """
    bucket, index_id = earlier.bucket, earlier.index_id
    if index_id == registered:
        findings.add(
            f"This dataset is that of the earlier run in {work.path}: the same command without "
            "--restart finishes it. To start over, remove the dataset on the server first."
        )
    elif delete:
        await delete_earlier(earlier, registered=False)
        work.forget_state()
        findings.add(f"The earlier run in {work.path} was deleted, here and in gs://{bucket}.")
    else:
        findings.add(
            f"What the earlier run in {work.path} uploaded is left in gs://{bucket}, under "
            f"indexes/{index_id}/, aux_labels/{index_id}/ and thumbnails/{index_id}/: the same "
            f"command with --restart deletes {what_restart_deletes(earlier)}. Another NAME with "
            f"{reuse_option(work.path)} and another --work_dir copies what is computed."
        )


async def delete_earlier(earlier: State, *, registered: bool) -> None:
    """Delete what an earlier run made, here and, unless it was registered, in the index bucket.

    It is marked first: were this interrupted, its images would count as done without thumbnails.
    """
    vectors = computed(earlier, earlier.counts().done)
    earlier.mark_abandoned()
    if not registered:
        bucket = earlier.bucket
        deleted = await delete_index(bucket, earlier.index_id)
        say(f"Deleted {vectors}, with {count(deleted, 'object')} in gs://{bucket}.")
    for name in ("index", "aux"):
        shutil.rmtree(earlier.directory / name, ignore_errors=True)


def computed(state: State, images: int) -> str:
    """`images` finished images of an ingest, and about how long computing their vectors took."""
    counts = state.counts()
    own = counts.done - counts.reused
    seconds = state.embedding_s * images / own if own > 0 else 0.0
    took = f" ({duration(seconds)} of computing)" if seconds >= WORTH_SAYING_S else ""
    return f"the vectors of {count(images, 'image')}{took}"


def what_restart_deletes(state: State) -> str:
    """What --restart would delete: what was computed, and what was uploaded for it."""
    done = state.counts().done
    vectors = f"{computed(state, done)} here" if done else "nothing that was computed"
    if state.is_registered:
        return f"{vectors}, and leaves the registered index in gs://{state.bucket}"
    return f"{vectors}, and what was uploaded for them" if done else vectors


def reuse_option(directory: Path) -> str:
    """--reuse for a work directory: a value without a slash would name a dataset."""
    path = printable(str(directory))
    return f"--reuse {path if '/' in path else f'./{path}'}"
