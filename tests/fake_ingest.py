"""ingest.py without its models: for tests of everything around the numbers.

Run as `python tests/fake_ingest.py NAME TRAIN_PATH VAL_PATH ...`. Torch is never imported, and the
weights are any two files. Settings in the environment:

    FAKE_DELAY_S       seconds that each image spends in a model
    FAKE_BAD_SIZE      WIDTHxHEIGHT of images whose vectors are NaN
    FAKE_WINDOW        images between listing and index at once
    FAKE_CHECKPOINT_S  seconds between two checkpoints
    FAKE_CHUNK_ROWS    rows of another index that are copied at once
    FAKE_OBJECT_BYTES  size of the largest object that is fetched
    FAKE_KILL          "rename 2": the process kills itself instead of its second os.rename; so for
                       "replace 2" (os.replace) and "commit 2" (of a transaction of SQLite)
"""

import contextlib
import os
import signal
import sqlite3
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
from steps import embed
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
            if values:
                limited = partial(user, **values)
                stack.enter_context(mock.patch.object(embed, user.__name__, limited))
        yield


def main() -> None:
    if "FAKE_KILL" in os.environ:
        kind, number = os.environ["FAKE_KILL"].split()
        kill_at(kind, int(number))
    try:
        with settings():
            ingest.main(obj=make_loader)
    finally:
        if "FAKE_PEAK_FILE" in os.environ:
            Path(os.environ["FAKE_PEAK_FILE"]).write_text(str(peak_bytes()))


def kill_at(kind: str, number: int) -> None:
    """Kill this process instead of its rename, replace or commit of this number, from 1."""
    left = iter(range(1, number))

    def count() -> None:
        if next(left, None) is None:
            os.kill(os.getpid(), signal.SIGKILL)

    if kind == "commit":
        connect = sqlite3.connect

        def traced(*args: Any, **named: Any) -> sqlite3.Connection:
            connection = connect(*args, **named)
            connection.set_trace_callback(lambda sql: count() if sql == "COMMIT" else None)
            return connection

        sqlite3.connect = traced  # type: ignore[assignment]
        return
    function = getattr(os, kind)

    def counted(*paths: Any) -> None:
        count()
        function(*paths)

    setattr(os, kind, counted)


def peak_bytes() -> int:
    """The most memory that this process used.

    Not by getrusage: there a process inherits the peak of the one that started it.
    """
    status = Path("/proc/self/status").read_text()
    (line,) = [line for line in status.splitlines() if line.startswith("VmHWM:")]
    return int(line.split()[1]) << 10


if __name__ == "__main__":
    main()
