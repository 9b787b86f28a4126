"""The command that serves the local Forager, with a second one that exports images."""

import asyncio
import os
import signal
import socket
import sys
from pathlib import Path

import click
from aiohttp import web

from common.options import Command
from local_forager.analysis.approximate import EXACT_ROWS
from local_forager.export_command import export_set
from local_forager.page.routes import add_page
from local_forager.page.state import PAGE, Page
from local_forager.server.access import is_loopback, refuse_other_hosts, refuse_other_sites
from local_forager.server.api import BUCKETS, CHUNKED_LIMIT, DATABASE, GENERATION, add_api
from local_forager.server.buckets import Buckets
from local_forager.server.database import Database
from local_forager.server.errors import answer_errors
from local_forager.server.questions import add_questions

SHUTDOWN_TIMEOUT = 2.0  # seconds for open requests to finish when the server is told to stop


def make_app(
    data_dir: Path,
    generation: str,
    bucket: str,
    loopback: bool,
    clip_weights: Path | None,
    exact_rows: int = EXACT_ROWS,
) -> web.Application:
    middlewares = [refuse_other_sites, answer_errors]
    if loopback:
        middlewares.insert(0, refuse_other_hosts)
    app = web.Application(middlewares=middlewares, client_max_size=CHUNKED_LIMIT)
    data_dir.mkdir(parents=True, exist_ok=True)
    app[GENERATION] = generation
    app[DATABASE] = Database(data_dir / "forager.sqlite3", generation)
    app[BUCKETS] = Buckets()
    add_api(app)
    add_questions(app)
    add_page(app, Page(app, data_dir, bucket, clip_weights, exact_rows))
    app.on_response_prepare.append(announce_page)
    app.on_cleanup.append(close)
    return app


async def announce_page(request: web.Request, response: web.StreamResponse) -> None:
    """Tell clients that the web page is at this address, not on port 4000 as a real Forager's."""
    response.headers["Forager-Page"] = "/"


async def close(app: web.Application) -> None:
    app[PAGE].close()
    app[BUCKETS].close()
    app[DATABASE].close()


async def serve(app: web.Application, host: str, port: int) -> None:
    """Print one line with the address, then serve until SIGINT or SIGTERM."""
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=SHUTDOWN_TIMEOUT)
    await runner.setup()
    try:
        try:
            await web.TCPSite(runner, host, port).start()
        except OSError as error:
            unknown_host = isinstance(error, socket.gaierror)
            reason = error.strerror if unknown_host else os.strerror(error.errno or 0)
            other = "--host" if unknown_host else "--port"
            raise click.ClickException(
                f"Cannot listen on {host}:{port} ({reason}): choose another {other}."
            ) from None
        address = f"[{host}]" if ":" in host else host
        click.echo(
            f"local_forager (generation {app[GENERATION]}) on http://{address}:{runner.addresses[0][1]}"
            " - for trying things and tests; Ctrl-C ends it"
        )
        await stop.wait()
    finally:
        await runner.cleanup()


class Group(Command, click.Group):
    """A group of commands that print an IngestError as one sentence."""


@click.group(cls=Group, invoke_without_command=True, context_settings={"show_default": True})
@click.option(
    "--port", default=8000, type=click.IntRange(0, 65535), help="Port; 0 chooses a free one."
)
@click.option(
    "--data_dir",
    "--data-dir",
    type=click.Path(file_okay=False, path_type=Path),
    default="forager-data",
    help="Directory for the database and for copies of indexes and thumbnails.",
)
@click.option(
    "--generation",
    type=click.Choice(["A", "B"]),
    default="B",
    help="Generation of Forager servers to imitate.",
)
@click.option("--host", default="127.0.0.1", help="Address to listen on.")
@click.option("--bucket", default="foragerml", envvar="FORAGER_BUCKET", help="Index bucket.")
@click.option(
    "--clip_weights",
    "--clip-weights",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Directory with CLIP's text tower and tokenizer, for text search on the page.",
)
@click.option(
    "--exact_rows",
    "--exact-rows",
    type=click.IntRange(0),
    default=EXACT_ROWS,
    help="Images up to which each search compares all of them; faiss-cpu searches in more.",
)
@click.pass_context
def main(
    context: click.Context,
    port: int,
    data_dir: Path,
    generation: str,
    host: str,
    bucket: str,
    clip_weights: Path | None,
    exact_rows: int,
) -> None:
    """Serve a small Forager on this machine, for trying things and tests. It replaces no Forager.

    \b
    Example:
        python -m local_forager --port 8000 --data_dir forager-data
    """
    if context.invoked_subcommand:
        return
    app = make_app(data_dir, generation, bucket, is_loopback(host), clip_weights, exact_rows)
    asyncio.run(serve(app, host, port))
    # The database is closed. A thread may still compute a map; do not wait for it.
    sys.stdout.flush()
    os._exit(0)


main.add_command(export_set)

if __name__ == "__main__":
    main(prog_name="python -m local_forager")
