"""How the neighbours of an image are searched for: among all images, or with an inverted file."""

from functools import partial

from aiohttp import web

from local_forager.analysis.approximate import (
    NOT_INSTALLED,
    InvertedFile,
    installed,
    open_or_build,
    path_of,
)
from local_forager.page.query import embedding_choice
from local_forager.page.state import PAGE, View, view_of
from local_forager.types import SearchState


def inverted_file(
    request: web.Request, view: View, by: str
) -> tuple[InvertedFile | None, SearchState]:
    """The inverted file of an embedding, None while there is none; building starts when needed."""
    page, index = request.app[PAGE], view.index
    exact: SearchState = {"state": "exact", "progress": 1.0, "reason": ""}
    if len(index.names) <= page.exact_rows:
        return None, exact
    if not installed():
        return None, {**exact, "reason": NOT_INSTALLED}
    path, key = path_of(index.directory, by), ("inverted file", view.dataset.index_id, by)
    build = partial(open_or_build, path, index.embeddings[by], index.failed)
    job = page.jobs.start(key, build)
    try:
        found: InvertedFile | None = job.result()
    except (OSError, RuntimeError, MemoryError) as error:
        return None, {**exact, "reason": f"A faster search cannot be prepared ({error})."}
    if found is None:
        return None, {"state": "building", "progress": job.progress, "reason": ""}
    return found, {"state": "ready", "progress": 1.0, "reason": ""}


async def search(request: web.Request) -> SearchState:
    return inverted_file(request, await view_of(request), embedding_choice(request))[1]
