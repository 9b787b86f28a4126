"""The page's API over HTTP: every answer as page_types.py and docs/page-api.md describe it."""

import json
import pickle
import re
import tracemalloc
import typing
import uuid
from pathlib import Path
from urllib.error import HTTPError
from urllib.parse import quote
from urllib.request import Request, urlopen

import numpy as np
import pytest

import gcs
from common.program import ROOT
from local_forager import types as page_types
from local_forager.analysis import index_copy, text_search
from local_forager.page import api as page_api
from testing import synthetic
from testing.servers import local_forager

INDEX_ID = str(uuid.UUID(int=7))
NAMES = [f"d/train/t{row:02}.jpg" for row in range(20)] + [f"d/val/v{row}.png" for row in range(8)]
FAILED, COPY = 4, 25  # rows; the latter, of validation, has the picture of row 2


def fetch(url, headers=None):
    try:
        response = urlopen(Request(url, headers=headers or {}), timeout=30)
    except HTTPError as error:
        response = error
    with response:
        return response.status, response.headers, response.read()


def get(url):
    status, headers, body = fetch(url)
    assert headers["Content-Type"].startswith("application/json"), (url, status, body[:200])
    return status, json.loads(body)


def post(url, payload):
    with urlopen(Request(url, json.dumps(payload).encode()), timeout=60) as response:
        return json.loads(response.read())


def create(server, images, index_id, name="d"):
    paths = {"train_path": f"gs://{images}/d/train/", "val_path": f"gs://{images}/d/val/"}
    post(f"{server}/api/create_dataset_v2", {"dataset": name, "index_id": index_id, **paths})


def label(server, identifiers, category, mode="POSITIVE"):
    payload = {"identifiers": identifiers, "user": "a@b.c", "category": category, "mode": mode}
    post(f"{server}/api/add_annotations_by_internal_identifiers_v2/d", payload)


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    return tmp_path_factory.mktemp("page")


@pytest.fixture(scope="module")
def server(emulator_url, data_dir):
    """One server for the tests that read: a dataset with labels, a failed image and a duplicate."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("STORAGE_EMULATOR_HOST", emulator_url)
        client = gcs.make_client()
        images, index = (client.create_bucket(f"page-{uuid.uuid4()}").name for _ in range(2))
        synthetic.publish(client, images, index, INDEX_ID, NAMES, 20, {FAILED}, {COPY: 2})
        service = local_forager(data_dir, data_dir / "log", "--bucket", index)
    create(service.url, images, INDEX_ID)
    label(service.url, ["t00", "t01", "v0"], "bird")
    label(service.url, ["t01"], "sky", "NEGATIVE")
    assert get(f"{service.url}/page/d/dataset")[1]["index"]["state"] == "ready"
    yield service.url
    service.stop()


def array(url, kind):
    """An array from the page's API, asked for again while it is being computed."""
    while (answer := fetch(url))[0] == 202:
        conforms(json.loads(answer[2]), page_types.Working)
    assert answer[0] == 200, answer[2]
    return np.frombuffer(answer[2], kind)


def conforms(value, kind, where="answer"):
    """Fail unless value has exactly the keys and types of the typed dict."""
    if typing.is_typeddict(kind):
        hints = typing.get_type_hints(kind)
        assert isinstance(value, dict) and set(value) == set(hints), (where, value)
        for key, hint in hints.items():
            conforms(value[key], hint, f"{where}.{key}")
    elif typing.get_origin(kind) is list:
        assert isinstance(value, list), where
        for item in value:
            conforms(item, typing.get_args(kind)[0], where)
    elif typing.get_args(kind):
        assert type(value) in typing.get_args(kind), (where, value)
    else:
        assert type(value) is kind, (where, value)


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/page/datasets", page_types.DatasetList),
        ("/page/d/dataset", page_types.DatasetPage),
        ("/page/d/images?rows=0,1,4", page_types.ImageList),
        ("/page/d/image/1", page_types.ImageDetail),
        ("/page/d/image/4", page_types.ImageDetail),
        ("/page/d/neighbours/1?by=imagenet&count=3", page_types.NeighbourList),
        ("/page/d/health", page_types.HealthReport),
    ],
)
def test_answers_are_as_typed(server, path, kind):
    status, answer = get(server + path)
    assert status == 200
    conforms(answer, kind)


def rows(server, query=""):
    return array(f"{server}/page/d/rows?{query}", "<i4").tolist()


def test_everything_about_one_dataset(server):
    page = get(f"{server}/page/d/dataset")[1]
    assert (page["rows"], page["rows_train"], page["failed"], page["labelled"]) == (28, 20, 1, 3)
    assert page["index"]["state"] == "ready" and page["warnings"] == []
    assert page["categories"] == [
        {"category": "bird", "count": 3, "modes": [{"mode": "POSITIVE", "count": 3}]},
        {"category": "sky", "count": 1, "modes": [{"mode": "NEGATIVE", "count": 1}]},
    ]
    detail = get(f"{server}/page/d/image/1")[1]
    assert detail["path"].endswith("/d/train/t01.jpg") and detail["split"] == "train"
    assert (detail["width"], detail["height"], detail["problem"]) == (200, 150, "")
    assert [label["category"] for label in detail["labels"]] == ["bird", "sky"]
    failed = get(f"{server}/page/d/image/{FAILED}")[1]
    assert failed["failed"] and failed["imagenet_class"] is None
    assert (failed["bytes"], failed["width"]) == (0, None) and failed["problem"]


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("", list(range(28))),
        ("split=val", list(range(20, 28))),
        ("split=train&category=bird", [0, 1]),
        ("category=sky&mode=NEGATIVE", [1]),
        ("category=sky&mode=POSITIVE", []),
        ("category=nothing", []),
        ("labelled=yes", [0, 1, 20]),
        ("labelled=no&split=val", list(range(21, 28))),
        ("set=failed", [FAILED]),
        ("set=exact", [-1 - 2, COPY]),
        ("set=near&by=imagenet", [-1 - 2, COPY]),
        ("set=leak", [-1 - 2, COPY]),
        ("set=leak&split=val", [-1 - COPY]),
        ("set=disagree", []),
    ],
)
def test_rows(server, query, expected):
    assert rows(server, query) == expected


def test_rows_by_likeness(server):
    order = rows(server, "like=2&by=clip")
    assert set(order[:2]) == {2, COPY}
    assert len(order) == 27 and FAILED not in order
    near = get(f"{server}/page/d/neighbours/2?count=5")[1]["neighbours"]
    assert near[0]["distance"] == 0 and near[0]["image"]["row"] == COPY
    assert [one["image"]["row"] for one in near[1:]] == [
        row for row in order[:7] if row not in (2, COPY)
    ][:4]


def test_rows_of_a_class(server):
    number = get(f"{server}/page/d/image/1")[1]["imagenet_class"]
    classes = array(f"{server}/page/d/column/class", "<i4")
    assert rows(server, f"class={number}") == np.flatnonzero(classes == number).tolist() != []
    assert classes[FAILED] == -1


def test_map_and_columns(server):
    points = array(f"{server}/page/d/map?by=imagenet", "<f4").reshape(-1, 2)
    assert points.shape == (28, 2) and np.isnan(points[FAILED]).all()
    assert np.isfinite(np.delete(points, FAILED, axis=0)).all()
    split = array(f"{server}/page/d/column/split", "<i4")
    assert split.tolist() == [0] * 20 + [1] * 8
    by_label = array(f"{server}/page/d/column/label", "<i4")
    assert np.flatnonzero(by_label == 0).tolist() == [0, 1, 20]
    assert set(by_label.tolist()) == {-1, 0}


def test_labels_written_later_are_there_at_once(server):
    before = get(f"{server}/page/d/dataset")[1]
    label(server, ["t05"], "bird")
    after = get(f"{server}/page/d/dataset")[1]
    assert after["version"] != before["version"]
    assert rows(server, "category=bird") == [0, 1, 5, 20]
    label(server, ["t05"], "bird", "TOMBSTONE")
    assert rows(server, "category=bird") == [0, 1, 20]


def test_pictures(server):
    for path, row in (("thumbnail/1", 1), ("original/1", 1), ("cover/0", 0)):
        status, headers, body = fetch(f"{server}/page/d/{path}?v={INDEX_ID}")
        assert (status, headers["Content-Type"]) == (200, "image/jpeg")
        assert body == synthetic.landscape(row)
        assert "immutable" in headers["Cache-Control"]
        assert "sandbox" in headers["Content-Security-Policy"]
    assert fetch(f"{server}/page/d/thumbnail/{FAILED}")[0] == 204
    assert fetch(f"{server}/page/d/thumbnail/1")[1]["Cache-Control"] == "no-cache"


def test_thumbnails_are_kept(server, data_dir):
    fetch(f"{server}/page/d/thumbnail/1")
    kept = [path.read_bytes() for path in (data_dir / "thumbnails").rglob("*.jpg")]
    assert synthetic.landscape(1) in kept


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("nothing/dataset", 404),
        ("d/image/28", 404),
        ("d/image/x", 404),
        ("d/images?rows=1,x", 400),
        ("d/images?rows=" + "1," * 600 + "1", 400),
        ("d/rows?split=test", 400),
        ("d/rows?set=all", 400),
        ("d/rows?class=-1", 400),
        ("d/rows?like=99", 400),
        ("d/rows?text=dog", 409),
        ("d/neighbours/1?by=vgg", 400),
        ("d/neighbours/1?count=0", 400),
        (f"d/neighbours/{FAILED}", 409),
        ("d/map?method=tsne", 400),
        ("d/column/size", 404),
    ],
)
def test_wrong_questions(server, path, status):
    answer = fetch(f"{server}/page/{path}")
    assert answer[0] == status
    if "json" in answer[1]["Content-Type"]:
        conforms(json.loads(answer[2]), page_types.Problem)


def test_dataset_without_index(make_bucket, forager):
    server = forager("B", make_bucket())
    create(server, make_bucket(), "no-such-index")
    page = get(f"{server}/page/d/dataset")[1]
    assert page["index"]["state"] == "missing"
    assert "no-such-index" in page["index"]["detail"]
    assert fetch(f"{server}/page/d/rows")[0] == 409


def test_index_of_another_size(make_bucket, forager):
    images, index = make_bucket(), make_bucket()
    client = gcs.make_client()
    synthetic.publish(client, images, index, "i", NAMES[:3], 3)
    client.bucket(index).blob("indexes/i/local/clip/embeddings.npy").upload_from_string(b"short")
    server = forager("B", index)
    create(server, images, "i")
    assert "clip" in get(f"{server}/page/d/dataset")[1]["index"]["detail"]


def test_server_and_index_disagree(make_bucket, forager):
    images, index = make_bucket(), make_bucket()
    client = gcs.make_client()
    synthetic.publish(client, images, index, "i", NAMES[:3], 3)
    client.bucket(images).blob("d/train/late.jpg").upload_from_string(b"")
    server = forager("B", index)
    create(server, images, "i")
    (warning,) = get(f"{server}/page/d/dataset")[1]["warnings"]
    assert "4 training" in warning


@pytest.mark.parametrize("index_id", ["../../escape", "/etc", ".", "a/b", "x" * 300])
def test_index_ids_never_become_paths(tmp_path, index_id):
    copies = index_copy.IndexCopies(None, "foragerml", tmp_path)
    assert copies.directory(index_id).parent == tmp_path / "indexes"
    assert ".." not in str(copies.directory(index_id))


class Evil:
    def __reduce__(self):
        return (exec, ("raise SystemExit('the pickle ran code')",))


@pytest.mark.parametrize("value", [Evil(), {"a": Evil()}, [1], {"a": "b"}, {1: 1}, {"a": True}])
def test_classes_are_plain_data_only(tmp_path, value):
    path = tmp_path / "imagenet.pickle"
    path.write_bytes(pickle.dumps(value))
    with pytest.raises(index_copy.IndexProblem):
        index_copy.read_classes(path, 10)


def test_classes_are_read(tmp_path):
    path = tmp_path / "imagenet.pickle"
    classes = {f"{row}.jpg": row % 1000 for row in range(60_000)}
    assert index_copy.read_classes(path, 0) == {}
    path.write_bytes(pickle.dumps(classes))
    assert index_copy.read_classes(path, len(classes)) == classes
    with pytest.raises(index_copy.IndexProblem, match="has far too many parts"):
        index_copy.read_classes(path, 10)


def test_a_pickle_of_nine_bytes_takes_no_memory(tmp_path):
    """It writes to place 2**28 of the memo, for which Python's C reader allocates 4 GB."""
    path = tmp_path / "imagenet.pickle"
    path.write_bytes(b"}r\x00\x00\x00\x10.")
    tracemalloc.start()
    try:
        assert index_copy.read_classes(path, 10) == {}
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()


def test_text_search_says_why_not(tmp_path, weights_dir):
    assert "--clip_weights" in text_search.why_not(None)
    assert "cannot be read" in text_search.why_not(tmp_path)
    assert "no text tower" in text_search.why_not(weights_dir / "clip-vit-base-patch32")


def test_headers_keep_other_sites_out(server):
    status, headers, _ = fetch(f"{server}/d")
    assert status == 200
    policy = headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy and "unsafe" not in policy
    for path in ("/", "/page/datasets", "/static/app.js", "/page/d/thumbnail/1"):
        headers = fetch(server + path)[1]
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert headers["Cross-Origin-Resource-Policy"] == "same-origin"
    assert fetch(f"{server}/page/datasets", {"Host": "evil.example"})[0] == 400


@pytest.mark.parametrize("path", ["../__main__.py", "..%2f__main__.py", "%2e%2e/api.py", ""])
def test_static_files_only(server, path):
    assert fetch(f"{server}/static/{path}")[0] in (403, 404)


def test_unknown_dataset_is_the_page_with_404(server):
    status, headers, body = fetch(f"{server}/{quote('nothing-here')}")
    assert status == 404 and b'id="main"' in body
    assert headers["Content-Type"].startswith("text/html")


def test_every_answer_is_documented():
    text = (ROOT / "docs" / "page-api.md").read_text()
    for name, kind in vars(page_types).items():
        if typing.is_typeddict(kind):
            assert f"`{name}`" in text, name
    source = Path(page_api.__file__).read_text()
    for route in re.findall(r'f"\{name\}/([a-z]+)', source):
        assert f"/{route}" in text, route
