"""What changed in the bucket since an ingest listed it, and when the user must decide."""

from __future__ import annotations

from pathlib import Path

from common.errors import Findings
from common.terminal import count, duration, printable
from dataset.state import Changes, State

MAX_LEFT_OUT = 0.5  # of the computed images; beyond it someone may be moving the directory
WORTH_SAYING_S = 1.0  # of computing
VERBS = {
    "appeared": ("appeared", "appeared"),
    "vanished": ("vanished", "vanished"),
    "renamed": ("was renamed", "were renamed"),
    "replaced": ("was replaced", "were replaced"),
}


def describe_changes(changes: Changes, since: str) -> str:
    """One line, such as "Since the last run: 3 images appeared, 2 were renamed. ..."."""
    parts: list[str] = []
    for kind, (number, _) in changes.kinds().items():
        if number:
            images = count(number, "image") if not parts else f"{number:,}"
            parts.append(f"{images} {VERBS[kind][number > 1]}")
    lost = changes.lost
    kept = (
        f"{count(lost, 'computed image')} {'is' if lost == 1 else 'are'} computed again."
        if lost
        else "Nothing that is computed is lost."
    )
    return f"Since {since}: {', '.join(parts)}. {kept}"


def list_changes(changes: Changes) -> str:
    """A line for each kind of change, with some of the names."""
    return "".join(
        f"\n  {number:,} {kind}: {', '.join(map(printable, names))}"
        + (", ..." if number > len(names) else "")
        for kind, (number, names) in changes.kinds().items()
        if number
    )


def check_left_out(findings: Findings, changes: Changes, accept_changes: bool) -> None:
    """That most of what is computed has a place in the newer listing, or that the user agrees."""
    if accept_changes or changes.left_out <= MAX_LEFT_OUT * changes.computed:
        return
    findings.add(
        f"{changes.left_out:,} of {count(changes.computed, 'computed image')} would be left out, "
        f"because the bucket does not have them any more.{list_changes(changes)}\nNothing was "
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


def computed(state: State, images: int) -> str:
    """`images` finished images of an ingest, and about how long computing their vectors took."""
    progress = state.progress()
    own = progress.done - progress.reused
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
