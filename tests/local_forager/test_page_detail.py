"""The detail view of one image: facts, neighbours, walking through the view by keyboard."""

import io
import re

import pytest
from PIL import ExifTags, Image

import gcs
from testing import synthetic
from tests.harness import wait_for
from tests.local_forager import screen
from tests.local_forager.page_server import COPY, FAILED
from tests.local_forager.screen import expect


def title(page):
    return page.get_by_role("dialog").get_by_role("heading", level=2)


def test_facts_and_neighbours(server, tabs):
    page = tabs(f"{server.url}/d")
    screen.wait_for_pictures(page)
    screen.tiles(page).nth(2).click()
    dialog = page.get_by_role("dialog")
    expect(title(page)).to_have_text("t02.jpg")
    expect(dialog.get_by_text("200 × 150 pixels")).to_be_visible()
    expect(dialog.locator("dl")).to_contain_text(f"gs://{server.images}/d/train/t02.jpg")
    expect(dialog.locator("dl")).to_contain_text("train · row 2")
    expect(dialog.locator(".labels")).to_have_text("bird")
    screen.until(page, "document.querySelector('.full')?.naturalWidth === 200")
    strip = dialog.locator(".strip li")
    expect(strip).to_have_count(24)
    expect(strip.first.locator(".distance")).to_have_text("0.000")
    strip.first.locator("a").click()
    expect(title(page)).to_have_text("v05.jpg")
    expect(page).to_have_url(re.compile(f"image={COPY}$"))
    page.go_back()
    expect(title(page)).to_have_text("t02.jpg")
    page.go_back()
    expect(dialog).to_be_hidden()
    screen.total(page, "80 images")


def test_compares_by_each_embedding(server, tabs):
    page = tabs(f"{server.url}/d?image=0")
    for by in ("imagenet", "imagenet_early"):
        expect(page.locator(".strip li")).to_have_count(24)
        page.get_by_role("radio", name=by, exact=True).check()
        expect(page).to_have_url(re.compile(f"by={by}(&|$)"))
    expect(page.locator(".strip li")).to_have_count(24)
    screen.follow(page, "Sort all images by similarity", 79)  # all but the failed one
    expect(page.locator(".summary .chip")).to_contain_text("by similarity to t00.jpg")


def test_mark_images_of_a_set_on_the_way(server, tabs):
    """Space selects, arrows go on, c shows the nearest image beside; each shows its split."""
    page = tabs(f"{server.url}/d?set=leak")
    screen.total(page, "2 of 80 images")
    expect(page.locator(".badge.far")).to_have_text(["train", "val · 0.000"])
    screen.tiles(page).first.click()
    expect(title(page)).to_have_text("t02.jpg")
    expect(page.locator(".dialog-head .split")).to_have_text("train")
    page.keyboard.press("c")
    beside = page.locator(".picture.beside")
    expect(beside).to_contain_text("v05.jpg validation")
    page.keyboard.press("ArrowRight")
    expect(title(page)).to_have_text("v05.jpg")
    expect(beside).to_contain_text("t02.jpg train")
    page.keyboard.press(" ")
    page.keyboard.press("c")
    expect(beside).to_have_count(0)
    page.get_by_role("button", name="beside: t02.jpg").click()
    expect(page).to_have_url(re.compile("image=65&beside=2$"))
    expect(beside).to_contain_text("t02.jpg")
    page.keyboard.press("Escape")
    expect(page.locator(".selected-count")).to_have_text("1 selected")
    expect(page.locator(".cell.selected .badge.far")).to_have_text("val · 0.000")


def test_walk_by_keyboard(server, tabs):
    page = tabs(f"{server.url}/d")
    screen.wait_for_pictures(page)
    screen.tiles(page).first.focus()
    for key in ("ArrowRight", "ArrowRight", "ArrowDown", "ArrowUp", "Enter"):
        page.keyboard.press(key)
    expect(title(page)).to_have_text("t02.jpg")
    page.keyboard.press("ArrowRight")
    expect(title(page)).to_have_text("t03.jpg")
    page.keyboard.press("Escape")
    expect(page.get_by_role("dialog")).to_be_hidden()
    screen.focused(page, 3)
    page.keyboard.press("End")
    screen.focused(page, 79)
    page.keyboard.press("?")
    shortcuts = page.get_by_role("dialog", name="Keyboard shortcuts")
    expect(shortcuts).to_contain_text("open the image nearest to the middle")
    page.keyboard.press("Escape")
    expect(shortcuts).to_be_hidden()
    page.get_by_role("button", name="Keyboard shortcuts").click()
    expect(shortcuts).to_be_visible()


def test_images_that_cannot_be_shown(server, tabs):
    page = tabs(f"{server.url}/d?image={FAILED}")
    for what in ("It failed at ingest", "This image cannot be shown"):
        expect(page.get_by_text(f"{what}. It cannot be read: the file is empty.")).to_be_visible()
    expect(page.locator(".strip")).to_have_count(0)
    for image, message in (("80", "There is no row 80"), ("x", "There is no such image")):
        page.goto(f"{server.url}/d?image={image}")
        dialog = page.get_by_role("dialog")
        expect(dialog).to_contain_text(message)
        page.get_by_role("button", name="Back to the images").click()
        expect(dialog).to_be_hidden()
        screen.total(page, "80 images")


def test_back_after_closing_does_not_reopen(server, tabs):
    page = tabs(f"{server.url}/d?split=train")
    screen.total(page, "60 of 80 images")
    screen.tiles(page).nth(2).click()
    expect(title(page)).to_have_text("t02.jpg")
    page.locator(".strip li a").nth(1).click()
    expect(title(page)).not_to_have_text("t02.jpg")
    page.get_by_role("button", name="Close").click()
    expect(page.get_by_role("dialog")).to_be_hidden()
    expect(page).to_have_url(f"{server.url}/d?split=train")
    screen.follow(page, "All 80", 80, ".filters")
    page.go_back()
    screen.total(page, "60 of 80 images")
    expect(page.get_by_role("dialog")).to_be_hidden()


def test_keys_work_while_neighbours_are_compared(server, tabs):
    """The focus returns to the image that was seen last, also after another view."""
    page = tabs("about:blank")
    held = screen.hold(page, "**/neighbours/*?*")
    page.goto(f"{server.url}/d?image=50")
    expect(title(page)).to_have_text("t50.jpg")
    page.keyboard.press("ArrowRight")
    expect(title(page)).to_have_text("t51.jpg")
    page.keyboard.press("Escape")
    expect(page.get_by_role("dialog")).to_be_hidden()
    screen.focused(page, 51)
    assert len(held) == 2
    for route in held:
        route.continue_()
    screen.complete(page)
    page.get_by_role("link", name="Health").click()
    page.get_by_role("link", name="Images", exact=True).click()
    screen.total(page, "80 images")
    screen.until(
        page, "document.querySelector('.grid a[tabindex=\"0\"]')?.href.endsWith('image=51')"
    )


def test_thumbnail_until_the_original_is_here(server, tabs):
    page = tabs(server.url)
    release = screen.hold(page, "**/original/5*")
    page.goto(f"{server.url}/d?image=5", wait_until="commit")  # the held image delays "load"
    expect(page.locator(".preview")).to_be_visible()
    expect(page.locator("figcaption")).to_have_text("Loading the original…")
    release[0].continue_()
    expect(page.locator(".preview")).to_have_count(0)
    expect(page.locator(".full")).to_be_visible()
    expect(page.locator("figcaption")).to_be_hidden()


def test_reason_if_the_original_cannot_be_had(server, tabs, dataset_name):
    server.publish(dataset_name, 1)
    gcs.make_client().bucket(server.images).blob(f"{dataset_name}/train/0.jpg").delete()
    page = tabs(f"{server.url}/{dataset_name}?image=0")
    expect(page.locator("figcaption")).to_contain_text("It is not in the bucket.")
    # The browser may report the missing picture later; its messages arrive while it is asked.
    wait_for(lambda: page.evaluate("1") and page.problems)
    assert len(page.problems) == 1 and "404" in page.problems.pop()


def test_rotated_photograph_is_shown_as_the_models_see_it(server, tabs, dataset_name):
    server.publish(dataset_name, 1)
    with Image.open(io.BytesIO(synthetic.landscape(0))) as image:
        exif, file = Image.Exif(), io.BytesIO()
        exif[ExifTags.Base.Orientation] = 6
        image.save(file, "JPEG", exif=exif)
    blob = gcs.make_client().bucket(server.images).blob(f"{dataset_name}/train/0.jpg")
    blob.upload_from_string(file.getvalue())
    page = tabs(f"{server.url}/{dataset_name}?image=0")
    expect(page.locator("#detail dl")).to_contain_text("200 × 150 pixels")
    expect(page.locator("#detail dl")).to_contain_text("as the models see it")
    screen.until(page, "document.querySelector('.full')?.complete")
    full = page.locator(".full").bounding_box()
    assert full["width"] / full["height"] == pytest.approx(200 / 150, abs=0.02)


def placed(rect, frame, box, scale):
    """Check that a rectangle is drawn where a box is, in pixels from the frame's corner."""
    left, top, right, bottom = (scale * corner for corner in box)
    assert rect["x"] - frame["x"] == pytest.approx(left, abs=3)
    assert rect["y"] - frame["y"] == pytest.approx(top, abs=3)
    assert rect["width"] == pytest.approx(right - left, abs=5)
    assert rect["height"] == pytest.approx(bottom - top, abs=5)


def test_boxes(server, tabs, dataset_name):
    server.publish(dataset_name, 3, shapes={1: (100, 200)})
    hostile = "<b>\u202edog"
    server.box(dataset_name, "0", hostile, (10, 30, 120, 90))  # begins left of what the tile shows
    server.box(dataset_name, "1", "cat", (20, 199, 90, 120), "NEGATIVE")
    page = tabs(f"{server.url}/{dataset_name}")
    screen.total(page, "3 images")
    screen.wait_for_pictures(page)
    tiles = page.locator(".cell:not([hidden]) .tile")
    expect(tiles.locator(".boxes text")).to_have_text([hostile, "cat: negative"])
    expect(tiles.first.locator("img")).to_have_attribute("alt", f"0.jpg, box {hostile}")
    for place, side, box in ((0, 150, (-15, 30, 95, 90)), (1, 100, (20, 70, 90, 149))):
        tile = tiles.nth(place).bounding_box()
        rect = tiles.nth(place).locator("rect").bounding_box()
        placed(rect, tile, box, tile["width"] / side)
        text = tiles.nth(place).locator("text").bounding_box()
        assert text["x"] >= tile["x"] and 8 < text["height"] < 20
    page.get_by_label("Boxes", exact=True).uncheck()
    expect(tiles.first.locator(".boxes")).to_be_hidden()
    tiles.first.click()
    overlay, switch = page.locator("#detail .boxes"), page.get_by_label("Show the box")
    screen.until(page, "document.querySelector('.full')?.naturalWidth === 200")
    expect(overlay).to_be_hidden()
    switch.check()  # the same switch
    expect(overlay.locator("text")).to_have_text(hostile)
    full = page.locator(".full").bounding_box()
    placed(overlay.locator("rect").bounding_box(), full, (10, 30, 120, 90), full["width"] / 200)
    page.keyboard.press("Escape")
    expect(page.get_by_label("Boxes", exact=True)).to_be_checked()
    expect(tiles.first.locator(".boxes")).to_be_visible()
    page.get_by_label("Boxes", exact=True).uncheck()
    page.reload()
    expect(page.get_by_label("Boxes", exact=True)).not_to_be_checked()


def test_no_boxes_on_thumbnails_of_unknown_size(server, tabs, dataset_name):
    server.publish(dataset_name, 1, with_manifest=False)
    server.box(dataset_name, "0", "dog", (10, 30, 120, 90))
    page = tabs(f"{server.url}/{dataset_name}")
    expect(page.locator(".tile img").first).to_have_attribute("alt", "0.jpg, box dog")
    expect(page.locator(".tile .boxes")).to_have_count(0)
