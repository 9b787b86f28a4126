"""The distance of near duplicates on the page: slider, number, examples, and "Keep one"."""

import re

import numpy as np
import pytest

from tests.local_forager import screen
from tests.local_forager.page_server import COPY
from tests.local_forager.screen import expect

FOUND = "#near-found"


def near_rows(server, distance):
    """The rows that are kept, and the other ones, of groups for a distance."""
    sent = server.rows(f"set=near&distance={distance}")
    return [~row for row in sent if row < 0], [row for row in sent if row >= 0]


def test_slider_with_the_keyboard(server, opened):
    page = opened("?view=health")
    slider = page.get_by_role("slider", name="Distance of near duplicates")
    expect(page.locator(FOUND)).to_have_text(re.compile("^2 images in 1 group; "))
    slider.focus()
    page.keyboard.press("End")
    expect(page.locator(FOUND)).not_to_have_text(re.compile("^2 images in 1 group; "))
    expect(slider).to_be_focused()
    page.keyboard.press("ArrowLeft")
    number = page.get_by_role("spinbutton", name="Distance of near duplicates, as a number")
    expect(page).to_have_url(re.compile(r"distance=0\.\d+$"))
    distance = page.url.partition("distance=")[2]
    expect(number).to_have_value(distance)
    kept, others = near_rows(server, distance)
    images, groups = len(kept + others), len(kept)
    expect(page.locator(FOUND)).to_have_text(re.compile(f"^{images} images in {groups} groups; "))
    pictures = page.locator(".pairs img")
    expect(pictures).to_have_count(8)
    expect(pictures.nth(1)).to_have_attribute("alt", re.compile("second of two images with the d"))
    page.get_by_role("link", name=f"Show {images} images in {groups} groups").first.click()
    screen.total(page, f"{images} of 80 images")
    screen.chips(page, f"Near duplicates, distance up to {distance}")
    page.reload()
    screen.total(page, f"{images} of 80 images")
    page.go_back()
    expect(number).to_have_value(distance)
    page.get_by_role("button", name="Default:").click()
    expect(page.locator(FOUND)).to_have_text(re.compile("^2 images in 1 group; "))
    expect(page).to_have_url(f"{server.url}/d?view=health")


def test_keep_one_selects_the_others(server, opened):
    page = opened("?view=health&distance=0.3")
    kept, others = near_rows(server, 0.3)
    assert len(others) > len(kept) > 3
    near = page.locator("[data-set=near]")
    count = page.locator(".selected-count")
    near.get_by_role("button", name="Select").click()
    expect(count).to_have_text(f"{len(kept + others)} selected")
    near.get_by_role("button", name="Keep one").click()
    expect(count).to_have_text(f"{len(others)} selected")
    page.locator(".selection").get_by_role("button", name="Show").click()
    screen.total(page, f"{len(others)} of 80 images")
    expect(page).to_have_url(f"{server.url}/d?selected=yes")
    page.locator(".selection").get_by_role("button", name="Clear").click()
    page.goto(f"{server.url}/d?view=health")
    page.locator("[data-set=exact]").get_by_role("button", name="Keep one").click()
    expect(count).to_have_text("1 selected")
    page.locator(".selection").get_by_role("button", name="Show").click()
    screen.shows_rows(page, [COPY])


@pytest.mark.parametrize("distance", ["1.9", "-1", "x"])
def test_a_distance_that_cannot_be_shown(server, opened, distance):
    """One in the address is answered with the default, one in the box leaves the last."""
    page = opened("?view=health&distance=0.25")
    kept, others = near_rows(server, 0.25)
    link = page.locator("[data-set=near]").get_by_role("link")
    expect(link).to_contain_text(f"Show {len(kept + others)} images")
    number = page.locator("#near-distance")
    if distance != "x":  # which the box does not take
        page.problems.clear()
        number.fill(distance)
        number.press("Enter")
        expect(page.locator(FOUND)).to_have_text(re.compile("distance"))
        expect(link).to_contain_text(f"Show {len(kept + others)} images")
        expect(page).to_have_url(f"{server.url}/d?view=health&distance=0.25")
    page.goto(f"{server.url}/d?view=health&distance={distance}")
    expect(page.locator(FOUND)).to_have_text(re.compile("distance"))
    expect(link).to_contain_text("Show 2 images in 1 group")
    expect(page).to_have_url(f"{server.url}/d?view=health")
    page.problems[:] = [one for one in page.problems if "status of 400" not in one]


def test_a_group_begins_with_the_image_that_is_kept(server):
    """Rows 10 and 11 have more pixels than the others, and 12 has less, as far as they are near."""
    kept, others = near_rows(server, 0.3)
    assert 12 not in kept and not {10, 11} & set(others) and np.unique(kept).size == len(kept)
