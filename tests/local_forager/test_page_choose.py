"""Choosing a subset of a view: the address of the page's API, and the dialog in a browser."""

import json

import numpy as np
import pytest

from local_forager import types as page_types
from tests.local_forager import screen
from tests.local_forager.page_server import FAILED, conforms, fetch
from tests.local_forager.screen import expect
from tests.local_forager.test_page_selection import selected


@pytest.mark.parametrize("kind", ["diverse", "typical"])
def test_choose_by_the_api(server, kind):
    def chosen(query, given=()):
        body = np.array(given, "<i4").tobytes()
        return server.array(f"d/choose?kind={kind}&{query}", "<i4", body).tolist()

    rows = chosen("count=12")
    assert len(set(rows)) == 12 and FAILED not in rows
    assert rows == chosen("count=12")
    more = chosen("count=12&compare=imagenet", rows)
    assert len(set(more)) == 12 and not set(more) & set(rows)
    of_view = "split=val&max_width=200&labelled=no"
    left = set(chosen(f"count=50&{of_view}"))
    assert left <= set(server.rows(of_view)) and len(left) == 19


@pytest.mark.parametrize(
    ("query", "body"),
    [
        ("kind=odd&count=5", b""),
        ("kind=diverse&count=0", b""),
        ("kind=diverse&count=x", b""),
        ("kind=diverse&count=5&compare=x", b""),
        ("kind=diverse&count=5", b"x"),
        ("kind=diverse&count=5", np.array([80], "<i4").tobytes()),
    ],
)
def test_choose_refuses(server, query, body):
    status, _, answer = fetch(f"{server.url}/page/d/choose?{query}", body=body, method="POST")
    assert status == 400
    conforms(json.loads(answer), page_types.Problem)


def choose(page, number, kind="Diverse"):
    """Choose by keyboard: the count has the focus."""
    page.get_by_role("button", name="Choose…").press("Enter")
    screen.until(page, "document.activeElement.id === 'choose-count'")
    page.get_by_role("radio", name=kind).check()
    page.get_by_label("How many").fill(str(number))
    page.get_by_label("How many").press("Enter")


@pytest.mark.page
def test_choose_on_the_page(server, opened):
    page = opened("?split=val")
    choose(page, 6)
    selected(page, 6)
    expect(page.get_by_role("dialog", name="Choose")).to_be_hidden()
    choose(page, 4, "Typical")
    selected(page, 10)
    choose(page, 50)
    dialog = page.get_by_role("dialog", name="Choose")
    expect(dialog).to_contain_text("They are added to the 10 selected images")
    expect(dialog.get_by_role("status")).to_have_text("Only 10 were left to choose from.")
    page.keyboard.press("Escape")
    page.get_by_role("button", name="Show", exact=True).click()
    screen.total(page, "20 of 80 images")
    screen.shows_rows(page, range(60, 80))
    expect(page.get_by_role("button", name="Choose…")).to_be_disabled()


@pytest.mark.page
def test_the_dialog_says_how_far_it_is_and_ends_with_escape(opened):
    page = opened()
    working = {"status": 202, "json": {"working": "Comparing images: 40%"}}
    page.route("**/choose?*", lambda route: route.fulfill(**working))
    choose(page, 5)
    dialog = page.get_by_role("dialog", name="Choose")
    expect(dialog.get_by_role("status")).to_have_text("Comparing images: 40%")
    page.keyboard.press("Escape")
    expect(dialog).to_be_hidden()
    page.unroute("**/choose?*")
    choose(page, 5)
    selected(page, 5)


@pytest.mark.page
def test_the_dialog_fits_a_narrow_screen(opened):
    page = opened(viewport={"width": 400, "height": 800})
    page.get_by_role("button", name="Choose…").click()
    for name in ("#choose", "#choose-count", "#choose-by"):
        box = page.locator(name).bounding_box()
        assert box["x"] >= 0 and box["x"] + box["width"] <= 400
