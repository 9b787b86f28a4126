"""The page's API over HTTP: every answer as types.py and docs/page-api.md describe it."""

import dataclasses
import json
import pickle
import re
import typing
from pathlib import Path
from urllib.parse import quote

import numpy as np
import pytest

import gcs
from common.program import ROOT
from local_forager import types as page_types
from local_forager.analysis import text_search
from local_forager.indexes import index
from local_forager.page import routes
from local_forager.page.datasets import warnings_of
from local_forager.server.database import SplitCounts
from local_forager.types import PageError
from testing import synthetic
from tests.harness import wait_for
from tests.local_forager.page_server import COPY, FAILED, SHAPES, conforms, fetch, get, made_index

NORMAL = [row for row in range(80) if row not in (FAILED, *SHAPES)]  # images of 200x150
BY_BYTES = sorted(  # rows of validation, the smallest file first
    range(60, 80), key=lambda row: len(synthetic.landscape(2 if row == COPY else row))
)
WRONG_FILTERS = (
    *("sort=x", "sort=-", "failed=x", "with=a&" * 51, "or=a&" * 51, "max_x=1", "is_x=1", "min_=1"),
    *("max_aspect=x", "min_bytes=", "min_width=nan", "set=dark&threshold=x", "min_width=1_0"),
)


@pytest.fixture
def url(server):
    return server.url


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("datasets", page_types.DatasetList),
        ("d/dataset", page_types.DatasetPage),
        ("d/images?rows=0,1,4", page_types.ImageList),
        ("d/image/1", page_types.ImageDetail),
        ("d/image/4", page_types.ImageDetail),
        ("d/neighbours/1?by=imagenet&count=3", page_types.NeighbourList),
        ("d/health", page_types.HealthReport),
        ("d/counts?category=bird&split=val", page_types.FacetCounts),
        ("deletion?name=d", page_types.DeletionPlan),
    ],
)
def test_answers_are_as_typed(server, path, kind):
    server.typed(path, kind)


def test_other_counts_than_the_index_has_are_a_warning_unless_images_vanished():
    failed = np.array([True, False, False, False, False])
    with_vanished = made_index(["x"] * 5, 3, failed=failed)
    complete = dataclasses.replace(with_vanished, failed=np.zeros(5, bool))
    for counts, warns in (((3, 2), False), ((2, 2), True), ((3, 1), True), ((4, 2), True)):
        assert bool(warnings_of(SplitCounts(*counts), complete)) == warns
    assert warnings_of(SplitCounts(2, 2), with_vanished) == []
    assert len(warnings_of(SplitCounts(3, 1), with_vanished)) == 1


def test_everything_about_one_dataset(url):
    page = get(f"{url}/page/d/dataset")[1]
    assert (page["rows"], page["rows_train"], page["labelled"]) == (80, 60, 6)
    assert page["index"]["state"] == "ready" and page["warnings"] == []
    assert page["categories"] == [
        {
            "category": "bird",
            "count": 5,
            "modes": [{"mode": "POSITIVE", "count": 4}, {"mode": "NEGATIVE", "count": 1}],
        },
        {"category": "sky", "count": 2, "modes": [{"mode": "far away", "count": 2}]},
    ]
    detail = get(f"{url}/page/d/image/1")[1]
    assert detail["name"] == "d/train/t01.jpg" and detail["split"] == "train"
    assert (detail["width"], detail["height"], detail["problem"]) == (200, 150, "")
    assert [label["category"] for label in detail["labels"]] == ["bird", "sky"]
    failed = get(f"{url}/page/d/image/{FAILED}")[1]
    assert failed["failed"] and failed["imagenet_class"] is None
    assert (failed["bytes"], failed["width"]) == (0, None) and failed["problem"]


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("", list(range(80))),
        ("split=val", list(range(60, 80))),
        ("split=train&category=bird", [0, 1, 2, 3]),
        ("category=bird&mode=NEGATIVE", [3]),
        ("category=sky&mode=POSITIVE", []),
        ("category=nothing", []),
        ("labelled=yes", [0, 1, 2, 3, 7, 60]),
        ("labelled=no&split=val", list(range(61, 80))),
        ("set=failed", [FAILED]),
        ("with=bird", [0, 1, 2, 60]),
        ("with=bird%00NEGATIVE", [3]),
        ("with=bird%00&with=sky%00far%20away", [1]),
        ("with=bird%00&without=sky%00", [0, 2, 3, 60]),
        ("category=bird&mode=POSITIVE&without=sky%00", [0, 2, 60]),
        ("without=bird%00&labelled=yes", [7]),
        ("without=bird&labelled=yes", [3, 7]),
        ("name_part=T0&split=train", list(range(10))),
        ("failed=yes", [FAILED]),
        ("max_bytes=0", [FAILED]),
        ("category=sky&or=bird%00", [0, 1, 2, 3, 7, 60]),
        ("category=sky&or=bird", [0, 1, 2, 7, 60]),
        ("category=bird&mode=NEGATIVE&or=sky%00", [1, 3, 7]),
        ("or=sky%00far%20away&without=bird", [7]),
        ("or=sky%00&or=bird&with=sky%00&split=train", [1, 7]),
        ("min_width=201", [10, 11]),
        ("max_width=199", [12]),
        ("min_height=150&max_height=150&max_width=200", NORMAL),
        ("min_aspect=1.333&max_aspect=1.333", NORMAL),
        ("max_aspect=1.332", [12]),
        ("min_aspect=1.334", [10, 11]),
        ("sort=widest&max_bytes=999999&min_width=201", [10, 11]),
        ("sort=name-backwards&split=val", list(range(79, 59, -1))),
        ("set=exact", [-1 - 2, COPY]),
        ("set=near&by=imagenet", [-1 - 2, COPY]),
        ("set=leak", [-1 - 2, COPY]),
        ("set=leak&split=val", [-1 - COPY]),
        ("set=near&by=imagenet&distance=0", [-1 - 2, COPY]),
        ("set=leak&distance=0.001", [-1 - 2, COPY]),
        ("set=disagree", []),
    ],
)
def test_rows(server, query, expected):
    assert server.rows(query) == expected


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("", (60, 20, 6, 74, 4, 1, 2)),
        ("split=val", (60, 20, 1, 19, 1, 0, 0)),
        ("category=sky", (2, 0, 6, 74, 4, 1, 2)),
        ("with=sky%00&split=train", (2, 0, 2, 0, 1, 0, 2)),
        ("name_part=t0&labelled=yes", (5, 0, 5, 5, 3, 1, 2)),
        ("set=leak&min_width=1", (1, 1, 1, 1, 1, 0, 0)),
    ],
)
def test_counts_pass_the_other_filters(server, query, expected):
    """train, val, labelled, not labelled; bird positive and negative, sky far away."""
    server.rows(f"{query}&split=train")  # the comparison for a set has ended
    found = server.typed(f"d/counts?{query}", page_types.FacetCounts)
    bird, sky = found["categories"]
    modes = [mode["count"] for mode in (*bird["modes"], *sky["modes"])]
    splits = found["train"], found["val"], found["labelled"], found["unlabelled"]
    assert (*splits, *modes) == expected


@pytest.mark.parametrize(
    ("query", "first"),
    [
        ("sort=widest", [10, 11, 0]),
        ("sort=tallest", [12, 0]),
        ("sort=lowest", [11, 0]),
        ("sort=narrowest", [12]),
        ("sort=portrait", [12]),
        ("sort=landscape", [11, 10]),
        ("sort=largest&split=val", BY_BYTES[:-6:-1]),
        ("sort=smallest&split=val&min_bytes=1", BY_BYTES[:5]),
    ],
)
def test_sorts_by_size(server, query, first):
    order = server.rows(query)
    assert order[: len(first)] == first and FAILED not in order


def test_rows_by_likeness(server, url):
    order = server.rows("like=2&by=clip")
    assert set(order[:2]) == {2, COPY}
    assert len(order) == 79 and FAILED not in order
    near = get(f"{url}/page/d/neighbours/2?count=5")[1]["neighbours"]
    assert near[0]["distance"] == 0 and near[0]["image"]["row"] == COPY
    assert [one["image"]["row"] for one in near[1:]] == [
        row for row in order[:7] if row not in (2, COPY)
    ][:4]


def test_groups_for_a_distance(server):
    """A larger one has more images, each within the distance of the first of its group."""

    def known():
        near = server.typed("d/health?by=clip", page_types.HealthReport)["near"]
        return near["limit"] and near

    near = wait_for(known)
    assert (near["distance"], near["examples"][0]["distance"]) == (near["default"], 0)
    assert near["limit"] == pytest.approx(10 * near["default"])
    assert "50% of the median distance" in near["reach"]
    far = round(near["limit"] * 0.9, 4)
    rows = server.rows(f"set=near&distance={far}")
    distances = server.array(f"d/distances?set=near&distance={far}", "<f4")
    assert len(rows) > 20 and sum(row < 0 for row in rows) < len(rows) / 2
    assert (distances <= far).all() and max(distances) > near["default"]
    report = server.typed(f"d/health?distance={far}", page_types.HealthReport)
    (finding,) = (one for one in report["findings"] if one["set"] == "near")
    assert (finding["images"], finding["groups"]) == (len(rows), sum(row < 0 for row in rows))
    pairs = report["near"]["examples"]
    assert all(near["default"] < pair["distance"] <= far for pair in pairs) and len(pairs) == 4


def test_sort_by_outliers_and_typical(server, url):
    outliers, typical = server.rows("sort=outliers"), server.rows("sort=typical")
    assert sorted(outliers) == sorted(typical) == [row for row in range(80) if row != FAILED]
    assert set(outliers[-2:]) == {2, 65}  # each other's copy
    distances = np.frombuffer(fetch(f"{url}/page/d/distances?sort=outliers")[2], "<f4")
    assert distances.tolist() == sorted(distances.tolist(), reverse=True)


def test_file_sizes_when_the_image_is_gone(server, dataset_name):
    server.publish(dataset_name, 1, with_manifest=False)
    gcs.make_client().bucket(server.images).blob(f"{dataset_name}/train/0.jpg").delete()
    assert server.rows("sort=largest", dataset_name) == []


def test_distances_of_rows(server):
    def distances(query):
        return server.array(f"d/distances?{query}", "<f4").tolist()

    assert distances("") == distances("split=val") == distances("set=failed") == []
    assert distances("set=near") == pytest.approx([0, 0], abs=1e-6)
    order = distances("like=2&by=clip")
    assert len(order) == 79 and order == sorted(order)
    assert order[0] == pytest.approx(0, abs=1e-6) and order[-1] > 0.5


def test_columns(server, url):
    def column(name):
        return server.array(f"d/column/{name}", "<i4")

    modes = column("category?category=bird")
    assert np.flatnonzero(modes == 0).tolist() == [0, 1, 2, 60]
    assert np.flatnonzero(modes == 1).tolist() == [3]
    assert column("category?category=sky")[7] == 4
    assert set(column("category?category=x").tolist()) == {-1}
    assert column("split").tolist() == [0] * 60 + [1] * 20
    by_label = column("label")
    assert np.flatnonzero(by_label == 0).tolist() == [0, 1, 2, 60]
    assert set(by_label.tolist()) == {-1, 0}
    classes, number = column("class"), get(f"{url}/page/d/image/1")[1]["imagenet_class"]
    assert server.rows(f"class={number}") == np.flatnonzero(classes == number).tolist() != []
    assert classes[FAILED] == -1


def test_map(server):
    points = server.array("d/map?by=imagenet", "<f4").reshape(-1, 2)
    assert points.shape == (80, 2) and np.isnan(points[FAILED]).all()
    assert np.isfinite(np.delete(points, FAILED, axis=0)).all()


def test_class_names():
    names = {0: "tench", 281: "tabby cat", 468: "taxi", 999: "toilet paper", 1000: "class 1000"}
    assert {number: index.class_name(number) for number in names} == names
    assert len(set(index.class_names())) == 1000


def test_labels_written_later_are_there_at_once(server, dataset_name):
    server.publish(dataset_name, 2)
    before = server.dataset(dataset_name)
    server.label(dataset_name, ["1"], "bird")
    after = server.dataset(dataset_name)
    assert after["version"] != before["version"]
    assert server.rows("category=bird", dataset_name) == [1]
    server.label(dataset_name, ["1"], "bird", "TOMBSTONE")
    assert server.rows("category=bird", dataset_name) == []


def test_pictures(server):
    address, index_id = f"{server.url}/page/d", server.dataset("d")["index_id"]
    for path, row in (("thumbnail/1", 1), ("original/1", 1), ("cover/0", 0)):
        status, headers, body = fetch(f"{address}/{path}?v={index_id}")
        assert (status, headers["Content-Type"]) == (200, "image/jpeg")
        assert body == synthetic.landscape(row)
        assert "immutable" in headers["Cache-Control"]
        assert "sandbox" in headers["Content-Security-Policy"]
    assert fetch(f"{address}/thumbnail/{FAILED}")[0] == 204
    assert fetch(f"{address}/thumbnail/1")[1]["Cache-Control"] == "no-cache"
    kept = [path.read_bytes() for path in (server.data_dir / "thumbnails").rglob("*.jpg")]
    assert synthetic.landscape(1) in kept


@pytest.mark.parametrize("rows", [1, 2, 5])
def test_covers_of_few_images(server, dataset_name, rows):
    """The page asks for as many covers as there are images, up to four."""
    server.publish(dataset_name, rows)
    address = f"{server.url}/page/{dataset_name}/cover"
    covers = [fetch(f"{address}/{place}")[2] for place in range(min(4, rows))]
    assert len(set(covers)) == len(covers)
    assert covers[0] == synthetic.landscape(0) and covers[-1] == synthetic.landscape(rows - 1)


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("nothing/dataset", 404),
        ("d/image/80", 404),
        ("d/image/x", 404),
        ("d/images?rows=1,x", 400),
        ("d/images?rows=" + "1," * 600 + "1", 400),
        ("d/rows?split=test", 400),
        ("d/rows?set=all", 400),
        ("d/rows?set=near&distance=2.1", 400),
        ("d/rows?set=near&distance=-1", 400),
        ("d/rows?set=near&distance=nan", 400),
        ("d/rows?set=near&distance=1.9", 400),
        ("d/rows?class=-1", 400),
        ("d/rows?like=99", 400),
        ("d/rows?text=dog", 409),
        *((f"d/rows?{query}", 400) for query in WRONG_FILTERS),
        ("d/neighbours/1?by=vgg", 400),
        ("d/neighbours/1?count=0", 400),
        (f"d/neighbours/{FAILED}", 409),
        ("d/map?method=tsne", 400),
        ("d/column/size", 404),
    ],
)
def test_wrong_questions(url, path, status):
    answer = fetch(f"{url}/page/{path}")
    assert answer[0] == status
    if "json" in answer[1]["Content-Type"]:
        conforms(json.loads(answer[2]), page_types.Problem)


def test_index_that_cannot_be_copied(server, dataset_name):
    def damage(file):
        file("local/clip/embeddings.npy").upload_from_string(b"short")

    server.publish(dataset_name, 1, change=damage)
    server.create(f"{dataset_name}-2", "no-such-index", "d")
    for name, detail in ((dataset_name, "clip"), (f"{dataset_name}-2", "no-such-index")):
        page = server.wait_until_copied(name)
        assert page["index"]["state"] == "missing" and detail in page["index"]["detail"]
        assert fetch(f"{server.url}/page/{name}/rows")[0] == 409


def test_server_and_index_disagree(server, dataset_name):
    late = f"{dataset_name}/train/late.jpg"
    gcs.make_client().bucket(server.images).blob(late).upload_from_string(b"")
    server.publish(dataset_name, 1)
    (warning,) = server.dataset(dataset_name)["warnings"]
    assert "2 training" in warning


def test_classes_are_read_and_are_plain_data_only(tmp_path):
    path = tmp_path / "imagenet.pickle"
    classes = {f"{row}.jpg": row % 1000 for row in range(60_000)}
    assert index.read_classes(path, 0) == {}
    path.write_bytes(pickle.dumps(classes))
    assert index.read_classes(path, len(classes)) == classes
    with pytest.raises(PageError, match="has far too many parts"):
        index.read_classes(path, 10)
    for value in (Path(), {"a": Path()}, [1], {"a": "b"}, {1: 1}, {"a": True}):
        path.write_bytes(pickle.dumps(value))
        with pytest.raises(PageError):
            index.read_classes(path, 10)


def test_text_search_says_why_not(tmp_path, weights_dir):
    assert "--clip_weights" in text_search.why_not(None)
    assert "cannot be read" in text_search.why_not(tmp_path)
    assert "no text tower" in text_search.why_not(weights_dir / "clip-vit-base-patch32")


def test_headers_keep_other_sites_out(url):
    status, headers, _ = fetch(f"{url}/d")
    assert status == 200
    policy = headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy and "unsafe" not in policy
    for path in ("/", "/page/datasets", "/static/app.js", "/page/d/thumbnail/1"):
        headers = fetch(url + path)[1]
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert headers["Cross-Origin-Resource-Policy"] == "same-origin"


@pytest.mark.parametrize("path", ["../__main__.py", "..%2f__main__.py", "%2e%2e/types.py", ""])
def test_static_files_only(url, path):
    assert fetch(f"{url}/static/{path}")[0] in (403, 404)


def test_unknown_dataset_is_the_page_with_404(url):
    status, headers, body = fetch(f"{url}/{quote('nothing-here')}")
    assert status == 404 and b'id="main"' in body
    assert headers["Content-Type"].startswith("text/html")


def test_every_answer_is_documented():
    text = (ROOT / "docs" / "page-api.md").read_text()
    for name, kind in vars(page_types).items():
        if typing.is_typeddict(kind):
            assert f"`{name}`" in text, name
    source = Path(routes.__file__).read_text()
    for route in re.findall(r'f"\{name\}/([a-z]+)', source):
        assert f"/{route}" in text, route
