"""ingest.py without its models: for tests of everything around the numbers.

Run as `python tests/fake_ingest.py NAME TRAIN_PATH VAL_PATH ...`. Vectors are seeded by the pixels,
so equal images have equal vectors; torch is never imported, and the weights are any two files.

    FAKE_DELAY_S     seconds that each image spends in a model
    FAKE_BAD_SIZE    WIDTHxHEIGHT of images whose vectors are NaN
    FAKE_WINDOW      images between listing and index at once
    FAKE_CHECKPOINT_S  seconds between two records of what is done
    FAKE_OBJECT_BYTES  the largest object that is fetched
    FAKE_DISK_BYTES  no file can grow beyond this (RLIMIT_FSIZE)
"""

import contextlib
import hashlib
import os
import resource
import sys
import time
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

sys.path.insert(0, str(Path(__file__).parent.parent))

import ingest
from engine import checkpoint as recording
from engine import local as pipeline
from engine import prepare as intake
from preflight import plan
from weights import files


class FakeEmbedder:
    workers = 1
    clip_batch_size = 8
    makes_clip_inputs = False
    max_pixels = 100_000_000
    device, precision = "cpu", "float32"

    def __init__(self, *_: Any, **__: Any) -> None:
        self.delay_s = float(os.environ.get("FAKE_DELAY_S", 0))
        self.bad_size = os.environ.get("FAKE_BAD_SIZE")

    def resnet_batch_size(self, height: int, width: int) -> int:
        return 4

    def start_resnet(self, images: Any) -> Any:
        time.sleep(self.delay_s * len(images))
        rows = [self._vector(pixels, 3072) for pixels in images]
        imagenet, early = zip(*((unit(row[:2048]), unit(row[2048:])) for row in rows), strict=True)
        classes = np.array(
            [int(abs(row[0]) * 1e6) % 1000 if row[0] == row[0] else 0 for row in rows]
        )
        return lambda: (np.stack(imagenet), np.stack(early), classes)

    def start_clip(self, inputs: Any) -> Any:
        rows = np.stack([unit(self._vector(pixels, 512)) for pixels in inputs])
        return lambda: rows

    def _vector(self, pixels: np.ndarray, dimensions: int) -> np.ndarray:
        if "{1}x{0}".format(*pixels.shape) == self.bad_size:
            return np.full(dimensions, np.nan, np.float32)
        seed = hashlib.sha256(np.ascontiguousarray(pixels).data).digest()
        random = np.random.default_rng(int.from_bytes(seed[:8], "big"))
        return random.standard_normal(dimensions, np.float32)


def unit(vector: np.ndarray) -> np.ndarray:
    return vector / np.linalg.norm(vector)


class AnyWeights:
    """Stands for a WeightsReader that takes any file for weights."""

    def __init__(self, resnet: Path, clip: str) -> None:
        self._files = resnet, Path(clip)

    def __enter__(self) -> "AnyWeights":
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def clip_directory(self) -> Path:
        return self._files[1]

    def resnet_arrays(self) -> dict[str, np.ndarray]:
        return {}

    def digests(self) -> list[str]:
        return [files.digest(file) for file in self._files]


@contextlib.contextmanager
def fake_models() -> Iterator[None]:
    """The ingest of this process has no models and no real weights within a `with` block."""
    modules: dict[str, Any] = {
        "embeddings": types.SimpleNamespace(Embedder=FakeEmbedder),
        "models.devices": types.SimpleNamespace(
            choose_device=lambda name: name,
            check_precision=lambda name, device: None,
            bfloat16_is_faster=lambda: False,
        ),
    }
    window = int(os.environ.get("FAKE_WINDOW", pipeline.WINDOW_CPU))
    object_bytes = int(os.environ.get("FAKE_OBJECT_BYTES", intake.MAX_OBJECT_BYTES))
    checkpoint_s = float(os.environ.get("FAKE_CHECKPOINT_S", recording.CHECKPOINT_S))
    before = {name: sys.modules.get(name) for name in modules}
    sys.modules.update(modules)
    with (
        mock.patch.object(plan, "WeightsReader", AnyWeights),
        mock.patch.object(pipeline, "WINDOW_CPU", window),
        mock.patch.object(intake, "MAX_OBJECT_BYTES", object_bytes),
        mock.patch.object(recording, "CHECKPOINT_S", checkpoint_s),
    ):
        try:
            yield
        finally:
            for name, module in before.items():
                sys.modules.pop(name)
                if module:
                    sys.modules[name] = module


def main() -> None:
    if "FAKE_DISK_BYTES" in os.environ:
        limit = int(os.environ["FAKE_DISK_BYTES"])
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    with fake_models():
        ingest.main()


if __name__ == "__main__":
    main()
