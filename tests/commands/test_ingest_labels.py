"""The command as a user runs it, against the local Forager of both generations."""

import asyncio
import json
import os
import random
import re
import signal
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
from testing.servers import local_forager

LABELS = "add_annotations_by_internal_identifiers_v2"
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

    def stored(self):
        """(identifier, category, mode) of every label there is, and the labels are removed."""
        rows = self.ask(
            "SELECT identifier, category, mode FROM label JOIN item ON item.id = label.item"
        )
        database = sqlite3.connect(self.data_dir / "forager.sqlite3")
        with database:
            database.execute("DELETE FROM label")
        database.close()
        return sorted(rows)


@pytest.fixture(scope="module")
def servers(bucket, tmp_path_factory):
    with ExitStack() as stack:
        yield {
            generation: stack.enter_context(
                Server(generation, tmp_path_factory.mktemp(generation), bucket)
            )
            for generation in "AB"
        }


@pytest.fixture(params=["A", "B"])
def server(request, servers):
    yield servers[request.param]
    servers[request.param].stored()


@pytest.fixture
def server_a(servers):
    yield servers["A"]
    servers["A"].stored()


@pytest.fixture
def server_b(servers):
    yield servers["B"]
    servers["B"].stored()


@pytest.fixture
def begin(tmp_path, bucket):
    """A function that starts the command on a label file, given as what it holds."""

    def start(url, document, *options, name="birds"):
        path = tmp_path / "labels.json"
        path.write_text(json.dumps(document), encoding="utf-8")
        return subprocess.Popen(
            [
                sys.executable,
                ROOT / "ingest_labels.py",
                name,
                path,
                "--user",
                "ann@x.org",
                *options,
            ],
            env=os.environ
            | {"SERVER_URL": url, "FORAGER_BUCKET": bucket, "FORAGER_RETRY_BASE_S": "0.01"},
            stdout=subprocess.PIPE,
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
        path.write_text(json.dumps(document), encoding="utf-8")
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
            out, err = process.communicate(timeout=60)
        assert "Traceback" not in err
        return process.returncode, out, err

    return finish


class Proxy:
    """Before a server; `faults` says what happens to label requests, in their order.

    "reset" breaks the connection at once, "lost" after the server's answer, "hang" keeps the
    request, a number is a status; past the end of the list all goes through.
    """

    def __init__(self, target, faults):
        self.target = target
        self.faults = list(faults)
        self.bodies = []
        self.hanging = threading.Event()

    async def handle(self, request):
        body = await request.read()
        fault = None
        if LABELS in request.path:
            self.bodies.append(json.loads(body))
            fault = self.faults.pop(0) if self.faults else None
        if isinstance(fault, int):
            return web.Response(status=fault, text="<title>fault</title>", content_type="text/html")
        if fault == "hang":
            self.hanging.set()
            await asyncio.sleep(60)
        if fault != "reset":
            async with (
                aiohttp.ClientSession() as session,
                session.request(request.method, self.target + request.path, data=body) as answer,
            ):
                content, kind = await answer.read(), answer.content_type
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

    runner = loop.run_until_complete(start())
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        asyncio.run_coroutine_threadsafe(runner.cleanup(), loop).result()
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


def test_labels_are_stored(server, run_process, tmp_path):
    code, out, err = run_process(server.url, GOOD)
    assert (code, err) == (0, "")
    assert out.splitlines() == [
        "category  mode      asked  created",
        "cat       POSITIVE      3        3",
        "cat       far away      1        1",
        "dog       NEGATIVE      1        1",
        "",
        "5 of 5 labels created in 3 requests. Look at them at http://127.0.0.1:4000/birds",
    ]
    assert server.ask("SELECT DISTINCT user, created_by FROM label") == [("ann@x.org", "ingest")]
    assert server.stored() == STORED
    assert [path.name for path in tmp_path.iterdir()] == ["labels.json"]


def test_the_same_labels_again(server, run):
    assert run(server.url, GOOD)[0] == run(server.url, GOOD)[0] == 0
    assert server.stored() == sorted(STORED * (2 if server.generation == "A" else 1))


def test_no_labels_at_all(server_b, run):
    code, out, _ = run(server_b.url, {"a.jpg": []})
    assert code == 0
    assert "0 of 0 labels created in 0 requests" in out


def test_unknown_images_stop_the_command(server, run, tmp_path):
    document = GOOD | {f"far/z{number:02}.jpg": ["cat"] for number in range(12)}
    code, out, err = run(server.url, document)
    assert (code, out) == (1, "")
    list_file = tmp_path / "labels.json.birds.unknown.txt"
    assert err.startswith(
        "Error: 12 labelled images are not in the dataset birds:\n      far/z00.jpg\n"
    )
    assert f"      far/z09.jpg\n      ... and 2 more; all are in {list_file}\n" in err
    assert "--skip_unknown" in err
    assert list_file.read_text().split() == [f"far/z{number:02}.jpg" for number in range(12)]
    assert server.stored() == []


def test_unknown_images_are_skipped(server, run):
    code, out, err = run(server.url, GOOD | {"z.jpg": ["cat", "cow"]}, "--skip-unknown")
    assert code == 0
    assert err.startswith("Skipped: 1 labelled image is not in the dataset birds:\n      z.jpg\n")
    assert "5 of 5 labels created in 3 requests; labels of 1 unknown image skipped." in out
    assert server.stored() == STORED


def test_without_an_index_the_counts_are_compared(server, run):
    code, out, err = run(server.url, GOOD, name="noindex")
    assert code == 0
    assert "cannot be read" in err
    code, out, err = run(server.url, GOOD | {"z.jpg": ["cat", "cow"]}, name="noindex")
    assert code == 1
    assert "'cat' (POSITIVE): 3 of 4\n  'cow' (POSITIVE): 0 of 1" in err
    assert "cow       POSITIVE      1        0" in out
    assert "5 of 7 labels created" in out


def test_dry_run(server, run, tmp_path):
    code, out, err = run(server.url, GOOD, "--dry_run")
    assert (code, err) == (0, "")
    assert "cat       POSITIVE       3         1" in out
    assert "5 labels in 3 requests would be sent" in out
    assert server.stored() == []
    assert [path.name for path in tmp_path.iterdir()] == ["labels.json"]


def test_viewer_url(server_b, run):
    out = run(server_b.url, GOOD, "--viewer_url", "https://view.org/")[1]
    assert out.endswith(" https://view.org/birds\n")


def test_missing_dataset(server_b, run):
    code, out, err = run(server_b.url, GOOD, name="brids")
    assert (code, out) == (1, "")
    assert f"There is no dataset brids on {server_b.url}. It has birds, noindex." in err


def test_all_wrong_arguments_at_once(run, tmp_path):
    document = {"a.jpg": list(range(12))}
    code, out, err = run("localhost:8000", document, "--user", "ann", name="b/c")
    assert (code, out) == (1, "")
    for words in (
        "4 problems found:\n  - The dataset name 'b/c' is not valid",
        "SERVER_URL 'localhost:8000' is not an address",
        "--user 'ann' is not an e-mail address",
        "labels.json has 12 problems:\n",
        '      ["a.jpg"][9]: expected "CATEGORY" or ',
        f"      ... and 2 more; all are in {tmp_path}/labels.json.problems.txt",
    ):
        assert words in err
    assert len((tmp_path / "labels.json.problems.txt").read_text().splitlines()) == 12


@pytest.mark.parametrize(
    ("url", "options", "words"),
    [
        ("", [], "SERVER_URL is not set"),
        ("http://127.0.0.1:9", [], "Cannot reach the Forager server at http://127.0.0.1:9"),
        ("http://h", ["--user", "a@" + "x" * 299], "is longer than 300 characters"),
        ("http://h", ["--user", "a@b\udcff"], "is not an e-mail address"),
    ],
)
def test_wrong_argument(run, url, options, words):
    code, out, err = run(url, GOOD, *options)
    assert (code, out) == (1, "")
    assert words in err


def test_label_file_that_is_not_there(begin, tmp_path):
    command = [sys.executable, ROOT / "ingest_labels.py", "birds", "no\x1b.json", "--user", "a@b"]
    result = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert result.returncode == 1
    assert r"Cannot read the label file no\x1b.json: No such file or directory." in result.stderr


def test_user_may_be_written_with_a_name(server_b, run):
    assert run(server_b.url, GOOD, "--user", "Ann B <ann@b.org>")[0] == 0
    assert server_b.ask("SELECT DISTINCT user FROM label") == [("ann@b.org",)]


def test_longest_user(server, run):
    longest = {"A": 300, "B": 254}[server.generation]
    user = "u" * (longest - 6) + "@x.org"
    code, _, err = run(server.url, GOOD, "--user", f"u{user}")
    assert code == 1
    assert f"is longer than {longest} characters" in err
    assert run(server.url, GOOD, "--user", user)[0] == 0


def test_names_that_could_act_on_a_terminal(server_b, run):
    code, out, err = run(server_b.url, {"a.jpg": ["\x1b[2J\u202e"], "\x1b]0;x\x07.jpg": ["cat"]})
    assert code == 1
    code, out, err = run(server_b.url, {"a.jpg": ["\x1b[2J\u202e"]})
    assert code == 0
    assert r"\x1b[2J\u202e" in out
    assert not re.search(r"[\x1b\x07\u202e]", out + err)
    assert server_b.stored() == [("a", "\x1b[2J\u202e", "POSITIVE")]


def test_faults_before_b_change_nothing(server_b, run):
    faults = [None, 503, 500, 429, "lost", "reset", 502]
    with serve(Proxy(server_b.url, faults).handle) as url:
        code, out, err = run(url, GOOD)
    assert code == 0
    assert "attempt 7 of 8" in err
    assert "5 of 5 labels created" in out
    assert server_b.stored() == STORED


def test_one_fault_in_ten_changes_nothing(server_b, run):
    source = random.Random(0)
    kinds = [503, 429, 500, 502, "lost", "reset"]
    faults = [source.choice(kinds) if source.random() < 0.1 else None for _ in range(200)]
    document = {"a.jpg": [f"category {number}" for number in range(60)]}
    with serve(Proxy(server_b.url, faults).handle) as url:
        code, out, err = run(url, document)
    assert code == 0
    assert "attempt 2 of 8" in err
    assert "60 of 60 labels created in 60 requests" in out
    assert server_b.stored() == sorted(
        ("a", f"category {number}", "POSITIVE") for number in range(60)
    )


def test_refused_requests_to_a_are_repeated(server_a, run):
    with serve(Proxy(server_a.url, [None, 503, 500, 429]).handle) as url:
        code, out, _ = run(url, GOOD)
    assert code == 0
    assert server_a.stored() == STORED


@pytest.mark.parametrize(
    ("fault", "choice", "again"),
    [
        ("lost", "assume-stored", []),
        ("lost", "resend", STORED[2:3]),
        ("reset", "resend", []),
    ],
)
def test_a_lost_answer_of_a_is_for_the_user_to_settle(
    server_a, run, tmp_path, fault, choice, again
):
    proxy = Proxy(server_a.url, [None, fault])
    with serve(proxy.handle) as url:
        code, out, err = run(url, GOOD)
        assert (code, out) == (1, "")
        assert "may or may not have stored 1 label 'cat' (far away)" in err
        assert "1 of 3 requests stored so far" in err
        assert "--uncertain resend" in err
        assert (tmp_path / "labels.json.birds.journal").exists()
        code, out, err = run(url, GOOD)
        assert (code, out) == (1, "")
        assert "No answer came to 1 request of an interrupted run:\n" in err
        assert "  1 x 'cat' (far away), b.v1\n" in err
        assert len(proxy.bodies) == 2
        code, out, err = run(url, GOOD, "--uncertain", choice)
    assert code == 0
    assert "5 of 5 labels created" in out
    assert server_a.stored() == sorted(STORED + again)
    assert not (tmp_path / "labels.json.birds.journal").exists()


@pytest.mark.parametrize(("choice", "again"), [("assume_stored", []), ("resend", STORED[2:3])])
def test_a_lost_answer_of_a_can_be_settled_before(server_a, run, choice, again):
    with serve(Proxy(server_a.url, [None, "lost"]).handle) as url:
        code, out, _ = run(url, GOOD, "--uncertain", choice)
    assert code == 0
    assert server_a.stored() == sorted(STORED + again)


def test_a_terminal_that_cannot_show_a_category(server_b, run_process, monkeypatch):
    monkeypatch.setenv("PYTHONIOENCODING", "latin-1")
    code, out, _ = run_process(server_b.url, {"é.jpg": ["猫"]})
    assert code == 0
    assert r"\u732b" in out


def test_all_requests_fail(server, run, tmp_path):
    with serve(Proxy(server.url, [503] * 8).handle) as url:
        code, out, err = run(url, GOOD)
        assert (code, out) == (1, "")
        assert "in 8 attempts: HTTP 503 (fault)" in err
        assert "0 of 3 requests stored so far; the same command continues." in err
        assert run(url, GOOD)[0] == 0  # what was refused is not uncertain, on A either
    assert server.stored() == STORED


@pytest.mark.parametrize(("number", "code"), [(signal.SIGKILL, -9), (signal.SIGINT, 130)])
def test_an_interrupted_run_continues(server_b, begin, run, number, code):
    proxy = Proxy(server_b.url, [None, "hang"])
    with serve(proxy.handle) as url:
        with begin(url, GOOD) as process:
            assert proxy.hanging.wait(30)
            process.send_signal(number)
            _, err = process.communicate(timeout=30)
            assert process.returncode == code
            if number == signal.SIGINT:
                assert err == "Interrupted: the same command continues where this one stopped.\n"
        code, out, err = run(url, GOOD)
    assert code == 0
    assert "1 of 3 requests were stored by an interrupted run" in err
    assert "5 of 5 labels created" in out
    assert [body["category"] + " " + body["mode"] for body in proxy.bodies] == [
        "cat POSITIVE",
        "cat far away",
        "cat far away",
        "dog NEGATIVE",
    ]
    assert server_b.stored() == STORED


def test_two_at_once(server_b, begin, run):
    proxy = Proxy(server_b.url, ["hang"])
    with serve(proxy.handle) as url, begin(url, GOOD) as first:
        assert proxy.hanging.wait(30)
        code, _, err = run(url, GOOD)
        assert code == 1
        assert "Another ingest_labels.py is at work on these labels" in err
        first.kill()
        first.communicate()


def test_a_journal_of_something_else_is_refused(server_a, run):
    with serve(Proxy(server_a.url, [None, 400]).handle) as url:
        assert run(url, GOOD)[0] == 1
        code, _, err = run(url, GOOD | {"c.jpeg": ["cat"]}, "--user", "bob@x.org")
        assert code == 1
        assert "user 'ann@x.org', now 'bob@x.org'; label file sha256" in err
        assert "--restart" in err
        assert run(url, GOOD, "--restart")[0] == 0
    assert server_a.stored() == sorted([*STORED, *(STORED[i] for i in (0, 3, 4))])


def test_a_damaged_journal_is_refused(server_b, run, tmp_path):
    (tmp_path / "labels.json.birds.journal").write_text("{}\n{}\n")
    code, _, err = run(server_b.url, GOOD)
    assert code == 1
    assert "labels.json.birds.journal is not a journal" in err
    assert run(server_b.url, GOOD, "--restart")[0] == 0


def test_a_directory_that_cannot_be_written(server_b, run, tmp_path):
    code, _, err = run(server_b.url, GOOD, "--work-dir", "missing")
    assert code == 1
    assert "Cannot write the journal missing/labels.json.birds.journal" in err
    assert "--work_dir" in err


def test_many_labels_go_in_requests_of_bounded_size(run):
    """100,000 labels of one category, to a server that only counts them."""
    sizes, seen = [], []

    async def handle(request):
        body = await request.read()
        if request.method == "OPTIONS":
            return web.Response(status=404)
        if LABELS in request.path:
            sizes.append(int(request.headers["Content-Length"]))
            seen.extend(json.loads(body)["identifiers"])
            return web.json_response({"created": len(json.loads(body)["identifiers"])})
        return web.json_response({"index_id": "none", "num_train": 1, "num_val": 1})

    with serve(handle) as url:
        code, out, _ = run(url, {f"image é {n:06}.jpg": ["cat"] for n in range(100_000)})
    assert code == 0
    assert "100,000 of 100,000 labels created in 3 requests." in out
    assert max(sizes) <= 1_000_000
    assert seen == [f"image é {n:06}" for n in range(100_000)]


def test_help():
    command = [sys.executable, ROOT / "ingest_labels.py", "--help"]
    out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    words = " ".join(out.split())
    for text in ("Example: SERVER_URL=", "--user EMAIL", "--skip_unknown", "also SERVER_URL"):
        assert text in words


def test_help_imports_no_network_library():
    """They would make it slow: google-cloud-storage alone takes half a second."""
    program = "import sys, ingest_labels; print(*sys.modules)"
    command = [sys.executable, "-c", program]
    out = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT).stdout
    assert not {"torch", "google.cloud", "aiohttp", "numpy"} & set(out.split())
