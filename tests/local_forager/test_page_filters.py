"""Filters and orders of the page: labels, ImageNet classes by name, object names, file sizes."""

import re

import numpy as np
import pytest

import gcs
from local_forager.analysis.comparisons import neighbour_distances
from local_forager.indexes import index as imagenet
from local_forager.indexes.vectors import Vectors
from testing import synthetic
from tests.local_forager.page_server import FAILED, SHAPES, fetch, get, shows_rows, total

playwright = pytest.importorskip("playwright.sync_api", reason="no playwright")
expect = playwright.expect
NORMAL = [row for row in range(80) if row not in (FAILED, *SHAPES)]  # images of 200x150


def rows(server, query, name="d"):
    status, _, body = fetch(f"{server.url}/page/{name}/rows?{query}")
    assert status == 200, body
    return np.frombuffer(body, "<i4").tolist()


@pytest.mark.parametrize(
    ("number", "name"),
    [(0, "tench"), (281, "tabby cat"), (468, "taxi"), (805, "football"), (999, "toilet paper")],
)
def test_class_names(number, name):
    assert imagenet.class_name(number) == name
    assert len(set(imagenet.class_names())) == 1000


def test_class_of_another_model():
    assert imagenet.class_name(1000) == "class 1000"


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("with=bird", [0, 1, 2, 3, 60]),
        ("with=bird&with=sky", [1]),
        ("with=bird&without=sky", [0, 2, 3, 60]),
        ("category=bird&mode=POSITIVE&without=sky", [0, 2, 60]),
        ("without=bird&labelled=yes", [7]),
        ("name_part=T0&split=train", list(range(10))),
        ("failed=yes", [FAILED]),
        ("max_bytes=0", [FAILED]),
        ("category=sky&or=bird", [0, 1, 2, 3, 7, 60]),
        ("category=bird&mode=NEGATIVE&or=sky", [1, 3, 7]),
        ("or=sky&without=bird", [7]),
        ("or=sky&or=bird&with=sky&split=train", [1, 7]),
        ("min_width=201", [10, 11]),
        ("max_width=199", [12]),
        ("min_height=150&max_height=150&max_width=200", NORMAL),
        ("min_aspect=1.333&max_aspect=1.333", NORMAL),
        ("max_aspect=1.332", [12]),
        ("min_aspect=1.334", [10, 11]),
        ("sort=widest&max_bytes=999999&min_width=201", [10, 11]),
        ("sort=name-backwards&split=val", list(range(79, 59, -1))),
    ],
)
def test_filters(server, query, expected):
    assert rows(server, query) == expected


def test_sorts_by_size(server):
    assert rows(server, "sort=widest")[:3] == [10, 11, 0]
    assert rows(server, "sort=tallest")[:2] == [12, 0]
    assert rows(server, "sort=lowest")[:2] == [11, 0]
    assert rows(server, "sort=narrowest")[0] == rows(server, "sort=portrait")[0] == 12
    assert rows(server, "sort=landscape")[:2] == [11, 10]
    assert FAILED not in rows(server, "sort=portrait")


def test_sort_by_file_size(server):
    sizes = [len(synthetic.landscape(row)) for row in range(60, 64)]
    order = rows(server, "sort=largest&split=val")
    assert len(order) == 20
    assert [row for row in order if row < 64] == [60 + place for place in np.argsort(sizes)[::-1]]
    smallest = rows(server, f"sort=smallest&min_bytes={min(sizes)}&split=val")
    assert smallest[0] in range(60, 80) and len(smallest) <= 20


def test_sort_by_outliers_and_typical(server):
    outliers, typical = rows(server, "sort=outliers"), rows(server, "sort=typical")
    assert sorted(outliers) == sorted(typical) == [row for row in range(80) if row != FAILED]
    assert set(outliers[-2:]) == {2, 65}  # each other's copy
    distances = np.frombuffer(fetch(f"{server.url}/page/d/distances?sort=outliers")[2], "<f4")
    assert distances.tolist() == sorted(distances.tolist(), reverse=True)


def test_neighbour_distances_agree_with_all_pairs(tmp_path):
    vectors = np.concatenate(list(synthetic.vectors(1_500, 16)))
    vectors[7] = 0
    path = tmp_path / "array.f32"
    vectors.tofile(path)
    failed = ~vectors.any(axis=1)
    found = neighbour_distances(Vectors(path, *vectors.shape), failed, lambda _: None)
    distance = 1 - vectors.astype(float) @ vectors.T
    np.fill_diagonal(distance, np.inf)
    distance[:, 7] = np.inf
    nearest = np.sort(np.delete(distance, 7, axis=0), axis=1)[:, :10]
    good = np.delete(found, 7, axis=0)
    np.testing.assert_allclose(good[:, 0], nearest[:, 0], atol=1e-5)
    np.testing.assert_allclose(good[:, 1], nearest.mean(axis=1), atol=1e-5)
    assert np.isnan(found[7]).all()


def test_file_sizes_when_the_bucket_is_gone(server, dataset_name):
    server.publish(dataset_name, [f"{dataset_name}/train/a.jpg"], 1, with_manifest=False)
    name = f"{dataset_name}/train/a.jpg"
    gcs.make_client().bucket(server.images).blob(name).delete()
    assert rows(server, "sort=largest", dataset_name) == []


@pytest.mark.parametrize(
    "query",
    ["sort=x", "failed=x", "min_bytes=-1", "with=a&" * 51, "or=a&" * 51, "min_width=1.5",
     "max_aspect=x", "max_aspect=-1", "min_aspect=1e3", "max_aspect=2000000"],
)  # fmt: skip
def test_wrong_filters(server, query):
    assert get(f"{server.url}/page/d/rows?{query}")[0] == 400


def test_filters_of_the_page(server, tabs):
    page = tabs(f"{server.url}/d")
    filters = page.locator(".filters")
    filters.get_by_role("link", name="And with this label: bird").click()
    total(page, "5 of 80 images")
    filters.get_by_role("link", name="Without this label: sky").click()
    total(page, "4 of 80 images")
    page.get_by_role("link", name="Remove the filter: and bird").click()
    total(page, "78 of 80 images")
    page.get_by_label("Object name contains").fill("v1")
    page.get_by_label("Object name contains").press("Enter")
    total(page, "10 of 80 images")
    expect(page.locator(".summary .chip")).to_have_text(["not sky×", "name contains v1×"])
    page.get_by_label("Sort").select_option("name, backwards")
    expect(page.locator(".cell:not([hidden])").first).to_have_attribute("aria-posinset", "1")
    expect(page.locator(".cell:not([hidden]) a").first).to_have_attribute(
        "href", re.compile("image=79$")
    )


def test_class_by_name(server, tabs):
    page = tabs(f"{server.url}/d")
    (kind,) = {int(synthetic.kind_of(np.array([0]))[0])}
    name = imagenet.class_name(80 * kind)
    page.get_by_label("Find a class").fill(name.upper())
    page.locator(".filters").get_by_role("link", name=name).click()
    expect(page.locator(".summary .chip")).to_contain_text(f"ImageNet class: {name}")
    kinds = synthetic.kind_of(np.arange(80))
    same = [row for row in np.flatnonzero(kinds == kind).tolist() if row not in (FAILED, 65)]
    shows_rows(page, same if kinds[2] != kind else [*same, 65])
    page.goto(f"{server.url}/d?view=map&color=class")
    page.locator(".legend").get_by_role("link", name=name).click()
    expect(page.locator(".summary .chip")).to_contain_text(f"ImageNet class: {name}")


def test_file_size_of_the_page(server, tabs):
    page = tabs(f"{server.url}/d")
    page.get_by_label("File size to").fill("0")
    page.get_by_role("button", name="Apply").click()
    total(page, "1 of 80 images")
    expect(page.locator(".summary .chip")).to_contain_text("up to 0 bytes")
    shows_rows(page, [FAILED])


def test_the_page_says_what_the_server_computes(server, tabs):
    page = tabs(server.url)
    ready = []

    def answer(route):
        if not ready:
            route.fulfill(status=202, json={"working": "Comparing images: 40%"})
        else:
            route.continue_()

    page.route("**/page/d/rows?sort=outliers*", answer)
    page.goto(f"{server.url}/d?sort=outliers")
    expect(page.locator("#working")).to_have_text("Comparing images: 40%")
    ready.append(True)
    total(page, "79 of 80 images")
    expect(page.locator("#working")).to_be_empty()


def test_sizes_of_the_page(server, tabs):
    page = tabs(f"{server.url}/d")
    page.get_by_label("Width from").fill("201")
    page.get_by_label("Width from").press("Enter")
    total(page, "2 of 80 images")
    page.get_by_label("Aspect to").fill("2")
    page.get_by_label("Aspect to").press("Enter")
    total(page, "1 of 80 images")
    expect(page.locator(".summary .chip")).to_have_text(
        ["width from 201 pixels×", "aspect up to 2×"]
    )
    page.get_by_role("link", name="Remove the filter: width").click()
    total(page, "78 of 80 images")
    page.get_by_label("Sort").select_option("narrowest first")
    expect(page.locator(".cell:not([hidden]) a").first).to_have_attribute(
        "href", re.compile("image=12$")
    )


def test_either_label_on_the_page(server, tabs, dataset_name):
    hostile = ["<b>100%0A</b>\n=1", "\u202efirst"]
    server.publish(dataset_name, [f"{dataset_name}/train/{row}.jpg" for row in range(4)], 4)
    for row, label in enumerate(hostile):
        server.label(dataset_name, [str(row)], label)
    page = tabs(f"{server.url}/{dataset_name}")
    for place, images in enumerate((1, 2)):
        page.get_by_role("link", name="Or with this label").nth(place).click()
        total(page, f"{images} of 4 images")
    page.reload()
    total(page, "2 of 4 images")
    chips = page.locator(".summary .chip bdi").all_text_contents()
    assert chips == [f"or {label}" for label in sorted(hostile)]
    page.locator(".summary .chip").first.click()
    total(page, "1 of 4 images")
    expect(page.locator(".summary .chip bdi")).to_have_text(hostile[1])
    shows_rows(page, [1])


@pytest.mark.parametrize("damage", ["no manifest", "of other images", "damaged"])
def test_index_whose_sizes_are_not_known(server, tabs, dataset_name, damage):
    index_id, client = f"i-{dataset_name}", gcs.make_client()
    names = [f"{dataset_name}/train/{row}.jpg" for row in range(2)]
    synthetic.publish(client, server.images, server.index, index_id, names, 2)
    blob = client.bucket(server.index).blob(f"indexes/{index_id}/manifest.parquet")
    if damage == "no manifest":
        blob.delete()
    else:
        others = [name.upper() for name in names]
        content = synthetic.manifest_of(others, [(1, 1, 1)] * 2)
        blob.upload_from_string(content[:-9] if damage == "damaged" else content)
    server.create(dataset_name, index_id, dataset_name)
    sizes = server.wait_until_copied(dataset_name)["sizes"]
    assert not sizes["available"] and damage in sizes["reason"]
    for query in ("min_width=1", "max_aspect=1", "sort=tallest"):
        answer = get(f"{server.url}/page/{dataset_name}/rows?{query}")
        assert answer == (409, {"error": sizes["reason"]})
    assert len(rows(server, "sort=largest", dataset_name)) == 2
    page = tabs(f"{server.url}/{dataset_name}?min_width=1&sort=portrait")
    total(page, "2 images")
    expect(page.get_by_role("alert")).to_contain_text(
        "They are not filtered by width and not sorted"
    )
    expect(page.locator(".ranges")).to_contain_text(sizes["reason"])
    expect(page.get_by_label("Width from")).to_have_count(0)
    expect(page.locator("#sort option", has_text="widest")).to_be_disabled()
