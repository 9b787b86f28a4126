"""ingest.py without its models: for tests of everything around the numbers.

Run as `python tests/fake_ingest.py NAME TRAIN_PATH VAL_PATH ...`. Torch is never imported, and the
weights are any two files. Settings in the environment:

    FAKE_DELAY_S       seconds that each image spends in a model
    FAKE_BAD_SIZE      WIDTHxHEIGHT of images whose vectors are NaN
    FAKE_WINDOW        images between listing and index at once
    FAKE_CHECKPOINT_S  seconds between two checkpoints
    FAKE_CHUNK_ROWS    rows of another index that are copied at once
    FAKE_OBJECT_BYTES  size of the largest object that is fetched
    FAKE_DISK_BYTES    size that no file can exceed (RLIMIT_FSIZE)
    FAKE_KILL_RENAME   number of the os.rename, from 1, at which the process kills itself
"""

import contextlib
import os
import resource
import signal
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

sys.path.insert(0, str(Path(__file__).parent.parent))

import ingest
from engine.checkpoint import Recorder
from engine.loading import ModelOptions
from engine.pipeline import Pipeline
from engine.reuse import Copier
from engine.threads import Job
from preflight.earlier import relist
from testing.embedders import FakeEmbedder, LoaderWithoutModels


def make_loader(options: ModelOptions) -> LoaderWithoutModels:
    """The object of ingest.main's context: what the command takes for its models."""
    width, _, height = os.environ.get("FAKE_BAD_SIZE", "0x0").partition("x")
    seconds = float(os.environ.get("FAKE_DELAY_S", 0))
    embedder = FakeEmbedder(seconds=seconds, nan_size=(int(width), int(height)))
    return LoaderWithoutModels(options, embedder)


@contextlib.contextmanager
def settings() -> Iterator[None]:
    """Pipeline and copier of this process take limits from the environment in a `with` block."""
    limits: dict[Any, dict[str, Any]] = {Pipeline: {}, Recorder: {}, Job: {}, Copier: {}}
    for name, argument, kind, users in (
        ("FAKE_WINDOW", "window", int, [Pipeline]),
        ("FAKE_CHECKPOINT_S", "checkpoint_s", float, [Recorder, Copier]),
        ("FAKE_CHUNK_ROWS", "chunk_rows", int, [Copier]),
        ("FAKE_OBJECT_BYTES", "max_object_bytes", int, [Job]),
    ):
        for user in users:
            if name in os.environ:
                limits[user][argument] = kind(os.environ[name])
    with contextlib.ExitStack() as stack:
        for user, values in limits.items():
            for place in (ingest, relist) if user is Copier else (ingest,):
                stack.enter_context(
                    mock.patch.object(place, user.__name__, partial(user, **values))
                )
        yield


def main() -> None:
    if "FAKE_DISK_BYTES" in os.environ:
        limit = int(os.environ["FAKE_DISK_BYTES"])
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    if "FAKE_KILL_RENAME" in os.environ:
        kill_at_rename(int(os.environ["FAKE_KILL_RENAME"]))
    try:
        with settings():
            ingest.main(obj=make_loader)
    finally:
        if "FAKE_PEAK_FILE" in os.environ:
            Path(os.environ["FAKE_PEAK_FILE"]).write_text(str(peak_bytes()))


def kill_at_rename(number: int) -> None:
    """Kill this process instead of its os.rename of this number, or after the last before it."""
    rename, left = os.rename, iter(range(1, number))

    def counted(*paths: Any) -> None:
        if next(left, None) is None:
            os.kill(os.getpid(), signal.SIGKILL)
        rename(*paths)

    os.rename = counted  # type: ignore[assignment]


def peak_bytes() -> int:
    """The most memory that this process used.

    Not by getrusage: there a process inherits the peak of the one that started it.
    """
    status = Path("/proc/self/status")
    if not status.exists():  # not on Linux
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    (line,) = [line for line in status.read_text().splitlines() if line.startswith("VmHWM:")]
    return int(line.split()[1]) << 10


if __name__ == "__main__":
    main()
