"""The models load in a thread of their own, while other checks wait for the network."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from pathlib import Path
from typing import TYPE_CHECKING

from common.options import Request

if TYPE_CHECKING:
    import numpy as np

    from embeddings import Embedder


def start_loading(
    request: Request,
    precision: str,
    clip_directory: Path,
    resnet_arrays: dict[str, np.ndarray] | None = None,
) -> asyncio.Future[Embedder]:
    """Begin to load both models; the future has the embedder, or the error that loading raised.

    The thread is a daemon: a check that fails meanwhile ends the command without waiting for it.
    """
    loop = asyncio.get_running_loop()
    future: asyncio.Future[Embedder] = loop.create_future()
    future.add_done_callback(lambda done: done.cancelled() or done.exception())  # never "unheard"

    def settle(embedder: Embedder | None, error: Exception | None) -> None:
        if future.cancelled():
            return
        if error:
            future.set_exception(error)
        elif embedder:
            future.set_result(embedder)

    def load() -> None:
        embedder, failure = None, None
        try:
            embedder = load_models(request, precision, clip_directory, resnet_arrays)
        except Exception as error:
            failure = error
        with contextlib.suppress(RuntimeError):  # the loop has ended: nobody waits
            loop.call_soon_threadsafe(settle, embedder, failure)

    threading.Thread(target=load, name="load-models", daemon=True).start()
    return future


def load_models(
    request: Request,
    precision: str,
    clip_directory: Path,
    resnet_arrays: dict[str, np.ndarray] | None,
) -> Embedder:
    """Both models as the command line asks for them, in a precision that may be settled before.

    Raises:
        WeightsError, DeviceError: they cannot be loaded.
    """
    from embeddings import Embedder

    return Embedder(
        request.resnet_weights,
        clip_directory,
        backend=request.backend,
        device=request.device,
        precision=precision,
        resnet_batch_size=request.resnet_batch_size,
        clip_batch_size=request.clip_batch_size,
        resnet_arrays=resnet_arrays,
    )
