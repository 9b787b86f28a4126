"""ingest.py without its models: for tests of everything around the numbers.

Run as `python tests/fake_ingest.py NAME TRAIN_PATH VAL_PATH ...`. Torch is never imported, and the
weights are any two files. Settings in the environment:

    FAKE_DELAY_S       seconds that each image spends in a model
    FAKE_BAD_SIZE      WIDTHxHEIGHT of images whose vectors are NaN
    FAKE_WINDOW        images between listing and index at once
    FAKE_CHECKPOINT_S  seconds between two checkpoints
    FAKE_OBJECT_BYTES  size of the largest object that is fetched
    FAKE_DISK_BYTES    size that no file can exceed (RLIMIT_FSIZE)
"""

import contextlib
import os
import resource
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

sys.path.insert(0, str(Path(__file__).parent.parent))

import ingest
from engine.loading import ModelOptions
from engine.local import Pipeline
from testing.embedders import FakeEmbedder, LoaderWithoutModels


def make_loader(options: ModelOptions) -> LoaderWithoutModels:
    """The object of ingest.main's context: what the command takes for its models."""
    width, _, height = os.environ.get("FAKE_BAD_SIZE", "0x0").partition("x")
    seconds = float(os.environ.get("FAKE_DELAY_S", 0))
    embedder = FakeEmbedder(seconds=seconds, nan_size=(int(width), int(height)))
    return LoaderWithoutModels(options, embedder)


@contextlib.contextmanager
def settings() -> Iterator[None]:
    """The pipeline of this process takes its limits from the environment in a `with` block."""
    limits: dict[str, Any] = {}
    for name, argument, kind in (
        ("FAKE_WINDOW", "window", int),
        ("FAKE_CHECKPOINT_S", "checkpoint_s", float),
        ("FAKE_OBJECT_BYTES", "max_object_bytes", int),
    ):
        if name in os.environ:
            limits[argument] = kind(os.environ[name])
    with mock.patch.object(ingest, "Pipeline", partial(Pipeline, **limits)):
        yield


def main() -> None:
    if "FAKE_DISK_BYTES" in os.environ:
        limit = int(os.environ["FAKE_DISK_BYTES"])
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    with settings():
        ingest.main(obj=make_loader)


if __name__ == "__main__":
    main()
