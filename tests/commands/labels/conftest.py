"""ingest_labels.py, in this process or in one of its own, against a local Forager."""

import asyncio
import json
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from common.program import ROOT
from forager.client import DatasetInfo, Forager
from ingest_labels import main
from tests import harness
from tests.commands.labels.label_command import IMAGES, Server


@pytest.fixture(scope="session")
def bucket(emulator_url):
    """A bucket that is both the image bucket and the index bucket, with index "i"."""
    emulated = harness.Emulated(emulator_url)
    name = emulated.bucket()
    rows = {"identifiers": {"a": 0, "b.v1": 1, "c": 2}, "val_identifiers": {"d": 3, "é": 4}}
    indexes = {f"indexes/i/{file}.json": json.dumps(row).encode() for file, row in rows.items()}
    for path, content in {**dict.fromkeys(IMAGES, b""), **indexes}.items():
        emulated.put(name, path, content)
    return name


async def create_datasets(url, bucket):
    async with Forager(url) as client:
        paths = f"gs://{bucket}/t/", f"gs://{bucket}/v/"
        await client.create_dataset("birds", *paths, DatasetInfo("i", 3, 2))
        await client.create_dataset("noindex", *paths, DatasetInfo("none", 3, 2))


@pytest.fixture(scope="session")
def label_servers(bucket, servers, server_directories):
    for url in servers.values():
        asyncio.run(create_datasets(url, bucket))
    return {name: Server(name, servers[name], server_directories[name]) for name in "AB"}


@pytest.fixture
def server_a(label_servers):
    return label_servers["A"].emptied()


@pytest.fixture
def server_b(label_servers):
    return label_servers["B"].emptied()


@pytest.fixture(params=["server_a", "server_b"], ids=["A", "B"])
def server(request):
    return request.getfixturevalue(request.param)


@pytest.fixture
def arguments(tmp_path, bucket, emulator, monkeypatch):
    """A function that writes a label file, and returns the arguments and the environment.

    It takes what the file holds, or the path of one that is there.
    """
    monkeypatch.chdir(tmp_path)

    def write(url, document, *options, name="birds"):
        path = document if isinstance(document, Path) else tmp_path / "labels.json"
        if path != document:
            content = document if isinstance(document, str) else json.dumps(document)
            path.write_text(content, encoding="utf-8")
        variables = {"SERVER_URL": url, "FORAGER_BUCKET": bucket}
        return [name, str(path), "--user", "ann@x.org", *options], variables

    return write


@pytest.fixture
def begin(arguments):
    """A function that starts the command on a label file, given as what it holds."""

    def start(*values, popen=(), **named):
        given, variables = arguments(*values, **named)
        command = [sys.executable, str(ROOT / "ingest_labels.py"), *given]
        return harness.start(command, harness.clean_environment() | variables, **dict(popen))

    return start


@pytest.fixture
def run(arguments):
    """The same in this process, to its end, which is quicker: exit code, stdout, stderr."""

    def finish(*values, **named):
        given, variables = arguments(*values, **named)
        result = CliRunner().invoke(main, given, env=variables)
        assert result.exception is None or isinstance(result.exception, SystemExit)
        return harness.Done(result.exit_code, result.stdout, result.stderr)

    return finish
