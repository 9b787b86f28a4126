"""The files that workers on other machines need: the weights of the models, and the Google key.

Weights travel through Ray's object store, and only to machines that do not have the same files in
the same place: a cluster rarely has R-50.pkl in its image, and a shared file system saves the
transfer. The key travels from memory to memory and is written to no disk.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import socket
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from common.errors import ClusterError
from engine.loading import ModelLoader, ModelOptions
from engine.ray.cluster import KEY_VARIABLE
from weights import files
from weights.clip import CLIP_FILES

if TYPE_CHECKING:
    from embeddings import Embedder


def use_key(key: bytes) -> None:
    """Let Google's libraries in this process use a key that is kept in memory only.

    They read a key from a file. This file has no name in any directory, and ends with the process.
    """
    file = os.memfd_create("google-key")
    os.write(file, key)
    os.environ[KEY_VARIABLE] = f"/proc/self/fd/{file}"


class WeightFiles(NamedTuple):
    """The weights files of one model, all in one directory on the driver."""

    directory: Path
    digests: dict[str, str]  # file name -> SHA-256
    contents: dict[str, Any]  # file name -> Ray object; empty where all workers have these files

    def on_this_machine(self) -> Path:
        """The directory that holds the files on a worker; they are written where they are missing.

        Raises:
            ClusterError: a file is damaged or has changed.
        """
        if self._are_in(self.directory):
            return self.directory
        if not self.contents:
            raise ClusterError(
                f"The weights in {self.directory} have changed since the ingest began: run the "
                "same command again."
            )
        import ray

        key = hashlib.sha256("".join(self.digests.values()).encode()).hexdigest()
        directory = Path(tempfile.gettempdir(), f"forager-weights-{os.getuid()}", key)
        if self._are_in(directory):
            return directory
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        for name, content in self.contents.items():
            with tempfile.NamedTemporaryFile(dir=directory, delete=False) as temporary:
                temporary.write(memoryview(ray.get(content)))
            os.replace(temporary.name, directory / name)
        if not self._are_in(directory):
            raise ClusterError(
                f"The weights arrived damaged in {directory} on {socket.gethostname()}: check the "
                "disk of that machine, then run the same command again."
            )
        return directory

    def _are_in(self, directory: Path) -> bool:
        with contextlib.suppress(OSError):
            return all(files.digest(directory / n) == d for n, d in self.digests.items())
        return False


def send(paths: list[Path], *, to_others: bool) -> WeightFiles:
    """Files of one directory for the workers; through the object store if these are elsewhere."""
    import numpy as np
    import ray

    return WeightFiles(
        paths[0].absolute().parent,
        {path.name: files.digest(path) for path in paths},
        {path.name: ray.put(np.fromfile(path, np.uint8)) for path in paths if to_others},
    )


class WorkerModels(NamedTuple):
    """What a worker needs to load the models; `load` is called there."""

    resnet: WeightFiles
    clip: WeightFiles
    options: ModelOptions
    make_loader: Callable[[ModelOptions], ModelLoader]

    @classmethod
    def send(
        cls,
        options: ModelOptions,
        clip_directory: Path,
        make_loader: Callable[[ModelOptions], ModelLoader],
        *,
        to_others: bool,
    ) -> WorkerModels:
        """Make the models of these options available on the workers."""
        return cls(
            send([options.resnet_weights], to_others=to_others),
            send([clip_directory / name for name in CLIP_FILES], to_others=to_others),
            options,
            make_loader,
        )

    def load(self) -> Embedder:
        """Load both models on a worker. Raises ClusterError, and what ModelLoader.load raises."""
        # Ray sets it to the CPUs that are reserved. A model shall use all CPUs, as without Ray.
        os.environ.pop("OMP_NUM_THREADS", None)
        options = replace(
            self.options,
            resnet_weights=self.resnet.on_this_machine() / self.options.resnet_weights.name,
            clip_weights=str(self.clip.on_this_machine()),
        )
        return self.make_loader(options).load(options.precision)
