"""Filters and orders of the page: labels, ImageNet classes by name, object names, file sizes."""

import re

import numpy as np
import pytest

import gcs
from local_forager.analysis import imagenet
from local_forager.analysis.ordering import neighbour_distances
from local_forager.analysis.vectors import Vectors
from testing import synthetic
from tests.local_forager.page_server import FAILED, fetch, get, shows_rows, total

playwright = pytest.importorskip("playwright.sync_api", reason="no playwright")
expect = playwright.expect


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
        ("sort=name-backwards&split=val", list(range(79, 59, -1))),
    ],
)
def test_filters(server, query, expected):
    assert rows(server, query) == expected


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
    server.publish(dataset_name, [f"{dataset_name}/train/a.jpg"], 1)
    name = f"{dataset_name}/train/a.jpg"
    gcs.make_client().bucket(server.images).blob(name).delete()
    assert rows(server, "sort=largest", dataset_name) == []


@pytest.mark.parametrize("query", ["sort=x", "failed=x", "min_bytes=-1", "with=a&" * 51])
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
    page.get_by_label("to", exact=True).fill("0")
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
