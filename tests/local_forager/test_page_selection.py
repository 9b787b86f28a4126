"""Selecting images in every view, and exporting them from the page."""

import csv
import io
import json
import re
from pathlib import Path

import pytest

from tests.local_forager import screen
from tests.local_forager.page_server import COPY, FAILED
from tests.local_forager.screen import expect

MOMENT = r"\d{4}-\d\d-\d\d-\d{6}"  # date and time in the name of a file


def selected(page, number):
    """Wait until the bar says how many images are selected."""
    expect(page.locator(".selected-count")).to_have_text(f"{number} selected")


def tile(page, place):
    return page.locator(f'.cell:not([hidden])[aria-posinset="{place + 1}"]')


def open_grid(server, tabs, query=""):
    page = tabs(f"{server.url}/d{query}", viewport={"width": 1200, "height": 900})
    screen.complete(page)
    screen.wait_for_pictures(page)
    return page


def show_selected(page):
    page.get_by_role("button", name="Show", exact=True).click()
    expect(page.locator(".summary .chip")).to_contain_text("selected")


def test_boxes_ranges_and_single_images(server, tabs):
    page = open_grid(server, tabs)
    expect(page.locator(".selection")).to_be_hidden()
    tile(page, 2).locator(".check").check()
    tile(page, 5).locator(".check").click(modifiers=["Shift"])
    selected(page, 4)
    tile(page, 3).locator("a").click(modifiers=["ControlOrMeta"])
    tile(page, 8).locator("a").click(modifiers=["ControlOrMeta"])
    selected(page, 4)
    tile(page, 2).locator(".check").uncheck()
    show_selected(page)
    screen.total(page, "3 of 80 images")
    screen.shows_rows(page, [4, 5, 8])
    tile(page, 0).locator(".check").click()
    screen.total(page, "2 of 80 images")
    page.get_by_role("button", name="Clear").click()
    selected(page, 0)
    page.get_by_role("button", name="Undo").click()
    selected(page, 2)
    screen.shows_rows(page, [5, 8])


def test_selection_by_keyboard(server, tabs):
    page = open_grid(server, tabs)
    tile(page, 0).locator("a").focus()
    for keys, number in (
        (" ", 1), ("Shift+ArrowRight", 2), ("Shift+ArrowRight", 3), (" ", 2),
    ):  # fmt: skip
        page.keyboard.press(keys)
        selected(page, number)
    screen.until(page, "document.activeElement.parentElement.ariaPosInSet === '3'")
    page.keyboard.press("ControlOrMeta+a")
    selected(page, 80)


def test_selection_by_touch(opened):
    page = opened(has_touch=True, viewport={"width": 400, "height": 800})
    for place in (0, 4):
        expect(tile(page, place).locator(".check")).to_be_visible()
        tile(page, place).locator(".check").tap()
    selected(page, 2)


def test_selection_survives_filters_views_and_back(server, tabs):
    page = open_grid(server, tabs, "?split=val")
    page.get_by_role("button", name="Select all").click()
    selected(page, 20)
    screen.follow(page, re.compile("^bird 1"), 1, ".filters")
    for view in ("Map", "Health", "Images"):
        page.get_by_role("link", name=view, exact=True).click()
        screen.complete(page)
        selected(page, 20)
    page.go_back()
    page.go_back()
    screen.complete(page)
    selected(page, 20)


def test_selection_is_kept_by_name(server, tabs):
    page = open_grid(server, tabs)
    tile(page, 7).locator(".check").check()
    page.get_by_label("Name of the selection").fill("<b>seven")
    page.get_by_role("button", name="Keep", exact=True).click()
    page.get_by_role("button", name="Clear").click()
    selected(page, 0)
    page.reload()
    screen.complete(page)
    page.get_by_label("Kept selections").select_option("<b>seven")
    selected(page, 1)
    show_selected(page)
    screen.shows_rows(page, [7])
    page.get_by_role("button", name="Delete kept").click()
    expect(page.get_by_label("Kept selections")).to_have_count(0)
    page.get_by_role("button", name="Undo").click()
    expect(page.get_by_label("Kept selections").locator("option")).to_have_count(2)
    expect(page.locator("#show-selected")).to_be_focused()


def test_selection_survives_a_reload_and_a_refused_view(server, tabs):
    page = open_grid(server, tabs, "?split=val")
    page.get_by_role("button", name="Select all").click()
    selected(page, 20)
    page.reload()
    screen.total(page, "20 of 80 images")
    selected(page, 20)
    expect(page.locator(".selection")).to_contain_text("kept in this browser")
    page.goto(f"{server.url}/d?split=neither")
    expect(page.get_by_role("alert")).to_contain_text("split is none of")
    selected(page, 20)
    expect(page.get_by_label("Object name contains")).to_be_visible()
    page.get_by_role("link", name="All images").click()
    screen.total(page, "80 images")
    show_selected(page)
    screen.total(page, "20 of 80 images")
    assert {"status of 400" in problem for problem in page.problems} == {True}
    page.problems.clear()
    other = tabs(f"{server.url}/d?selected=yes")  # of another browser: a shared link
    expect(other.get_by_role("alert")).to_contain_text("A link does not contain a selection")


def test_select_a_finding_a_group_and_neighbours(server, tabs):
    page = tabs(f"{server.url}/d?view=health")
    page.locator("[data-set=failed]").get_by_role("button", name="Select").click()
    selected(page, 1)
    screen.follow(page, "Show 2 images", 2, "[data-set=near]")
    page.get_by_role("button", name="Group 1").click()
    selected(page, 3)
    show_selected(page)
    screen.shows_rows(page, [2, FAILED, COPY])
    page.get_by_role("button", name="Clear").click()
    page.goto(f"{server.url}/d?image=0")
    page.get_by_role("button", name="Select these 24").click()
    page.keyboard.press("Escape")
    selected(page, 24)


@pytest.mark.parametrize("tool", ["Rectangle", "Lasso", "Shift"])
def test_shapes_on_the_map(opened, tool):
    page = opened("?view=map&pictures=no")
    if tool != "Shift":
        page.get_by_role("radio", name=tool).check()
    box = page.locator("canvas").bounding_box()
    left, top = box["x"] + 5, box["y"] + 5
    right, bottom = left + box["width"] - 80, top + box["height"] - 10

    def draw(*corners):
        corners = corners if tool == "Lasso" else (corners[0], corners[2])
        screen.drag(page, *corners, key="Shift")

    draw((left, top), (right, top), (right, bottom), (left, bottom))
    selected(page, 79)  # all but the failed one
    expect(page.get_by_label("Selected images").locator("li")).to_have_count(24)
    expect(page.get_by_role("link", name="Show all 79")).to_be_visible()
    page.get_by_role("radio", name="Remove").check()
    middle = (left + right) / 2
    draw((middle, top), (right, top), (right, bottom), (middle, bottom))
    screen.until(page, "parseInt(document.querySelector('.selected-count').textContent) < 79")
    show_selected(page)


def export(page, format_, **fields):
    page.get_by_role("button", name="Export…").click()
    dialog = page.get_by_role("dialog", name="Export")
    dialog.get_by_text(format_).click()
    for label, text in fields.items():
        dialog.get_by_label(label).fill(text)
    with page.expect_download() as download:
        dialog.get_by_role("button", name="Download").click()
    expect(dialog.get_by_role("status")).to_contain_text("Exported")
    path = Path(download.value.path())
    return download.value.suggested_filename, path.read_bytes()


def test_export(server, tabs):
    page = open_grid(server, tabs, "?category=bird")
    page.get_by_role("button", name="Select all").click()
    name, data = export(page, "Object names")
    assert re.fullmatch(f"d-names-{MOMENT}.txt", name)
    assert data.decode().split() == [*(f"d/train/t0{row}.jpg" for row in range(4)), "d/val/v00.jpg"]
    page.keyboard.press("Escape")
    name, data = export(page, "CSV")
    rows = list(csv.DictReader(io.StringIO(data.decode())))
    assert (
        re.fullmatch(f"d-csv-{MOMENT}.csv", name)
        and rows[1]["labels"] == "bird=POSITIVE; sky=far away"
    )
    assert [row["split"] for row in rows] == ["train"] * 4 + ["val"]
    assert {(row["width"], row["height"]) for row in rows} == {("200", "150")}
    page.keyboard.press("Escape")
    name, data = export(page, "Label file", Category="seen; rm *", Mode="UNSURE")
    assert re.fullmatch(f"d-seen_rm_-{MOMENT}.json", name)
    command = page.locator("#export code").inner_text()
    assert f"SERVER_URL={server.url} python ingest_labels.py d {name} --user" in command
    document = json.loads(data)
    assert len(document) == 5
    assert document["d/val/v00.jpg"] == [{"category": "seen; rm *", "mode": "UNSURE"}]
    page.get_by_label("Category").fill(" ")
    page.get_by_role("button", name="Download").click()
    expect(page.locator("#export [role=status]")).to_have_text("A label file needs a category.")
    screen.reported(page, "400")
