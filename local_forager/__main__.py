"""The command that serves the local Forager, with others that change or export datasets."""

from common.guard import guard

if __name__ == "__main__":
    guard()

import asyncio
import errno
import logging
import os
import signal
import sys
from typing import Any

import click
from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError

from common.options import CONTEXT_SETTINGS, Command, bucket_option, choice
from common.terminal import printable
from local_forager.commands.columns import add_columns
from local_forager.commands.delete import delete_dataset
from local_forager.commands.export import export_set
from local_forager.commands.options import (
    clip_weights_option,
    data_dir_option,
    resnet_weights_option,
)
from local_forager.indexes.vectors import EXACT_ROWS
from local_forager.page.routes import add_page
from local_forager.page.state import PAGE, PageOptions, PageState
from local_forager.server import api
from local_forager.server.api import BUCKETS, DATABASE
from local_forager.server.buckets import Buckets
from local_forager.server.database import DATABASE_FILE, Database, ServerGeneration, usable
from local_forager.types import PageError

SHUTDOWN_TIMEOUT = 2.0  # seconds for open requests to finish when the server is told to stop


def make_app(generation: ServerGeneration, loopback: bool, options: PageOptions) -> web.Application:
    middlewares = [api.refuse_other_sites, api.answer_errors]
    if loopback:
        middlewares.insert(0, api.refuse_other_hosts)
    app = web.Application(middlewares=middlewares, client_max_size=api.CHUNKED_LIMIT)
    options.data_dir.mkdir(parents=True, exist_ok=True)
    with usable(options.data_dir / DATABASE_FILE):
        app[DATABASE] = Database(options.data_dir / DATABASE_FILE, generation)
    app[BUCKETS] = Buckets()
    api.add_api(app)
    add_page(app, PageState(app, options))
    app.on_cleanup.append(close)
    return app


async def close(app: web.Application) -> None:
    app[PAGE].close()
    app[BUCKETS].close()
    app[DATABASE].close()


def report_problem(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """One line where the system is out of open files; a bug keeps its traceback."""
    error = context.get("exception")
    if isinstance(error, OSError):
        print(f"{context['message']}: {error.strerror}", file=sys.stderr)
    else:
        loop.default_exception_handler(context)


def is_no_bad_request(record: logging.LogRecord) -> bool:
    """False for requests that are no HTTP: they are answered with 400, and need no traceback."""
    return not (record.exc_info and isinstance(record.exc_info[1], HttpProcessingError))


async def serve(app: web.Application, host: str, port: int) -> None:
    """Print one line with the address, then serve until SIGINT or SIGTERM."""
    stop, loop = asyncio.Event(), asyncio.get_running_loop()
    loop.set_exception_handler(report_problem)
    logging.getLogger("aiohttp.server").addFilter(is_no_bad_request)
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=SHUTDOWN_TIMEOUT)
    await runner.setup()
    try:
        try:
            await web.TCPSite(runner, host, port).start()
        except (OSError, UnicodeError) as error:
            code = getattr(error, "errno", 0)  # of a name that is not known it is negative
            reason = os.strerror(code) if code > 0 else "no name of a machine"
            where, advice = f"{printable(host)}:{port} ({reason})", "choose another --port"
            if code <= 0 or code == errno.EADDRNOTAVAIL:
                advice = "--host is an address of this machine: 127.0.0.1, or 0.0.0.0 for all"
            raise PageError(500, f"Cannot listen on {where}: {advice}.") from None
        address = f"[{host}]" if ":" in host else host
        url = f"http://{address}:{runner.addresses[0][1]}"
        generation = app[DATABASE].generation.value
        about = f"local_forager (generation {generation}) on {url} - for trying things and tests"
        click.echo(f"{about}; Ctrl-C ends it")
        await stop.wait()
    finally:
        await runner.cleanup()


class Group(Command, click.Group):
    """A group of commands; without one of them, `main` itself serves the page."""

    def parse_args(self, context: click.Context, args: list[str]) -> list[str]:
        try:
            return super().parse_args(context, args)
        except click.NoSuchOption as error:
            for name, command in self.commands.items():
                if any(error.option_name in option.opts for option in command.params):
                    way = f"It goes with {name}: {name} NAME {error.option_name} ..."
                    context.fail(f"{error.message} {way}")
            raise

    def resolve_command(self, context: click.Context, args: list[str]) -> Any:
        try:
            return super().resolve_command(context, args)
        except click.NoSuchCommand as error:
            names = ", ".join(self.commands)
            way = f"The commands are {names}; without one, the page is served."
            context.fail(f"{error.format_message()} {way}")


@click.group(cls=Group, invoke_without_command=True, context_settings=CONTEXT_SETTINGS)
@click.option(
    "--port", default=8000, type=click.IntRange(0, 65535), help="Port; 0 chooses a free one."
)
@data_dir_option
@choice("--generation", ("B", "A"), "Generation of Forager servers to imitate.")
@click.option("--host", default="127.0.0.1", help="Address to listen on.")
@bucket_option
@clip_weights_option
@resnet_weights_option
@click.option(
    "--exact_rows",
    type=click.IntRange(0),
    default=EXACT_ROWS,
    help="Images up to which each search compares all of them; faiss-cpu searches in more.",
)
@click.option("--note", default="", help="A sentence above the images of each dataset.")
@click.pass_context
def main(context: click.Context, host: str, port: int, generation: str, **options: Any) -> None:
    """Serve a small Forager on this machine, for trying things and tests. It replaces no Forager.

    \b
    Example:
        python -m local_forager --port 8000 --data_dir forager-data
    """
    if command := context.invoked_subcommand:
        for name in context.params:
            if context.get_parameter_source(name) is click.core.ParameterSource.COMMANDLINE:
                raise click.UsageError(f"Write options of {command} after it, such as --{name}.")
        return
    try:
        app = make_app(ServerGeneration(generation), api.is_loopback(host), PageOptions(**options))
    except OSError as error:
        where = f"--data_dir {printable(str(options['data_dir']))} cannot be written"
        raise PageError(500, f"{where} ({error.strerror}): name another directory.") from error
    asyncio.run(serve(app, host, port))


for command in (export_set, add_columns, delete_dataset):
    main.add_command(command)

if __name__ == "__main__":
    main.run("python -m local_forager")
