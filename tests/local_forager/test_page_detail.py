"""The detail view of one image: facts, neighbours, walking through the view by keyboard."""

import re

import numpy as np
import pytest

from testing import synthetic
from tests.local_forager.page_server import (
    COPY,
    FAILED,
    shows_rows,
    total,
    until,
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


@pytest.mark.parametrize("by", ["imagenet", "imagenet_early"])
def test_compares_by_each_embedding(server, tabs, by):
    page = tabs(f"{server.url}/d?image=0")
    expect(page.locator(".strip li")).to_have_count(24)
    page.get_by_role("radio", name=by, exact=True).check()
    expect(page).to_have_url(re.compile(f"by={by}"))
    expect(page.locator(".strip li")).to_have_count(24)
    page.get_by_role("link", name="Sort all images by similarity").click()
    total(page, "79 of 80 images")  # all but the failed one
    expect(page.locator(".chip")).to_contain_text("by similarity to image 0")


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
    until(page, "document.activeElement.getAttribute('href')?.endsWith('image=2')")
    page.keyboard.press("End")
    until(page, "document.activeElement.getAttribute('href')?.endsWith('image=79')")


def test_failed_image(server, tabs):
    page = tabs(f"{server.url}/d?image={FAILED}")
    expect(page.get_by_text("It failed at ingest")).to_be_visible()
    expect(page.get_by_text("This image cannot be shown")).to_be_visible()
    expect(page.locator(".strip")).to_have_count(0)


@pytest.mark.parametrize(
    ("image", "message"), [("80", "There is no row 80"), ("x", "There is no such image")]
)
def test_no_such_image(server, tabs, image, message):
    page = tabs(f"{server.url}/d?image={image}")
    expect(page.get_by_role("dialog")).to_contain_text(message)


def test_class_link_filters(server, tabs):
    page = tabs(f"{server.url}/d?image=0")
    page.locator("dl a").click()
    expect(page.locator(".chip")).to_contain_text("ImageNet class")
    kinds = synthetic.kind_of(np.arange(80))
    kinds[COPY] = kinds[2]
    kinds[FAILED] = -1
    shows_rows(page, np.flatnonzero(kinds == kinds[0]).tolist())
