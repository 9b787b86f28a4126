"""The local Forager's API as a real process over HTTP, on an emulated bucket."""

import json
import signal
import sqlite3
import sys
import uuid
from contextlib import closing

import pytest

import gcs
from common.program import ROOT
from testing.servers.processes import LONGEST_S, local_forager
from tests.harness import run
from tests.local_forager.page_server import ask

LABELS = "api/add_annotations_by_internal_identifiers_v2"


class ApiServer:
    """A server of one generation, and a dataset name that only one test uses."""

    def __init__(self, url, generation, data_dir, name):
        self.url, self.generation, self.data_dir, self.name = url, generation, data_dir, name

    def create(self, bucket, name=None, train="train/", headers=None):
        paths = {"train_path": f"gs://{bucket}/{train}", "val_path": f"gs://{bucket}/val/"}
        payload = {"dataset": name or self.name, "index_id": "some-index", **paths}
        return ask(f"{self.url}/api/create_dataset_v2", payload, headers=headers)

    def info(self):
        return ask(f"{self.url}/api/get_dataset_info_v2/{self.name}")

    def counts(self):
        info = self.info()[2]
        return info["num_train"], info["num_val"]

    def names(self):
        return ask(f"{self.url}/api/get_datasets_v2")[2]["dataset_names"]

    def label(self, identifiers, mode="POSITIVE", category="bird", generation=None, **more):
        """Send labels with the payload of the server's generation, or of another."""
        payload = {"identifiers": identifiers, "user": "a@b.c", "category": category}
        if (generation or self.generation) == "A":
            payload |= {"value": mode, "mode": "ingest"}
        else:
            payload |= {"mode": mode, "created_by": "ingest"}
        return ask(f"{self.url}/{LABELS}/{self.name}", payload | more)

    def stored_labels(self):
        query = (
            "SELECT identifier, category, mode, created_by FROM label JOIN item ON item.id = item "
            "JOIN dataset ON dataset.id = dataset WHERE name = ? ORDER BY label.id"
        )
        with closing(sqlite3.connect(self.data_dir / "forager.sqlite3")) as database:
            return database.execute(query, (self.name,)).fetchall()


@pytest.fixture
def start(servers, server_directories, dataset_name):
    """A function that returns an ApiServer of a generation."""
    return lambda generation: ApiServer(
        servers[generation], generation, server_directories[generation], dataset_name
    )


@pytest.fixture
def images(emulator):
    """A function that puts empty objects of these names in a new bucket and returns its name."""
    client = gcs.make_client()

    def put(*names):
        bucket = client.create_bucket(f"images-{uuid.uuid4()}")
        for name in names:
            bucket.blob(name).upload_from_string(b"")
        return bucket.name

    return put


both = pytest.mark.parametrize("generation", ["A", "B"])


@both
def test_create_counts_and_lists(start, images, generation):
    server = start(generation)
    bucket = images("train/a.jpg", "train/b/c.jpeg", "train/d.png", "val/e.jpg")
    assert server.create(bucket) == (200, "application/json", {"status": "success"})
    info = server.info()[2]
    assert info == {"index_id": "some-index", "num_train": 3, "num_val": 1}
    assert server.name in server.names()
    status, kind, page = server.create(bucket)
    assert (status, kind) == (500, "text/html")
    assert "<title>IntegrityError at /api/create_dataset_v2</title>" in page
    assert server.counts() == (3, 1)


SUFFIXES = ["train/a.jpg", "train/b.JPG", "train/c.txt", "train/d.webp", "train/e.png.gz"]
BESIDE = ["train/a.jpg", "train2/b.jpg", "train.jpg"]
DUPLICATES = ["train/x/a.jpg", "train/y/a.png", "val/a.jpg"]
LONG = ["i" * 301 + ".jpg", "d/" * 299 + "abc.jpg"]
LONGEST = ["train/" + "i" * 300 + ".jpg", "train/" + "d/" * 294 + "ab.jpg"]


@pytest.mark.parametrize(
    ("generation", "names", "train", "status", "counts"),
    [
        ("B", SUFFIXES, "train/", 200, (1, 0)),
        ("B", BESIDE, "train", 200, (3, 0)),
        ("B", BESIDE, "train/", 200, (1, 0)),
        ("B", BESIDE, "train//", 200, (0, 0)),
        ("A", DUPLICATES, "train/", 200, (2, 1)),
        ("B", DUPLICATES, "train/", 500, (0, 0)),  # an empty dataset stays
        *(("A", [f"train/{name}"], "train/", 500, (0, 0)) for name in LONG),
        *(("B", [f"train/{name}"], "train/", 500, (0, 0)) for name in LONG),
        ("B", LONGEST, "train/", 200, (2, 0)),
    ],
)
def test_create_keeps_what_fits(start, images, generation, names, train, status, counts):
    server, bucket = start(generation), images(*names)
    assert server.create(bucket, train=train)[0] == status
    assert server.counts() == counts
    assert server.create(bucket)[0] == 500  # the name is taken


def test_names_of_datasets(start, images):
    server, bucket = start("B"), images("train/a.jpg")
    name = server.name.ljust(50, "n")
    assert server.create(bucket, name=name + "n")[:2] == (500, "text/html")
    assert server.create(bucket, name=name)[0] == 200
    assert name in server.names() and name + "n" not in server.names()
    assert server.create(bucket, name=f"{server.name} x")[0] == 200  # no Forager can open it
    address = f"{server.url}/api/get_dataset_info_v2/{server.name}%20x"
    assert ask(address)[:2] == (404, "text/html")
    assert f"{server.name} x" in server.names()


def test_create_of_a_missing_bucket_saves_nothing(start):
    server = start("B")
    assert server.create("no-such-bucket")[:2] == (500, "text/html")
    assert server.info()[0] == 404
    status, _, page = server.create("<script>alert(1)</script>")
    assert status == 500 and "<script" not in page


def test_errors_are_json_or_html_as_those_of_real_servers(start):
    server = start("B")
    api = f"{server.url}/api"
    for body in (b"{", b"[]", b"{}", b'{"dataset": "x"}', b""):
        assert ask(f"{api}/create_dataset_v2", body, "POST")[:2] == (500, "text/html")
    unknown = (404, "application/json", {"detail": "Not found."})
    assert server.info() == server.label(["a"]) == unknown
    for path in ("get_dataset_info/birds", "get_dataset_info_v2/", "nothing"):
        assert ask(f"{api}/{path}")[:2] == (404, "text/html")
    not_allowed = {"detail": 'Method "GET" not allowed.'}
    assert ask(f"{api}/create_dataset_v2") == (405, "application/json", not_allowed)
    assert ask(f"{api}/get_dataset_info_v2/{server.name}", {"a": 1})[0] == 405


@pytest.mark.parametrize(("generation", "status"), [("A", 404), ("B", 200)])
def test_options_tell_the_generations_apart(start, generation, status):
    server = start(generation)
    assert ask(f"{server.url}/api/add_annotations_multi_v2", method="OPTIONS")[0] == status


@both
def test_labels_count_known_images_once(start, images, generation):
    server = start(generation)
    server.create(images("train/a.jpg", "val/b.jpg"))
    answer = server.label(["a", "b", "a", "unknown"])
    assert answer == (200, "application/json", {"created": 2})
    assert server.label(["unknown"])[2] == {"created": 0}


@pytest.mark.parametrize(
    ("generation", "stored"),
    [
        ("A", [("bird", "POSITIVE"), ("sky", "POSITIVE"), ("bird", "occluded")]),  # appends
        ("B", [("sky", "POSITIVE"), ("bird", "occluded")]),  # replaces
    ],
)
def test_labels_again(start, images, generation, stored):
    server = start(generation)
    server.create(images("train/a.jpg"))
    for category, mode in (("bird", "POSITIVE"), ("sky", "POSITIVE"), ("bird", "occluded")):
        assert server.label(["a"], mode=mode, category=category)[2] == {"created": 1}
    assert server.stored_labels() == [("a", *label, "ingest") for label in stored]


@pytest.mark.parametrize(
    ("generation", "other", "status", "stored"),
    [("B", "A", 200, [("a", "bird", "ingest", "tag")]), ("A", "B", 500, [])],  # silently wrong on B
)
def test_payload_of_the_other_generation(start, images, generation, other, status, stored):
    server = start(generation)
    server.create(images("train/a.jpg"))
    assert server.label(["a"], generation=other)[0] == status
    assert server.stored_labels() == stored


@both
@pytest.mark.parametrize("field", ["category", "user", "mode"])
def test_long_label_texts(start, images, generation, field):
    server = start(generation)
    server.create(images("train/a.jpg"))
    key = "value" if (generation, field) == ("A", "mode") else field
    assert server.label(["a"], **{key: "x" * 300})[0] == 200
    assert server.label(["a"], **{key: "x" * 301})[:2] == (500, "text/html")


@pytest.mark.parametrize(("size", "status"), [(2_621_440, 200), (2_621_441, 400)])
def test_body_limit(start, images, size, status):
    server = start("B")
    server.create(images("train/a.jpg"))
    body = json.dumps({"identifiers": ["a"], "user": "u", "category": "c", "mode": "m"}).encode()
    answer = ask(f"{server.url}/{LABELS}/{server.name}", body.ljust(size), method="POST")
    assert answer[0] == status
    assert answer[1] == ("text/html" if status == 400 else "application/json")


@pytest.mark.parametrize(
    "origin",
    ["http://evil.example", "http://localhost:1", "http://HOST.evil.example", "null", "http://["],
)
def test_posts_of_other_sites_are_refused(start, images, origin):
    """A page of another site can send text/plain without asking, and this server reads it."""
    server = start("B")
    host = server.url.removeprefix("http://")
    headers = {"Origin": origin.replace("HOST", host), "Content-Type": "text/plain"}
    bucket = images("train/a.jpg")
    assert server.create(bucket, headers=headers)[0] == 403
    assert server.info()[0] == 404
    assert server.create(bucket, headers={"Origin": server.url})[0] == 200


@both
def test_data_outlives_the_process(images, tmp_path, generation):
    bucket = images("train/a.jpg")
    options = tmp_path, tmp_path / "log", "--generation", generation
    with local_forager(*options) as service:
        assert f"generation {generation}" in (tmp_path / "log").read_text()
        server = ApiServer(service.url, generation, tmp_path, "birds")
        server.create(bucket)
        server.label(["a"])
    with local_forager(*options) as service:
        server = ApiServer(service.url, generation, tmp_path, "birds")
        assert server.counts() == (1, 0)
        assert len(server.stored_labels()) == 1


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals_end_it_cleanly(emulator, tmp_path, number):
    with local_forager(tmp_path, tmp_path / "log") as service:
        service.process.send_signal(number)
        assert service.process.wait(LONGEST_S) == 0


def test_port_in_use_is_one_sentence(start, tmp_path):
    port = start("B").url.rpartition(":")[2]
    command = [sys.executable, "-m", "local_forager", "--port", port, "--data_dir", str(tmp_path)]
    run(command, cwd=ROOT).failed("choose another --port")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--data_dir", "{file}/data"], "/data cannot be written (Not a directory): name another"),
        (["--host", "192.0.2.1"], "--host is an address of this machine: 127.0.0.1, or 0.0.0.0"),
    ],
)
def test_a_server_that_cannot_start(tmp_path, options, words):
    (tmp_path / "file").touch()
    options = [option.format(file=tmp_path / "file") for option in options]
    data_dir = ["--data_dir", str(tmp_path / "data")]
    command = [sys.executable, "-m", "local_forager", "--port", "0", *data_dir, *options]
    run(command, cwd=ROOT).refused(words)
