"""The weights of both models, read and checked in a process of its own.

Reading R-50.pkl and importing torch each keep an interpreter busy; two do both at once.
"""

from __future__ import annotations

import io
import json
import math
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import cast

import click
import numpy as np

from common.program import ROOT
from weights import clip, files, resnet50

COMMAND = "import sys; sys.path[0] = sys.argv.pop(1); from weights.reader import run; run()"
PIPE_BYTES = 1 << 20  # a hundred megabytes pass through
ARRAYS = "arrays"  # answer that the arrays follow, float32, in the order of resnet50.resnet_shapes


class WeightsReader:
    """Begins to read; what it found is then asked for in the order of the methods here.

    A context manager, at whose end the process ends.
    """

    def __init__(self, resnet_weights: Path, clip_weights: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", COMMAND, str(ROOT), str(resnet_weights), clip_weights],
            stdin=subprocess.PIPE,  # closed when this process ends, however it ends
            stdout=subprocess.PIPE,
            pipesize=PIPE_BYTES,
        )
        assert self._process.stdin and self._process.stdout
        self._pipe = cast(io.BufferedReader, self._process.stdout)

    def __enter__(self) -> WeightsReader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        with self._process:  # closes its pipes and waits for it
            pass

    def clip_directory(self) -> Path:
        """The local directory of the CLIP weights. Raises WeightsError: see check_clip_weights."""
        return Path(self._answer())

    def resnet_arrays(self) -> dict[str, np.ndarray]:
        """The arrays of ResNet-50. Raises WeightsError: see read_resnet_weights."""
        self._answer()
        shapes = resnet50.resnet_shapes()
        sizes = [math.prod(shape) for shape in shapes.values()]
        numbers = np.empty(sum(sizes), np.float32)
        if self._pipe.readinto(numbers.data.cast("B")) < numbers.nbytes:
            raise self._ended()
        parts = np.split(numbers, np.cumsum(sizes)[:-1])
        return {
            name: part.reshape(shape)
            for (name, shape), part in zip(shapes.items(), parts, strict=True)
        }

    def digests(self) -> tuple[str, str]:
        """The SHA-256 of R-50.pkl and of CLIP's file, in hexadecimal; both were found good."""
        return self._answer(), self._answer()

    def _answer(self) -> str:
        line = self._pipe.readline()
        if not line.endswith(b"\n"):
            raise self._ended()
        answer: dict[str, str] = json.loads(line)
        if "error" in answer:
            raise files.WeightsError(answer["error"])
        return answer["found"]

    def _ended(self) -> click.ClickException:
        return click.ClickException(
            f"The process that reads the weights ended with code {self._process.wait()} before it "
            "was done; if memory is short, free some, and run the same command again."
        )


def main(resnet_weights: str, clip_weights: str) -> None:
    """Answer on stdout, a line of JSON each: CLIP's directory, the arrays, both digests."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    directory = arrays = None
    try:
        directory = clip.check_clip_weights(clip_weights)
        _tell(found=str(directory))
    except files.WeightsError as error:
        _tell(error=error.message)
    try:
        arrays = resnet50.read_resnet_weights(Path(resnet_weights))
        _tell(found=ARRAYS)
        for array in arrays.values():
            sys.stdout.buffer.write(np.ascontiguousarray(array, "<f4").data)
        sys.stdout.flush()
    except files.WeightsError as error:
        _tell(error=error.message)
    if directory and arrays:
        _tell(found=files.digest(Path(resnet_weights)))
        _tell(found=files.digest(directory))


def _tell(**answer: str) -> None:
    sys.stdout.buffer.write(json.dumps(answer).encode() + b"\n")
    sys.stdout.flush()


def _end_with_parent() -> None:
    os.read(0, 1)  # returns when the other end is closed
    os._exit(1)


def run() -> None:
    """The process: main, with the arguments of the command line."""
    try:
        main(*sys.argv[1:])
    except (KeyboardInterrupt, BrokenPipeError):  # the parent says what is to be said
        os._exit(1)
