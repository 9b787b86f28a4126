"""The local Forager as a real process over HTTP, on an emulated bucket."""

import json
import os
import re
import signal
import sqlite3
import subprocess
import sys
import uuid
from contextlib import contextmanager
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import pytest

import gcs
from common.program import ROOT

LABELS = "api/add_annotations_by_internal_identifiers_v2"


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


@contextmanager
def process(data_dir, generation, *options):
    command = [sys.executable, "-m", "local_forager", "--port", "0", "--data_dir", str(data_dir)]
    with subprocess.Popen(
        [*command, "--generation", generation, *options],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env=os.environ | {"PYTHONUNBUFFERED": ""},
    ) as server:
        try:
            line = server.stdout.readline()
            yield server, line, re.search(r"http://\S+", line)[0]
        finally:
            server.terminate()


@pytest.fixture
def start(tmp_path, images):
    """A function that starts a server of a generation and returns its address."""
    running = []

    def begin(generation):
        context = process(tmp_path / f"data-{generation}-{len(running)}", generation)
        running.append(context)
        return context.__enter__()[2]

    yield begin
    for context in running:
        context.__exit__(None, None, None)


def ask(url, payload=None, method=None, headers=None):
    """Status, content type and body (parsed where it is JSON) of the answer."""
    data = payload if isinstance(payload, bytes) else payload and json.dumps(payload).encode()
    request = Request(url, data, headers or {}, method=method)
    try:
        response = urlopen(request, timeout=30)
    except HTTPError as error:
        response = error
    with response:
        body, kind = response.read(), response.headers.get_content_type()
        return response.status, kind, json.loads(body) if "json" in kind else body.decode()


def create(server, bucket, name="birds", train="train/", val="val/"):
    payload = {
        "dataset": name,
        "train_path": f"gs://{bucket}/{train}",
        "val_path": f"gs://{bucket}/{val}",
        "index_id": "index-of-" + name,
    }
    return ask(f"{server}/api/create_dataset_v2", payload)


def counts(server, name="birds"):
    info = ask(f"{server}/api/get_dataset_info_v2/{name}")[2]
    return info["num_train"], info["num_val"]


def label(server, generation, identifiers, mode="POSITIVE", category="bird", name="birds", **more):
    payload = {"identifiers": identifiers, "user": "a@b.c", "category": category}
    if generation == "A":
        payload |= {"value": mode, "mode": "ingest"}
    else:
        payload |= {"mode": mode, "created_by": "ingest"}
    return ask(f"{server}/{LABELS}/{name}", payload | more)


def stored_labels(tmp_path):
    (path,) = tmp_path.glob("data-*/forager.sqlite3")
    connection = sqlite3.connect(path)
    rows = connection.execute(
        "SELECT identifier, category, mode, created_by FROM label JOIN item ON item.id = item "
        "ORDER BY label.id"
    ).fetchall()
    connection.close()
    return rows


both = pytest.mark.parametrize("generation", ["A", "B"])


@both
def test_create_counts_and_lists(start, images, generation):
    server = start(generation)
    bucket = images("train/a.jpg", "train/b/c.jpeg", "train/d.png", "val/e.jpg")
    assert create(server, bucket) == (200, "application/json", {"status": "success"})
    info = ask(f"{server}/api/get_dataset_info_v2/birds")[2]
    expected = {"index_id": "index-of-birds", "num_train": 3, "num_val": 1}
    assert info == expected | ({"categories": {}} if generation == "A" else {})
    assert ask(f"{server}/api/get_datasets_v2")[2] == {"dataset_names": ["birds"]}


def test_create_takes_lower_case_image_suffixes_only(start, images):
    server = start("B")
    names = ["train/a.jpg", "train/b.JPG", "train/c.txt", "train/d.webp", "train/e.png.gz"]
    create(server, images(*names))
    assert counts(server) == (1, 0)


@pytest.mark.parametrize(("train", "expected"), [("train", 3), ("train/", 1), ("train//", 0)])
def test_create_lists_by_plain_prefix(start, images, train, expected):
    server = start("B")
    create(server, images("train/a.jpg", "train2/b.jpg", "train.jpg"), train=train)
    assert counts(server) == (expected, 0)


@both
def test_create_twice_is_refused(start, images, generation):
    server = start(generation)
    bucket = images("train/a.jpg")
    assert create(server, bucket)[0] == 200
    status, kind, page = create(server, bucket)
    assert (status, kind) == (500, "text/html")
    assert "<title>IntegrityError at /api/create_dataset_v2</title>" in page
    assert counts(server) == (1, 0)


def test_create_with_a_name_too_long(start, images):
    server = start("B")
    bucket = images("train/a.jpg")
    assert create(server, bucket, name="n" * 51)[:2] == (500, "text/html")
    assert create(server, bucket, name="n" * 50)[0] == 200
    assert ask(f"{server}/api/get_datasets_v2")[2] == {"dataset_names": ["n" * 50]}


def test_create_accepts_names_that_never_open(start, images):
    server = start("B")
    assert create(server, images("train/a.jpg"), name="my birds")[0] == 200
    assert ask(f"{server}/api/get_dataset_info_v2/my%20birds")[:2] == (404, "text/html")
    assert ask(f"{server}/api/get_datasets_v2")[2] == {"dataset_names": ["my birds"]}


def test_duplicates_are_kept_by_a(start, images):
    server = start("A")
    assert create(server, images("train/x/a.jpg", "train/y/a.png", "val/a.jpg"))[0] == 200
    assert counts(server) == (2, 1)
    assert label(server, "A", ["a"])[2] == {"created": 3}


def test_duplicates_leave_an_empty_dataset_on_b(start, images):
    server = start("B")
    assert create(server, images("train/a.jpg", "val/a.jpg"))[:2] == (500, "text/html")
    assert counts(server) == (0, 0)
    assert create(server, images("train/a.jpg"))[0] == 500


@both
@pytest.mark.parametrize("name", ["i" * 301 + ".jpg", "d/" * 299 + "abc.jpg"])
def test_long_names_leave_an_empty_dataset(start, images, generation, name):
    server = start(generation)
    assert create(server, images(f"train/{name}"))[:2] == (500, "text/html")
    assert counts(server) == (0, 0)


def test_the_longest_names_fit(start, images):
    server = start("B")
    names = ["train/" + "i" * 300 + ".jpg", "train/" + "d/" * 294 + "ab.jpg"]
    assert len(names[1]) == 600
    assert create(server, images(*names))[0] == 200
    assert counts(server) == (2, 0)


def test_create_of_a_missing_bucket_saves_nothing(start):
    server = start("B")
    assert create(server, "no-such-bucket")[:2] == (500, "text/html")
    assert ask(f"{server}/api/get_dataset_info_v2/birds")[0] == 404


@pytest.mark.parametrize("body", [b"{", b"[]", b"{}", b'{"dataset": "x"}', b""])
def test_create_with_a_bad_body(start, body):
    server = start("B")
    url = f"{server}/api/create_dataset_v2"
    assert ask(url, body, method="POST")[:2] == (500, "text/html")


def test_unknown_dataset_is_json_and_unknown_route_html(start):
    server = start("B")
    unknown = (404, "application/json", {"detail": "Not found."})
    assert ask(f"{server}/api/get_dataset_info_v2/birds") == unknown
    assert ask(f"{server}/{LABELS}/birds", {}) == unknown
    for path in ("api/get_dataset_info/birds", "api/get_dataset_info_v2/", "api/nothing"):
        assert ask(f"{server}/{path}")[:2] == (404, "text/html")


def test_wrong_method(start):
    server = start("B")
    status, kind, body = ask(f"{server}/api/create_dataset_v2")
    assert (status, kind, body) == (
        405,
        "application/json",
        {"detail": 'Method "GET" not allowed.'},
    )
    assert ask(f"{server}/api/get_dataset_info_v2/birds", {"a": 1})[0] == 405


@pytest.mark.parametrize(("generation", "status"), [("A", 404), ("B", 200)])
def test_options_tell_the_generations_apart(start, generation, status):
    server = start(generation)
    assert ask(f"{server}/api/add_annotations_multi_v2", method="OPTIONS")[0] == status


@both
def test_labels_count_known_images_once(start, images, generation):
    server = start(generation)
    create(server, images("train/a.jpg", "val/b.jpg"))
    answer = label(server, generation, ["a", "b", "a", "unknown"])
    assert answer == (200, "application/json", {"created": 2})
    assert label(server, generation, ["unknown"])[2] == {"created": 0}


def test_labels_again_append_on_a(start, images, tmp_path):
    server = start("A")
    create(server, images("train/a.jpg"))
    assert label(server, "A", ["a"])[2] == {"created": 1}
    assert label(server, "A", ["a"], mode="occluded")[2] == {"created": 1}
    assert stored_labels(tmp_path) == [
        ("a", "bird", "POSITIVE", "ingest"),
        ("a", "bird", "occluded", "ingest"),
    ]
    categories = ask(f"{server}/api/get_dataset_info_v2/birds")[2]["categories"]
    assert categories == {"bird": ["occluded"]}


def test_labels_again_replace_on_b(start, images, tmp_path):
    server = start("B")
    create(server, images("train/a.jpg"))
    label(server, "B", ["a"])
    label(server, "B", ["a"], category="sky")
    assert label(server, "B", ["a"], mode="NEGATIVE")[2] == {"created": 1}
    assert stored_labels(tmp_path) == [
        ("a", "sky", "POSITIVE", "ingest"),
        ("a", "bird", "NEGATIVE", "ingest"),
    ]


def test_payload_of_a_is_silently_wrong_on_b(start, images, tmp_path):
    server = start("B")
    create(server, images("train/a.jpg"))
    assert label(server, "A", ["a"])[2] == {"created": 1}
    assert stored_labels(tmp_path) == [("a", "bird", "ingest", "tag")]


def test_payload_of_b_fails_on_a(start, images, tmp_path):
    server = start("A")
    create(server, images("train/a.jpg"))
    assert label(server, "B", ["a"])[:2] == (500, "text/html")
    assert stored_labels(tmp_path) == []


@both
@pytest.mark.parametrize("field", ["category", "user", "mode"])
def test_long_label_texts(start, images, generation, field):
    server = start(generation)
    create(server, images("train/a.jpg"))
    key = "value" if (generation, field) == ("A", "mode") else field
    assert label(server, generation, ["a"], **{key: "x" * 300})[0] == 200
    assert label(server, generation, ["a"], **{key: "x" * 301})[:2] == (500, "text/html")


@pytest.mark.parametrize(("size", "status"), [(2_621_440, 200), (2_621_441, 400)])
def test_body_limit(start, images, size, status):
    server = start("B")
    create(server, images("train/a.jpg"))
    body = json.dumps({"identifiers": ["a"], "user": "u", "category": "c", "mode": "m"}).encode()
    answer = ask(f"{server}/{LABELS}/birds", body.ljust(size), method="POST")
    assert answer[0] == status
    assert answer[1] == ("text/html" if status == 400 else "application/json")


def test_errors_escape_what_they_quote(start, images):
    server = start("A")
    status, _, page = create(server, "<script>alert(1)</script>")
    assert status == 500
    assert "<script" not in page


def test_other_hosts_are_refused(start):
    server = start("B")
    assert ask(f"{server}/api/get_datasets_v2", headers={"Host": "localhost:8000"})[0] == 200
    assert ask(f"{server}/api/get_datasets_v2", headers={"Host": "evil.example"})[0] == 400


def test_posts_of_other_sites_are_refused(start, images):
    server = start("B")
    headers = {"Sec-Fetch-Site": "cross-site", "Content-Type": "text/plain"}
    assert ask(f"{server}/api/create_dataset_v2", {"dataset": "x"}, headers=headers)[0] == 403


@both
def test_data_outlives_the_process(images, tmp_path, generation):
    bucket = images("train/a.jpg")
    with process(tmp_path, generation) as (_, line, server):
        assert f"generation {generation}" in line
        create(server, bucket)
        label(server, generation, ["a"])
    with process(tmp_path, generation) as (_, _, server):
        assert counts(server) == (1, 0)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals_end_it_cleanly(tmp_path, number):
    with process(tmp_path, "B") as (server, _, _):
        server.send_signal(number)
        assert server.wait(10) == 0


def test_port_in_use_is_one_sentence(start, tmp_path):
    port = start("B").rpartition(":")[2]
    command = [sys.executable, "-m", "local_forager", "--port", port, "--data_dir", str(tmp_path)]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert result.returncode == 1
    assert "choose another --port" in result.stderr
    assert "Traceback" not in result.stderr
