"""ingest.py --engine ray without its models: for tests of everything around the numbers.

Run as `python tests/engine/ray_ingest.py NAME TRAIN_PATH VAL_PATH --engine ray ...`, with any files
as weights. Settings in the environment:

    FAKE_KEY            the file of a Google key that workers get
    FAKE_GATE           a file; after its first images, an embedder waits until it is there
    FAKE_CHILD          if it is set, an actor starts a process that would outlive Ray by an hour
    FAKE_ROW_S          seconds that the driver takes to record a row
    FAKE_NO_PROGRESS_S  seconds without a result after which a pass ends
"""

import os
import subprocess
import sys
import time
from pathlib import Path
from unittest import mock

sys.path.insert(0, str(Path(__file__).parents[2]))

import google.auth
import ray

import ingest
from engine.checkpoint import Recorder
from engine.ray import driver
from testing import embedders
from testing.embedders import FakeEmbedder, LoaderWithoutModels

FREE = 4  # images of an embedder that pass the gate


class GatedEmbedder(FakeEmbedder):
    """Waits at the gate once it has embedded FREE images."""

    def __init__(self, gate):
        super().__init__()
        self._gate = gate

    def start(self, images, clip_inputs):
        while sum(self.batches) >= FREE and not os.path.exists(self._gate):
            time.sleep(0.02)
        return super().start(images, clip_inputs)


class Loader(LoaderWithoutModels):
    """Workers get this class by value, with its settings. They load only if all files came."""

    gate = os.environ.get("FAKE_GATE", "/")
    with_key = "FAKE_KEY" in os.environ
    with_child = "FAKE_CHILD" in os.environ

    def load(self, precision):
        for path in (self._options.resnet_weights, Path(self._options.clip_weights, "config.json")):
            assert path.read_bytes().startswith(b"weights"), path
        if ray.get_runtime_context().get_actor_id():
            if self.with_key:
                assert google.auth.default()[0].client_id == "ours"
            if self.with_child:  # of which Ray would end the shell alone
                subprocess.Popen(["sh", "-c", "sleep 3600 & wait"])
        return GatedEmbedder(self.gate)


class SlowRecorder(Recorder):
    def record(self, *outcome):
        time.sleep(float(os.environ.get("FAKE_ROW_S", 0)))
        super().record(*outcome)


def write_weights(directory):
    """Files that pass for weights, and the options that name them."""
    clip = directory / "clip"
    clip.mkdir(parents=True)
    for path in (directory / "R-50.pkl", clip / "config.json", clip / "model.safetensors"):
        path.write_bytes(b"weights " + path.name.encode())
    return ["--resnet_weights", str(directory / "R-50.pkl"), "--clip_weights", str(clip)]


def main():
    ray.cloudpickle.register_pickle_by_value(embedders)
    no_progress_s = float(os.environ.get("FAKE_NO_PROGRESS_S", driver.NO_PROGRESS_S))
    key = os.environ.get("FAKE_KEY")
    with (
        mock.patch.object(driver, "key_file", lambda: Path(key) if key else None),
        mock.patch.object(driver, "NO_PROGRESS_S", no_progress_s),
        mock.patch.object(driver, "Recorder", SlowRecorder),
    ):
        ingest.main(obj=Loader)


if __name__ == "__main__":
    main()
