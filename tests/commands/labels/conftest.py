"""ingest_labels.py, in this process or in one of its own, against a local Forager."""

import json
import os
import subprocess
import sys
import uuid
from contextlib import ExitStack

import pytest
from click.testing import CliRunner
from google.auth.credentials import AnonymousCredentials
from google.cloud import storage

from common.program import ROOT
from ingest_labels import main
from testing.servers.guarded import guarded
from testing.servers.processes import LONGEST_S
from tests.commands.labels.label_command import IMAGES, Server


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
