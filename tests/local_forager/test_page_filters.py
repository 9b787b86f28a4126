"""Filters and orders of the page: labels, ImageNet classes by name, object names, file sizes."""

import re

import numpy as np
import pytest

import gcs
from local_forager.indexes import index as imagenet
from testing import synthetic
from tests.local_forager.page_server import FAILED, fetch, get, shows_rows, total

playwright = pytest.importorskip("playwright.sync_api", reason="no playwright")
expect = playwright.expect


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
    page.get_by_label("File size to").fill("0")
    page.get_by_role("button", name="Apply").click()
    total(page, "1 of 80 images")
    expect(page.locator(".summary .chip")).to_contain_text("up to 0 bytes")
    shows_rows(page, [FAILED])
    page.goto(f"{server.url}/d")
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
    assert len(fetch(f"{server.url}/page/{dataset_name}/rows?sort=largest")[2]) == 2 * 4
    page = tabs(f"{server.url}/{dataset_name}?min_width=1&sort=portrait")
    total(page, "2 images")
    expect(page.get_by_role("alert")).to_contain_text(
        "They are not filtered by width and not sorted"
    )
    expect(page.locator(".ranges")).to_contain_text(sizes["reason"])
    expect(page.get_by_label("Width from")).to_have_count(0)
    expect(page.locator("#sort option", has_text="widest")).to_be_disabled()
