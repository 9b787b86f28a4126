"""Pictures that people search by: each is read once, and only its vectors are kept, in memory."""

import asyncio
import contextlib
import secrets

import numpy as np
from aiohttp import web

from local_forager.analysis.jobs import Jobs, result_of
from local_forager.analysis.picture_search import PictureWeights, picture_vectors, read_picture
from local_forager.indexes.index import Index
from local_forager.types import PageError, PictureQuestion

MAX_BYTES = 1 << 30  # of a picture, as of an object of an ingest
MAX_WAITING = 4  # pictures that wait for the models, as pixels
PREFIX = "picture-"  # of a token, so that it is no row
GONE = "Your picture is not here any more, because pictures are never stored. Give it again."


class Questions:
    """The vectors of the latest pictures by random tokens, computed one after the other."""

    def __init__(self, models: Jobs, weights: PictureWeights) -> None:
        self._models, self.weights = models, weights
        self._reading = asyncio.Semaphore(1)

    def why_not(self) -> str | None:
        """Why no picture can be compared; None if it can be by one embedding at least."""
        return self.weights.usable()[1] or None

    async def add(self, request: web.Request) -> str:
        """The token of the picture in a request's body; its vectors follow. Raises PageError."""
        if problem := self.why_not():
            raise PageError(409, problem)
        async with self._reading:
            if self._models.waiting() >= MAX_WAITING:
                raise PageError(503, "Other pictures are being read: try again in a moment.")
            data = await read_body(request)
            picture = await asyncio.to_thread(read_picture, data)
        token = PREFIX + secrets.token_hex(16)
        wanted = self.weights.usable()[0]
        self._models.start(token, lambda _: picture_vectors(self.weights, picture, wanted))
        return token

    async def question(self, token: str, index: Index) -> PictureQuestion:
        """Whether a picture can be compared with an index."""
        by, reason = await asyncio.to_thread(self.weights.usable, index)
        if self._models.get(token) is None:
            by, reason = [], GONE
        return {"like": token, "by": by, "reason": reason}

    async def vector(self, token: str, by: str, index: Index) -> np.ndarray:
        """A unit vector; raises PageError, and StillWorking while it is computed."""
        job = self._models.get(token)
        if job is None:
            raise PageError(404, GONE)
        await asyncio.to_thread(self.weights.check, by, index)
        found = await result_of(job.future, lambda: "Loading the models to read your picture")
        vector: np.ndarray = found[by]
        return vector


async def read_body(request: web.Request) -> bytes:
    """The body of a request, of up to MAX_BYTES."""
    if (request.content_length or 0) <= MAX_BYTES:
        with contextlib.suppress(web.HTTPRequestEntityTooLarge):
            return await request.clone(client_max_size=MAX_BYTES).read()
    raise PageError(413, f"The picture is larger than {MAX_BYTES / 1e9:.1f} GB.")
