"""The command that starts the local Forager."""

import asyncio
import ipaddress
import os
import signal
import sys
from pathlib import Path

import click
from aiohttp import web

from local_forager.page.api import add_page
from local_forager.page.page import PAGE, Page
from local_forager.server.api import (
    BUCKETS,
    CHUNKED_LIMIT,
    DATABASE,
    GENERATION,
    Endpoint,
    add_api,
    answer_errors,
    html_page,
)
from local_forager.server.buckets import Buckets
from local_forager.server.database import Database

SHUTDOWN_TIMEOUT = 2.0  # seconds that open requests get when the server is told to stop


def is_loopback(host: str) -> bool:
    """Whether host, a name or an address without port, can only be this machine."""
    host = host.strip("[]").rstrip(".").lower()
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


@web.middleware
async def refuse_other_hosts(request: web.Request, handler: Endpoint) -> web.StreamResponse:
    """Only requests addressed to this machine, not to another site's name that resolves to it.

    Real servers refuse such a Host header too; here it keeps other web pages from reading data.
    """
    if not is_loopback(request.url.host or ""):
        title = f"DisallowedHost at {request.path}"
        return html_page(400, title, "Unknown host in the Host header.")
    if request.method == "POST" and request.headers.get("Sec-Fetch-Site") == "cross-site":
        return html_page(403, "Forbidden", "The page of another site sent this request.")
    return await handler(request)


def make_app(
    data_dir: Path, generation: str, bucket: str, loopback: bool, clip_weights: Path | None
) -> web.Application:
    middlewares = [refuse_other_hosts, answer_errors] if loopback else [answer_errors]
    app = web.Application(middlewares=middlewares, client_max_size=CHUNKED_LIMIT)
    data_dir.mkdir(parents=True, exist_ok=True)
    app[GENERATION] = generation
    app[DATABASE] = Database(data_dir / "forager.sqlite3", generation)
    app[BUCKETS] = Buckets()
    add_api(app)
    add_page(app, Page(app, data_dir, bucket, clip_weights))
    app.on_cleanup.append(close)
    return app


async def close(app: web.Application) -> None:
    app[PAGE].close()
    app[BUCKETS].close()
    app[DATABASE].close()


async def serve(app: web.Application, host: str, port: int) -> None:
    """Serve until SIGINT or SIGTERM, after one line on stdout with the address."""
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=SHUTDOWN_TIMEOUT)
    await runner.setup()
    try:
        try:
            await web.TCPSite(runner, host, port).start()
        except OSError as error:
            raise click.ClickException(
                f"Cannot listen on {host}:{port} ({error.strerror}): choose another --port."
            ) from None
        address = f"[{host}]" if ":" in host else host
        click.echo(
            f"local_forager (generation {app[GENERATION]}) on http://{address}:{runner.addresses[0][1]}"
            " - for trying things and tests; Ctrl-C ends it"
        )
        await stop.wait()
    finally:
        await runner.cleanup()


@click.command(context_settings={"show_default": True})
@click.option(
    "--port", default=8000, type=click.IntRange(0, 65535), help="Port; 0 takes a free one."
)
@click.option(
    "--data_dir",
    "--data-dir",
    type=click.Path(file_okay=False, path_type=Path),
    default="forager-data",
    help="Directory for the database and for copies of what the page shows.",
)
@click.option(
    "--generation",
    type=click.Choice(["A", "B"]),
    default="B",
    help="Which generation of Forager servers to answer like.",
)
@click.option("--host", default="127.0.0.1", help="Address to listen on.")
@click.option("--bucket", default="foragerml", envvar="FORAGER_BUCKET", help="Index bucket.")
@click.option(
    "--clip_weights",
    "--clip-weights",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Directory with CLIP's text tower and tokenizer, for text search on the page.",
)
def main(
    port: int, data_dir: Path, generation: str, host: str, bucket: str, clip_weights: Path | None
) -> None:
    """Serve a small Forager on this machine, for trying things and tests: no replacement for one.

    \b
    Example:
        python -m local_forager --port 8000 --data_dir forager-data
    """
    app = make_app(data_dir, generation, bucket, is_loopback(host), clip_weights)
    asyncio.run(serve(app, host, port))
    # The database is closed; a thread may still lay out a map, which is not worth waiting for.
    sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    main(prog_name="python -m local_forager")
