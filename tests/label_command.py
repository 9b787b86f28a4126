"""ingest_labels.py against a local Forager of each generation: fixtures, and a proxy that fails."""

import asyncio
import json
import os
import sqlite3
import subprocess
import sys
import threading
import uuid
from contextlib import ExitStack, contextmanager

import aiohttp
import pytest
from aiohttp import web
from click.testing import CliRunner
from google.auth.credentials import AnonymousCredentials
from google.cloud import storage

from common.program import ROOT
from forager.client import Forager
from ingest_labels import main
from testing.servers.guarded import guarded
from testing.servers.processes import LONGEST_S, local_forager

LABELS = "add_annotations_by_internal_identifiers_v2"
BOXES = "add_annotations_multi_v2"
IMAGES = ["t/a.jpg", "t/b.v1.png", "t/c.jpeg", "v/d.jpg", "v/é.jpg"]
GOOD = {
    "any/where/a.jpg": ["cat", {"category": "dog", "value": "NEGATIVE"}],
    "b.v1.png": [{"category": "cat", "mode": "far away"}],
    "é.jpg": ["cat"],
    "d.jpg": ["cat"],
}
STORED = [
    ("a", "cat", "POSITIVE"),
    ("a", "dog", "NEGATIVE"),
    ("b.v1", "cat", "far away"),
    ("d", "cat", "POSITIVE"),
    ("é", "cat", "POSITIVE"),
]


@pytest.fixture(scope="module")
def bucket(emulator_url):
    """A bucket that is both the image bucket and the index bucket, with index "i"."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("STORAGE_EMULATOR_HOST", emulator_url)
        client = storage.Client(project="demo", credentials=AnonymousCredentials())
        created = client.create_bucket(f"b-{uuid.uuid4()}")
        for name in IMAGES:
            created.blob(name).upload_from_string(b"")
        for name, rows in (
            ("identifiers.json", {"a": 0, "b.v1": 1, "c": 2}),
            ("val_identifiers.json", {"d": 3, "é": 4}),
        ):
            created.blob(f"indexes/i/{name}").upload_from_string(json.dumps(rows))
        yield created.name
        client.close()


class Server:
    """A running local Forager with the datasets `birds`, with an index, and `noindex`."""

    def __init__(self, generation, data_dir, bucket):
        self.generation = generation
        self.data_dir = data_dir
        self.bucket = bucket

    def __enter__(self):
        options = "--generation", self.generation
        self.service = local_forager(self.data_dir, self.data_dir / "log", *options)
        self.url = self.service.url
        asyncio.run(self.create())
        return self

    async def create(self):
        async with Forager(self.url) as client:
            paths = [f"gs://{self.bucket}/t/", f"gs://{self.bucket}/v/"]
            await client.create_dataset("birds", *paths, "i", 3, 2)
            await client.create_dataset("noindex", *paths, "none", 3, 2)

    def __exit__(self, *exception):
        self.service.stop()

    def ask(self, query):
        database = sqlite3.connect(self.data_dir / "forager.sqlite3")
        try:
            return database.execute(query).fetchall()
        finally:
            database.close()

    def count(self):
        return self.ask("SELECT count(*) FROM label")[0][0]

    def duplicates(self):
        """Labels that are stored more than once."""
        return self.ask(
            "SELECT item, category, mode FROM label GROUP BY item, category, mode"
            " HAVING count(*) > 1"
        )

    def stored(self):
        """(identifier, category, mode) of every label there is, and the labels are removed."""
        rows = self.ask(
            "SELECT identifier, category, mode FROM label JOIN item ON item.id = label.item"
        )
        self.remove("label")
        return sorted(rows)

    def boxes(self):
        """Every box there is, as a tuple, and the boxes are removed."""
        rows = self.ask(
            "SELECT identifier, category, mode, x1, y1, x2, y2"
            " FROM box JOIN item ON item.id = box.item"
        )
        self.remove("box")
        return sorted(rows)

    def remove(self, table):
        database = sqlite3.connect(self.data_dir / "forager.sqlite3")
        with database:
            database.execute(f"DELETE FROM {table}")
        database.close()


@pytest.fixture(scope="module")
def label_servers(bucket, tmp_path_factory):
    with ExitStack() as stack:
        yield {
            generation: stack.enter_context(
                Server(generation, tmp_path_factory.mktemp(generation), bucket)
            )
            for generation in "AB"
        }


@pytest.fixture(params=["A", "B"])
def server(request, label_servers):
    yield label_servers[request.param]
    label_servers[request.param].stored()
    label_servers[request.param].boxes()


@pytest.fixture
def server_a(label_servers):
    yield label_servers["A"]
    label_servers["A"].stored()


@pytest.fixture
def server_b(label_servers):
    yield label_servers["B"]
    label_servers["B"].stored()
    label_servers["B"].boxes()


@pytest.fixture
def begin(tmp_path, bucket):
    """A function that starts the command on a label file, given as what it holds."""

    def start(url, document, *options, name="birds", stdout=subprocess.PIPE):
        path = tmp_path / "labels.json"
        path.write_text(json.dumps(document), encoding="utf-8")
        command = [sys.executable, str(ROOT / "ingest_labels.py"), name, str(path)]
        return subprocess.Popen(
            **guarded([*command, "--user", "ann@x.org", *options]),
            env=os.environ
            | {"SERVER_URL": url, "FORAGER_BUCKET": bucket, "FORAGER_RETRY_BASE_S": "0.01"},
            stdout=stdout,
            stderr=subprocess.PIPE,
            text=True,
            cwd=tmp_path,
        )

    return start


@pytest.fixture
def run(tmp_path, bucket, monkeypatch):
    """The same in this process, to its end, which is quicker: exit code, stdout, stderr."""
    monkeypatch.chdir(tmp_path)

    def finish(url, document, *options, name="birds"):
        path = tmp_path / "labels.json"
        content = document if isinstance(document, str) else json.dumps(document)
        path.write_text(content, encoding="utf-8")
        result = CliRunner().invoke(
            main,
            [name, str(path), "--user", "ann@x.org", *options],
            env={"SERVER_URL": url, "FORAGER_BUCKET": bucket},
        )
        assert result.exception is None or isinstance(result.exception, SystemExit)
        return result.exit_code, result.stdout, result.stderr

    return finish


@pytest.fixture
def run_process(begin):
    """The same as a process."""

    def finish(*arguments, **named):
        with begin(*arguments, **named) as process:
            out, err = process.communicate(timeout=LONGEST_S)
        assert "Traceback" not in err
        return process.returncode, out, err

    return finish


class Proxy:
    """Before a server; `faults` says what happens to label requests, in their order.

    "reset" breaks the connection at once, "lost" after the server's answer. "hang" keeps the
    request, "kept" the answer. A number is a status. Past the end of the list all goes through.
    """

    def __init__(self, target, faults):
        self.target = target
        self.faults = list(faults)
        self.bodies = []
        self.hanging = threading.Event()

    async def handle(self, request):
        body = await request.read()
        fault = None
        route = request.path.removeprefix("/api/")
        if request.method == "POST" and route.startswith((LABELS, BOXES)):
            self.bodies.append(json.loads(body))
            fault = self.faults.pop(0) if self.faults else None
        if isinstance(fault, int):
            return web.Response(status=fault, text="<title>fault</title>", content_type="text/html")
        if fault == "hang":
            self.hanging.set()
            await asyncio.sleep(3600)
        if fault != "reset":
            async with (
                aiohttp.ClientSession() as session,
                session.request(request.method, self.target + request.path, data=body) as answer,
            ):
                content, kind = await answer.read(), answer.content_type
            if fault == "kept":
                self.hanging.set()
                await asyncio.sleep(3600)
            if fault != "lost":
                return web.Response(status=answer.status, body=content, content_type=kind)
        request.transport.abort()
        return web.Response()


@contextmanager
def serve(handle):
    """An aiohttp handler behind a port of this machine, in a thread of its own."""
    loop = asyncio.new_event_loop()

    async def start():
        app = web.Application(client_max_size=1 << 30)
        app.router.add_route("*", "/{path:.*}", handle)
        runner = web.AppRunner(app, shutdown_timeout=0.1)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        return runner

    async def stop():
        await runner.cleanup()
        handlers = asyncio.all_tasks() - {asyncio.current_task()}
        for task in handlers:
            task.cancel()
        await asyncio.gather(*handlers, return_exceptions=True)

    runner = loop.run_until_complete(start())
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        asyncio.run_coroutine_threadsafe(stop(), loop).result()
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()
