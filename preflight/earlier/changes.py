"""What changed in the bucket since an ingest listed it, and the ways to go on, with numbers."""

from __future__ import annotations

from pathlib import Path

from common.errors import Findings, IngestError
from common.terminal import count, duration, printable, warn
from dataset.state.changes import Changes, Comparison, Numbers
from dataset.state.rows import State
from preflight.checks import SHOWN, check_disk
from preflight.request import Request

WORTH_SAYING_S = 1.0  # of computing


def computed(state: State, rows: int) -> str:
    """`rows` finished images of an ingest, and about how long computing their vectors took."""
    own = state.counts().done - state.reused()
    seconds = state.embedding_s * rows / own if own > 0 else 0.0
    took = f" ({duration(seconds)} of computing)" if seconds >= WORTH_SAYING_S else ""
    return f"the vectors of {count(rows, 'image')}{took}"


def what_restart_deletes(state: State) -> str:
    """What --restart would delete: what was computed, and what was uploaded for it."""
    done = state.counts().done
    vectors = f"{computed(state, done)} here" if done else "nothing that was computed"
    if state.is_registered:
        return f"{vectors}, and leaves the registered index in gs://{state.option('bucket')}"
    return f"{vectors}, and what was uploaded for them" if done else vectors


def reuse_option(directory: Path) -> str:
    """--reuse for a work directory: a value without a slash would name a dataset."""
    path = printable(str(directory))
    return f"--reuse {path if '/' in path else f'./{path}'}"


def check_changes(
    findings: Findings, request: Request, earlier: State, listing: State, *, on_server: bool
) -> bool:
    """That the bucket still has what an interrupted ingest listed, or that the user chose a way on.

    `on_server` says that the server has the dataset with this index already. Returns whether to
    take the new listing. Blocks: it compares all rows.
    """
    with Comparison(earlier.path, listing.path) as compared:
        changes = compared.changes(as_listed=request.as_listed, done_only=not request.as_listed)
        if not changes:
            return False
        if on_server or earlier.is_registered:
            findings.add(
                f"{request.name} is registered with the index in {earlier.directory}, and the "
                f"images in the bucket are others now.{shown(changes)}\nForager cannot change a "
                "dataset: remove it on the server and use --restart, which deletes "
                f"{what_restart_deletes(earlier)}; or ingest today's images under another name "
                f"with {reuse_option(earlier.directory)} and another --work_dir, which copies what "
                "is computed."
            )
        elif request.relist:
            check_disk(findings, listing, earlier.directory, beside=True)
            return True
        elif not request.as_listed:
            findings.add(
                "The images in the bucket are not those that the ingest in "
                f"{earlier.directory} listed.{shown(changes)}\n"
                + ways_on(earlier, listing, changes, compared.numbers())
            )
        elif changes.appeared:
            warn(
                f"{count(len(changes.appeared), 'image')} appeared since the images were listed. "
                "Remove them before the registration: the server would list them."
            )
    return False


def check_registrable(state: State, listing: State, *, as_listed: bool) -> None:
    """That the server, which lists the bucket itself, would find the images of the index.

    Blocks: it compares all rows.

    Raises:
        IngestError: what changed, and the ways to go on.
    """
    with Comparison(state.path, listing.path) as compared:
        changes = compared.changes(as_listed=as_listed)
        if not changes:
            return
        what = f"nothing was registered.{shown(changes)}\n"
        if as_listed and changes.appeared:
            raise IngestError(
                f"The server lists the bucket itself: it would show "
                f"{count(len(changes.appeared), 'image')} that the index does not have, so {what}"
                "Move what appeared out of these directories and run the same command again, or "
                f"write --relist instead of --as_listed: {_relisting(state, listing, compared)}."
            )
        what = f"The images in the bucket changed since they were listed; {what}"
        if as_listed or not compared.changes(done_only=True):
            raise IngestError(
                f"{what}Run the same command again: what is computed stays, and it "
                + ("makes failed rows of these." if as_listed else "embeds these.")
            )
        raise IngestError(what + ways_on(state, listing, changes, compared.numbers()))


def changed_lines(state: State, listing: State, *, as_listed: bool) -> str:
    """What differs between the images of an ingest and a newer listing, in lines; "" if nothing."""
    with Comparison(state.path, listing.path) as compared:
        return shown(compared.changes(as_listed=as_listed))


def shown(changes: Changes) -> str:
    """What changed, a line for each kind, with some of the names."""
    return "".join(
        f"\n  {len(objects):,} {what}: {', '.join(map(printable, objects[:SHOWN]))}"
        + (", ..." if len(objects) > SHOWN else "")
        for what, objects in changes._asdict().items()
        if objects
    )


def ways_on(state: State, listing: State, changes: Changes, numbers: Numbers) -> str:
    """The ways to go on with an ingest whose images changed, with what each keeps and costs."""
    now = listing.counts().images
    option = "--as_listed --skip_bad_images" if numbers.unlisted else "--as_listed"
    return (
        "Undo these changes and run the same command again, or add one of these:\n"
        f"  --relist: take today's list of {count(now, 'image')}; "
        f"{_keeping(state, now, numbers)}.\n"
        f"  {option}: {_finishing(state, changes, numbers)}.\n"
        f"  --restart: compute all {count(now, 'image')} of today's list; this deletes "
        f"{what_restart_deletes(state)}.\n"
        "Another --work_dir begins anew and leaves this one as it is."
    )


def describe_way(state: State, listing: State, *, as_listed: bool) -> str:
    """What --relist or --as_listed would keep and what it would drop, for --dry_run."""
    with Comparison(state.path, listing.path) as compared:
        if as_listed:
            changes = compared.changes(as_listed=True)
            return f"Would {_finishing(state, changes, compared.numbers())}."
        return f"Would take today's list: {_relisting(state, listing, compared)}."


def _finishing(state: State, changes: Changes, numbers: Numbers) -> str:
    what = f"finish the list of {count(state.counts().images, 'image')}"
    if numbers.unlisted:
        what += f"; {numbers.unlisted:,} that vanished or changed become failed rows"
        what += _deleting(state, numbers.unlisted_done)
    what += f"; {numbers.left:,} are still to compute"
    if changes.appeared:
        what += (
            f". The server lists the bucket itself: move the {len(changes.appeared):,} that "
            "appeared out of these directories before the registration"
        )
    return what


def _relisting(state: State, listing: State, compared: Comparison) -> str:
    return _keeping(state, listing.counts().images, compared.numbers())


def _keeping(state: State, images: int, numbers: Numbers) -> str:
    return (
        f"{numbers.kept:,} keep their vectors and thumbnails, {images - numbers.kept:,} are "
        f"computed{_deleting(state, numbers.dropped)}"
    )


def _deleting(state: State, rows: int) -> str:
    return f", and {computed(state, rows)} are deleted" if rows else ""
