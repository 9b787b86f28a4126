"""The detail view of one image: facts, neighbours, walking through the view by keyboard."""

import io
import re

import numpy as np
import pytest
from PIL import ExifTags, Image

import gcs
from testing import synthetic
from tests.local_forager.page_server import (
    COPY,
    FAILED,
    complete,
    shows_rows,
    total,
    until,
    wait_for,
    wait_for_pictures,
)

playwright = pytest.importorskip("playwright.sync_api", reason="no playwright")
expect = playwright.expect


def title(page):
    return page.get_by_role("dialog").get_by_role("heading", level=2)


def test_facts_and_neighbours(server, tabs):
    page = tabs(f"{server.url}/d")
    wait_for_pictures(page)
    page.locator(".cell:not([hidden]) a").nth(2).click()
    dialog = page.get_by_role("dialog")
    expect(title(page)).to_have_text("t02.jpg")
    expect(dialog.get_by_text("200 × 150 pixels")).to_be_visible()
    expect(dialog.locator("dl")).to_contain_text(f"gs://{server.images}/d/train/t02.jpg")
    expect(dialog.locator("dl")).to_contain_text("train · row 2")
    expect(dialog.locator(".labels")).to_have_text("bird")
    until(page, "document.querySelector('.full').naturalWidth === 200")
    strip = dialog.locator(".strip li")
    expect(strip).to_have_count(24)
    expect(strip.first).to_have_text("0.000")
    strip.first.locator("a").click()
    expect(title(page)).to_have_text("v05.jpg")
    expect(page).to_have_url(re.compile(f"image={COPY}$"))
    page.go_back()
    expect(title(page)).to_have_text("t02.jpg")
    page.go_back()
    expect(dialog).to_be_hidden()
    total(page, "80 images")


def test_compares_by_each_embedding(server, tabs):
    page = tabs(f"{server.url}/d?image=0")
    for by in ("imagenet", "imagenet_early"):
        expect(page.locator(".strip li")).to_have_count(24)
        page.get_by_role("radio", name=by, exact=True).check()
        expect(page).to_have_url(re.compile(f"by={by}(&|$)"))
    expect(page.locator(".strip li")).to_have_count(24)
    page.get_by_role("link", name="Sort all images by similarity").click()
    total(page, "79 of 80 images")  # all but the failed one
    expect(page.locator(".summary .chip")).to_contain_text("by similarity to t00.jpg")


def test_walk_by_keyboard(server, tabs):
    page = tabs(f"{server.url}/d")
    wait_for_pictures(page)
    page.locator(".cell:not([hidden]) a").first.focus()
    for key in ("ArrowRight", "ArrowRight", "ArrowDown", "ArrowUp", "Enter"):
        page.keyboard.press(key)
    expect(title(page)).to_have_text("t02.jpg")
    page.keyboard.press("ArrowRight")
    expect(title(page)).to_have_text("t03.jpg")
    page.keyboard.press("Escape")
    expect(page.get_by_role("dialog")).to_be_hidden()
    until(page, "document.activeElement.getAttribute('href')?.endsWith('image=3')")
    page.keyboard.press("End")
    until(page, "document.activeElement.getAttribute('href')?.endsWith('image=79')")


def test_failed_image(server, tabs):
    page = tabs(f"{server.url}/d?image={FAILED}")
    expect(page.get_by_text("It failed at ingest. The object is empty.")).to_be_visible()
    expect(page.get_by_text("This image cannot be shown. The object is empty.")).to_be_visible()
    expect(page.locator(".strip")).to_have_count(0)


def test_no_such_image(server, tabs):
    page = tabs(server.url)
    for image, message in (("80", "There is no row 80"), ("x", "There is no such image")):
        page.goto(f"{server.url}/d?image={image}")
        dialog = page.get_by_role("dialog")
        expect(dialog).to_contain_text(message)
        page.get_by_role("button", name="Back to the images").click()
        expect(dialog).to_be_hidden()
        total(page, "80 images")


def test_class_link_filters(server, tabs):
    page = tabs(f"{server.url}/d?image=0")
    page.locator("#detail dl a").click()
    expect(page.locator(".summary .chip")).to_contain_text("ImageNet class")
    kinds = synthetic.kind_of(np.arange(80))
    kinds[COPY] = kinds[2]
    kinds[FAILED] = -1
    shows_rows(page, np.flatnonzero(kinds == kinds[0]).tolist())


def test_back_after_closing_does_not_reopen(server, tabs):
    page = tabs(f"{server.url}/d?split=train")
    total(page, "60 of 80 images")
    page.locator(".cell:not([hidden]) a").nth(2).click()
    expect(title(page)).to_have_text("t02.jpg")
    page.locator(".strip li a").nth(1).click()
    expect(title(page)).not_to_have_text("t02.jpg")
    page.get_by_role("button", name="Close").click()
    expect(page.get_by_role("dialog")).to_be_hidden()
    expect(page).to_have_url(f"{server.url}/d?split=train")
    page.locator(".filters").get_by_role("link", name="All 80").click()
    total(page, "80 images")
    page.go_back()
    total(page, "60 of 80 images")
    expect(page.get_by_role("dialog")).to_be_hidden()


def test_keys_work_while_neighbours_are_compared(server, tabs):
    page = tabs(server.url)
    held = []
    page.route("**/neighbours/*?*", lambda route: held.append(route))
    page.goto(f"{server.url}/d?image=50")
    expect(title(page)).to_have_text("t50.jpg")
    page.keyboard.press("ArrowRight")
    expect(title(page)).to_have_text("t51.jpg")
    page.keyboard.press("Escape")
    expect(page.get_by_role("dialog")).to_be_hidden()
    until(page, "document.activeElement.getAttribute('href')?.endsWith('image=51')")
    assert len(held) == 2
    for route in held:
        route.continue_()
    complete(page)


def test_focus_returns_to_the_image_seen_last(server, tabs):
    page = tabs(f"{server.url}/d?image=50")
    expect(title(page)).to_have_text("t50.jpg")
    page.keyboard.press("ArrowRight")
    expect(title(page)).to_have_text("t51.jpg")
    page.keyboard.press("Escape")
    expect(page.get_by_role("dialog")).to_be_hidden()
    until(page, "document.activeElement.getAttribute('href')?.endsWith('image=51')")
    page.get_by_role("link", name="Health").click()
    page.get_by_role("link", name="Images", exact=True).click()
    total(page, "80 images")
    until(page, "document.querySelector('.grid a[tabindex=\"0\"]')?.href.endsWith('image=51')")


def test_thumbnail_until_the_original_is_here(server, tabs):
    page = tabs(server.url)
    release = []
    page.route("**/original/5*", lambda route: release.append(route))
    page.goto(f"{server.url}/d?image=5")
    expect(page.locator(".preview")).to_be_visible()
    expect(page.locator("figcaption")).to_have_text("Loading the original…")
    release[0].continue_()
    expect(page.locator(".preview")).to_have_count(0)
    expect(page.locator(".full")).to_be_visible()
    expect(page.locator("figcaption")).to_be_hidden()


def test_reason_if_the_original_cannot_be_had(server, tabs, dataset_name):
    name = f"{dataset_name}/train/a.jpg"
    server.publish(dataset_name, [name], 1)
    gcs.make_client().bucket(server.images).blob(name).delete()
    page = tabs(f"{server.url}/{dataset_name}?image=0")
    expect(page.locator("figcaption")).to_contain_text("It is not in the bucket.")
    # The browser may report the missing picture later; its messages arrive while it is asked.
    wait_for(lambda: page.evaluate("1") and page.problems, "the browser's message")
    assert len(page.problems) == 1 and "404" in page.problems.pop()


def test_rotated_photograph_is_shown_as_the_models_see_it(server, tabs, dataset_name):
    name = f"{dataset_name}/train/a.jpg"
    server.publish(dataset_name, [name], 1)
    with Image.open(io.BytesIO(synthetic.landscape(0))) as image:
        exif, file = Image.Exif(), io.BytesIO()
        exif[ExifTags.Base.Orientation] = 6
        image.save(file, "JPEG", exif=exif)
    gcs.make_client().bucket(server.images).blob(name).upload_from_string(file.getvalue())
    page = tabs(f"{server.url}/{dataset_name}?image=0")
    expect(page.locator("#detail dl")).to_contain_text("200 × 150 pixels")
    expect(page.locator("#detail dl")).to_contain_text("as the models see it")
    until(page, "document.querySelector('.full').complete")
    full = page.locator(".full").bounding_box()
    assert full["width"] / full["height"] == pytest.approx(200 / 150, abs=0.02)


def test_shortcuts(server, tabs):
    page = tabs(f"{server.url}/d")
    total(page, "80 images")
    page.keyboard.press("?")
    dialog = page.get_by_role("dialog", name="Keyboard shortcuts")
    expect(dialog).to_contain_text("open the image nearest to the middle")
    page.keyboard.press("Escape")
    expect(dialog).to_be_hidden()
    page.get_by_role("button", name="Keyboard shortcuts").click()
    expect(dialog).to_be_visible()


def test_boxes_are_drawn(server, tabs, dataset_name):
    server.publish(dataset_name, [f"{dataset_name}/train/a.jpg"], 1)
    server.box(dataset_name, "a", "<b>dog", (20, 30, 120, 90))
    server.box(dataset_name, "a", "cat", (150, 140, 199, 10), "NEGATIVE")
    page = tabs(f"{server.url}/{dataset_name}?image=0")
    overlay = page.locator("#detail .boxes")
    expect(overlay.locator("text")).to_have_text(["<b>dog", "cat: negative"])
    image, box = page.locator(".full").bounding_box(), overlay.locator("rect").first.bounding_box()
    scale = image["width"] / 200
    assert box["x"] - image["x"] == pytest.approx(20 * scale, abs=3)
    assert box["y"] - image["y"] == pytest.approx(30 * scale, abs=3)
    assert box["width"] == pytest.approx(100 * scale, abs=4)
    page.get_by_label("Show the 2 boxes").uncheck()
    expect(overlay).to_be_hidden()
    page.reload()
    expect(page.get_by_label("Show the 2 boxes")).not_to_be_checked()
    page.get_by_label("Show the 2 boxes").check()
    expect(overlay).to_be_visible()
