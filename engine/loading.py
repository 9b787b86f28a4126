"""The models of a run on this machine: check their device and weights, load them in a thread."""

from __future__ import annotations

import asyncio
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from common.errors import Findings
from common.process import in_daemon_thread
from weights.clip import check_clip_weights, digest, require_clip
from weights.resnet50 import read_resnet_weights, require_resnet

if TYPE_CHECKING:
    import numpy as np

    from embeddings import Embedder


@dataclass(frozen=True, kw_only=True)
class ModelOptions:
    """What the command line says of the models."""

    resnet_weights: Path
    clip_weights: str  # a hub id or a directory
    backend: str
    device: str
    precision: str
    resnet_batch_size: int | None
    clip_batch_size: int | None


class ModelLoader:
    """Checks and loads the models that ModelOptions describe.

    The methods that check block; call them in threads, in the order in which they are defined.
    """

    def __init__(self, options: ModelOptions) -> None:
        self._options = options
        self._clip_directory: Path | None = None
        self._arrays: dict[str, np.ndarray] | None = None
        self._loading: Future[Embedder] | None = None

    def check_files(self, findings: Findings) -> None:
        """That the weights files are there, as far as the disk alone tells."""
        findings.collect(require_resnet, self._options.resnet_weights)
        findings.collect(require_clip, self._options.clip_weights)

    def check_device(self) -> str:
        """Where the models will compute: cpu or cuda.

        Raises DeviceError unless this machine has the device and computes in the precision.
        """
        from models import devices

        device = devices.choose_device(self._options.device)
        devices.choose_precision(self._options.precision, device)
        return str(device.type)

    def find_clip(self) -> Path:
        """The local directory of the CLIP weights, checked once. Raises WeightsError."""
        if self._clip_directory is None:
            self._clip_directory = check_clip_weights(self._options.clip_weights)
        return self._clip_directory

    def read_resnet(self) -> Path:
        """Read the arrays of ResNet-50; returns their file. Raises WeightsError."""
        self._arrays = read_resnet_weights(self._options.resnet_weights)
        return self._options.resnet_weights

    def digests(self) -> tuple[str, str]:
        """The SHA-256 of R-50.pkl and of CLIP's file, in hexadecimal."""
        assert self._clip_directory is not None
        return digest(self._options.resnet_weights), digest(self._clip_directory)

    def start(self, precision: str) -> Future[Embedder]:
        """Begin to load both models in a thread, unless that has begun already.

        The thread is a daemon: a check that fails meanwhile ends the command without waiting.
        """
        if self._loading is None:
            self._loading = in_daemon_thread("load-models", partial(self.load, precision))
        return self._loading

    async def embedder(self, precision: str) -> Embedder:
        """Both models, once they are loaded.

        Raises:
            WeightsError, DeviceError: they cannot be loaded.
        """
        return await asyncio.wrap_future(self.start(precision))

    def load(self, precision: str) -> Embedder:
        """Load both models, which blocks. Raises WeightsError or DeviceError."""
        from embeddings import Embedder

        arrays, self._arrays = self._arrays, None  # a tenth of a gigabyte
        options = self._options
        return Embedder(
            options.resnet_weights,
            self._clip_directory or Path(options.clip_weights),
            backend=options.backend,
            device=options.device,
            precision=precision,
            resnet_batch_size=options.resnet_batch_size,
            clip_batch_size=options.clip_batch_size,
            resnet_arrays=arrays,
        )
