"""On the page: quality and columns of one's own as ranges, filters, colours and findings."""

import re
from functools import partial

import pytest

from tests.local_forager import screen
from tests.local_forager.screen import expect
from tests.local_forager.test_columns import with_columns  # noqa: F401


@pytest.fixture
def columned(opened, with_columns):  # noqa: F811
    """Open a page of a dataset with columns: columned(query, **options)."""
    return partial(opened, dataset=with_columns)


def test_texts_and_dates_by_the_keyboard(columned):
    page = columned()
    group = page.locator("#group-column")
    nikon = page.get_by_role("link", name="Nikon 2")
    expect(nikon).to_be_hidden()
    group.focus()
    page.keyboard.press("Enter")
    nikon.focus()
    page.keyboard.press("Enter")
    screen.total(page, "2 of 6 images")
    expect(nikon).to_be_focused()
    expect(nikon).to_have_attribute("aria-current", "true")
    page.get_by_role("link", name="Canon 1").click()
    screen.total(page, "3 of 6 images")
    screen.chips(page, "camera: Nikon", "camera: Canon")
    page.get_by_label("taken to", exact=True).fill("2024-03-31")
    page.get_by_label("taken to", exact=True).press("Enter")
    screen.total(page, "2 of 6 images")
    screen.shows_rows(page, [0, 1])
    expect(page.get_by_role("link", name="Nikon 1")).to_be_visible()  # within the dates
    lower = page.get_by_role("slider", name="taken: lower end")
    expect(lower).to_have_attribute("aria-valuetext", "2024-03-01")
    lower.focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Enter")
    screen.shows_rows(page, [1])
    expect(page).to_have_url(re.compile("min_taken=2024-03-0[2-9]"))
    page.go_back()
    page.go_back()
    screen.total(page, "3 of 6 images")
    page.reload()
    screen.total(page, "3 of 6 images")
    expect(page.locator(".group", has=group)).to_have_attribute("open", "")
    page.get_by_label("Sort").select_option("weight, largest first")
    screen.chips(page, "camera: Nikon", "camera: Canon", "sorted: weight, largest first")
    expect(screen.tiles(page).first).to_have_attribute("href", re.compile("image=2$"))


def test_a_finding_leads_to_the_range_that_it_is(columned):
    page = columned("?view=health&split=val")
    dark = page.locator(".finding[data-set=dark]")
    expect(dark).to_contain_text("brightness is at most 40")
    dark.get_by_role("link", name="Show 1 image").click()
    screen.total(page, "1 of 6 images")
    screen.chips(page, "brightness up to 40", "sorted: darkest first")
    page.get_by_label("Brightness to").fill("41")  # the group is open
    page.get_by_label("Brightness to").press("Enter")
    screen.total(page, "2 of 6 images")


def test_colours_by_a_column_and_by_a_number(columned):
    page = columned("?view=map")
    page.get_by_label("Colour by").select_option("camera")
    page.locator(".legend").get_by_role("link", name="Sony; α7").click()
    screen.total(page, "1 of 6 images")
    page.get_by_label("Colour by").select_option("Brightness")
    legend = page.locator(".legend li")
    expect(legend).to_have_text(["230 to 2551"])


def test_columns_come_and_go_while_the_page_is_open(server, columned, with_columns):  # noqa: F811
    page = columned("?min_weight=0&is_camera=Nikon", viewport={"width": 400, "height": 800})
    screen.total(page, "2 of 6 images")
    page.get_by_text("Search and filters").click()
    page.locator("#group-column").scroll_into_view_if_needed()
    assert page.evaluate("document.documentElement.scrollWidth") <= 400
    server.command("columns", with_columns, "--remove").succeeded()
    screen.total(page, "6 images")
    expect(page.locator("#group-column")).to_be_hidden()
    note = "They are not filtered by weight, camera. The dataset has no column weight."
    expect(page.get_by_role("alert")).to_contain_text(note)


def test_quality_of_an_older_index(opened):
    page = opened("?view=health")
    reason = "colourfulness are not known: the index was made by an older version"
    expect(page.locator(".health").get_by_text(reason)).to_be_visible()
    page.locator("#group-quality").click()
    expect(page.locator(".group").first).to_contain_text(reason)
    expect(page.locator("#sort option", has_text="sharpest first")).to_have_count(0)
