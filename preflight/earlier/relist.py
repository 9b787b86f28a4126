"""Take a newer listing in the place of that of an interrupted ingest, and keep what is computed."""

from __future__ import annotations

from common.terminal import count, duration, say
from dataset.arrays import Arrays
from dataset.state.changes import Comparison
from dataset.state.rows import State
from dataset.work_directory import WorkDirectory
from engine.reuse import Copier, Source


async def relist(earlier: State, listing: State, work: WorkDirectory) -> State:
    """Make a listing the state of a work directory; unchanged images keep vectors and thumbnails.

    The rows are copied beside the earlier state, under the same index id, and take its place when
    all of them are on the disk. Whatever ends this before, the earlier state is as it was.
    """
    listing.set_options(earlier.options())
    listing = work.begin_relisting(listing)
    images, bucket = listing.counts().images, earlier.option("bucket") or ""
    source = Source(
        str(earlier.directory),
        earlier.index_id,
        bucket,
        earlier.counts().images,
        earlier.option("precision") or "",
        "",
        earlier.directory,
    )
    with (
        Comparison(earlier.path, listing.path) as compared,
        Arrays(listing.directory, images) as arrays,
    ):
        copier = Copier(listing, arrays, [source], compared.unchanged(), bucket)
        seconds = await copier.run()
    state = work.adopt_relisting()
    say(
        f"Took today's list of {count(images, 'image')}: {copier.copied:,} keep their vectors and "
        f"thumbnails ({duration(seconds)}).",
    )
    return state
