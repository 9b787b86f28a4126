"""One matrix: a run stops at some moment, the bucket may change, and the same command runs again.

What is there at the end is what a fresh ingest of the images in the bucket makes, and no image is
fetched whose bytes were embedded before the stop.
"""

import itertools
import signal
from dataclasses import dataclass

import pytest

from tests.harness import TRAIN, VAL, World, ended, pictures, wait_for
from tests.stand_in import Rule, StandIn

DOWNLOAD, THUMBNAIL = r"GET /storage/.*alt=media", r"POST /upload/.*name=thumbnails"
FILE, CREATE = r"POST /upload/.*uploadType=multipart", r"POST /api/create_dataset_v2"
LIST_TRAIN, LIST_VAL = (rf"GET /storage/.*prefix={split}" for split in ("train", "val"))
SMALL_STEPS = {"FAKE_WINDOW": "4", "FAKE_CHECKPOINT_S": "0.05"}
INTERRUPTED = "Interrupted: the same command continues where this one stopped.\n"


@dataclass(frozen=True)
class Stop:
    """What happens at a request after `after` others of its kind, or at a call within the run."""

    pattern: str = ""
    what: str = "kill-before"
    after: int = 0
    call: str = ""  # "rename 1": see FAKE_KILL of fake_ingest.py
    signal: int | None = None  # sent when a request is held

    @property
    def exit_code(self):
        if self.signal:
            return 130
        return -signal.SIGKILL if self.call or self.what.startswith("kill") else 1


STOPS = {
    "killed before the second listing": Stop(LIST_VAL),
    "killed before a download": Stop(DOWNLOAD, after=12),
    "killed after the first thumbnail": Stop(THUMBNAIL, "kill-after"),
    "killed after the last thumbnail": Stop(THUMBNAIL, "kill-after", TRAIN + VAL - 1),
    "killed after the first file": Stop(FILE, "kill-after"),
    "killed before the last file": Stop(FILE, after=6),
    "killed before the registration": Stop(CREATE),
    "killed after the registration": Stop(CREATE, "kill-after"),
    "killed at the first commit": Stop(call="commit 1"),
    "killed at the second commit": Stop(call="commit 2"),
    "killed at the third commit": Stop(call="commit 3"),
    "killed at the fifth commit": Stop(call="commit 5"),
    "killed when the first file gets its name": Stop(call="replace 1"),
    "killed when the second file gets its name": Stop(call="replace 2"),
    "killed when the fourth file gets its name": Stop(call="replace 4"),
    "Ctrl-C during the listing": Stop(LIST_TRAIN, "hold", signal=signal.SIGINT),
    "Ctrl-C during the downloads": Stop(DOWNLOAD, "hold", 12, signal=signal.SIGINT),
    "SIGTERM during the downloads": Stop(DOWNLOAD, "hold", 12, signal=signal.SIGTERM),
    "Ctrl-C during the upload": Stop(FILE, "hold", 1, signal=signal.SIGINT),
    "server lost at the end": Stop(CREATE, "503"),
    "access lost": Stop(DOWNLOAD, "403", 10),
    "network lost": Stop(" /", "reset", 30),
}


def exchange(made):
    one, other, between = "train/t0000.jpg", "train/t0001.jpg", "train/between.jpg"
    made.rename(one, between)
    made.rename(other, one)
    made.rename(between, other)


def everything(made):
    for name, change in CHANGES.items():
        if name not in ("everything", "two are exchanged"):
            change(made)


# Of the first images, which are done by then: each change of its own.
CHANGES = {
    "one appears": lambda made: made.put("train/new.jpg", "val/new-too.jpg"),
    "one vanishes": lambda made: made.delete("train/t0002.jpg"),
    "one is replaced": lambda made: made.put("train/t0003.jpg"),
    "one is renamed": lambda made: made.rename("train/t0004.jpg", "train/renamed.jpg"),
    "one is moved": lambda made: made.rename("train/t0005.jpg", "train/deep/t0005.jpg"),
    "two are exchanged": exchange,
    "everything": everything,
}
WITH_CHANGES = (
    "killed before a download",
    "killed before the last file",
    "Ctrl-C during the downloads",
    "access lost",
)
# Left to `make soak`: others stop between the same effects.
SLOWLY = (
    "killed after the first file",
    "killed at the third commit",
    "killed when the second file gets its name",
    "Ctrl-C during the upload",
    "SIGTERM during the downloads",
)
ROWS = [
    *((stop, None) for stop in STOPS),
    *zip(itertools.cycle(WITH_CHANGES), CHANGES),
    *((stop, "everything") for stop in WITH_CHANGES[:2]),
]


def stopped(made, how):
    """Run the command in a process of its own until it stops in this way."""
    rules = [Rule(how.pattern, how.what, after=how.after)] if how.pattern else []
    settings = {"FAKE_KILL": how.call} if how.call else {}
    with StandIn(made.storage.url, *rules) as storage, StandIn(made.server, *rules) as server:
        process = made.start(storage=storage, server=server, **SMALL_STEPS, **settings)
        storage.victim = server.victim = process
        if how.signal:
            wait_for(lambda: storage.counts["hold"] or process.poll() is not None)
            process.send_signal(how.signal)
        done = ended(process)
    assert done.exit_code == how.exit_code, done.stderr
    if how.signal:
        assert done.stderr.count("Interrupted") == 1 and done.stderr.endswith(INTERRUPTED)
    elif how.exit_code == 1:
        assert "Error: " in done.stderr


@pytest.fixture(scope="module")
def ingested(undisturbed, tmp_path_factory):
    """Fresh ingests of what is in the bucket after each change, made when they are needed."""
    made = {None: undisturbed}

    def ingest(change):
        if change not in made:
            directory = tmp_path_factory.mktemp("changed")
            made[change] = World(undisturbed.storage.url, undisturbed.server, directory)
            made[change].put(**pictures(TRAIN, VAL))
            CHANGES[change](made[change])
            made[change].ingest(storage=undisturbed.storage.url)
        return made[change]

    return ingest


@pytest.mark.parametrize(
    ("stop", "change"),
    [row if row[0] not in SLOWLY else pytest.param(*row, marks=pytest.mark.soak) for row in ROWS],
)
def test_the_same_command_ends_with_the_index_of_a_fresh_ingest(
    fresh, make_world, ingested, stop, change
):
    made = make_world(pictures(TRAIN, VAL)) if change else fresh
    stopped(made, STOPS[stop])
    made.assert_done_is_done()
    listed = made.storage.contents(made.images)
    embedded = {name: listed[name] for name in made.done()}
    if change:
        CHANGES[change](made)
    now = made.storage.contents(made.images)
    # Vectors are kept, but for those whose thumbnail is replaced by that of another image.
    kept = {c for name, c in embedded.items() if now.get(name, c) == c}
    # Of a few that were done, the changes can leave out more than half.
    accepted = ("--accept_changes",) if change else ()
    with StandIn(made.storage.url) as storage:
        made.ingest(*accepted, storage=storage)
        new = [c for c in now.values() if c not in kept]
        assert len(storage.requests(DOWNLOAD)) == len(new)
        if not change:
            assert len(storage.requests(THUMBNAIL)) == len(new)
    made.assert_same(ingested(change))
