"""The map and the health report."""

import re

import numpy as np

from local_forager.indexes import index as imagenet
from tests.harness import wait_for
from tests.local_forager import screen
from tests.local_forager.page_server import COPY, FAILED, serve_map
from tests.local_forager.screen import expect


def drawn(page):
    """The canvas as text: equal only if the same is drawn."""
    screen.complete(page)
    return page.evaluate("document.querySelector('canvas').toDataURL()")


def wait_until_drawn(page, condition):
    """Wait until condition(drawn(page)) is true, and return that drawing."""
    return wait_for(lambda: condition(text := drawn(page)) and text)


def show_all(page, whole):
    """Go back from any place to the whole map, which is drawn as it was."""
    page.get_by_role("button", name="Show all").click()
    page.mouse.move(5, 5)
    page.evaluate("document.activeElement.blur()")
    wait_until_drawn(page, lambda text: text == whole)


def point_on_map(page, row):
    """The place of a row on the screen, computed from the API's points as documented."""
    return page.evaluate(
        """async row => { const answer = await fetch('/page/d/map?by=clip&method=pca');
          const points = new Float32Array(await answer.arrayBuffer());
          const box = document.querySelector('canvas').getBoundingClientRect();
          const scale = 0.46 * Math.min(box.width, box.height);
          return [box.left + box.width / 2 + points[2 * row] * scale,
                  box.top + box.height / 2 - points[2 * row + 1] * scale]; }""",
        row,
    )


def test_map_hovers_and_opens(opened):
    page = opened("?view=map&names=no")
    x, y = point_on_map(page, 10)
    page.mouse.move(x, y)
    tip = page.locator(".tip")
    expect(tip.locator("img")).to_be_visible()
    screen.until(page, "document.querySelector('.tip img').naturalWidth > 0")
    page.mouse.wheel(0, -1)  # the point stays under the pointer
    expect(tip).to_be_visible()
    page.mouse.click(x, y)
    expect(page.get_by_role("dialog")).to_be_visible()
    expect(page).to_have_url(re.compile(r"image=\d+"))
    page.go_back()
    expect(page.get_by_role("dialog")).to_be_hidden()
    expect(page.locator("canvas")).to_be_visible()
    page.mouse.move(x + 1, y)
    expect(tip).to_be_visible()
    for _ in range(3):
        page.locator("canvas").press("ArrowUp")
    expect(tip).to_be_hidden()


def test_map_colours_and_filters(server, tabs):
    page = tabs(f"{server.url}/d?view=map&color=label")
    note = "An image with several labels has the colour of its rarest one."
    expect(page.locator(".legend li")).to_have_text(["no positive label75", "bird4", note])
    if not server.dataset("d")["umap"]["available"]:
        expect(page.locator("#map-method option", has_text="umap-learn")).to_be_disabled()
    page.get_by_label("Colour by").select_option("class")
    expect(page.locator(".legend")).to_contain_text("other class")
    expect(page).to_have_url(re.compile("color=class$"))
    screen.follow(page, "Validation", 20, ".filters")
    page.go_back()
    screen.total(page, "80 images")


def test_map_colours_by_the_commonest_labels(server, tabs, dataset_name):
    server.publish(dataset_name, 40)
    for number in range(12):  # 12 labels; the last ones by name have the most images
        few = [str(row) for row in range(number, 40, 13 - number)]
        server.label(dataset_name, few[: number + 1], f"label{number:02}")
    server.label(dataset_name, ["39"], "label11", "NEGATIVE")
    page = tabs(f"{server.url}/{dataset_name}?view=map&color=label")
    legend = page.locator(".legend")
    expect(legend).to_contain_text("other label")
    columns = page.evaluate(
        """name => fetch(`/page/${name}/column/label`).then(a => a.arrayBuffer())
                 .then(b => [...new Int32Array(b)])""",
        dataset_name,
    )
    counts = {place: columns.count(place) for place in set(columns) - {-1}}
    commonest = max(counts, key=lambda place: (counts[place], -place))
    expect(legend).to_contain_text(f"label{commonest:02}{counts[commonest]}")
    swatches = "[...document.querySelectorAll('.swatch')].map(one => one.style.background)"
    colors = page.evaluate(swatches)
    assert len(set(colors)) == len(colors) == min(len(counts), 10) + 2
    page.get_by_label("Colour by").select_option("label label11")
    expect(legend).to_contain_text("negative1")


def test_map_keeps_its_place(tabs, opened):
    page = opened("?view=map&pictures=no")
    page.get_by_role("button", name="Zoom in").click()
    page.locator("canvas").press("ArrowLeft")
    expect(page).to_have_url(re.compile("at=-"))
    page.evaluate("document.activeElement.blur()")
    place = drawn(page)
    shared = tabs(page.url)
    screen.complete(shared)
    wait_until_drawn(shared, lambda text: text == place)
    page.get_by_role("link", name="Images", exact=True).click()
    screen.total(page, "80 images")
    page.get_by_role("link", name="Map", exact=True).click()
    wait_until_drawn(page, lambda text: text == place)
    page.get_by_role("button", name="Show all").click()
    expect(page).not_to_have_url(re.compile("at="))


def test_map_pans_and_zooms(server, tabs):
    page = tabs(f"{server.url}/d?view=map&pictures=no")
    expect(page.locator(".legend")).to_contain_text("train")
    first = last = drawn(page)

    def changed():
        nonlocal last
        previous = last
        last = wait_until_drawn(page, lambda text: text != previous)

    box = page.locator("canvas").bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    page.mouse.move(x, y)
    page.mouse.wheel(0, -200)
    changed()
    screen.drag(page, (x, y), (x + 60, y + 30))
    changed()
    assert "image=" not in page.url  # a drag is no click
    page.locator("canvas").focus()
    for key in ("+", "ArrowLeft", "ArrowUp"):
        page.keyboard.press(key)
        changed()
    show_all(page, first)


def test_map_shows_pictures_when_few_points_are_in_view(server, tabs):
    page = tabs(f"{server.url}/d?view=map&pictures=no")
    expect(page.locator(".legend")).to_contain_text("train")
    plain = drawn(page)
    page.get_by_label("Pictures").check()
    wait_until_drawn(page, lambda text: len(text) > 1.2 * len(plain))  # pictures compress less
    expect(page).to_have_url(f"{server.url}/d?view=map")


def test_health_links_to_the_images(server, tabs):
    page = tabs(f"{server.url}/d?view=health")
    screen.follow(page, "Show 2 images in 1 group", 2, "[data-set=leak]")
    expect(page.locator(".badge:visible")).to_have_text(["train", "Group 1", "val · 0.000"])
    screen.shows_rows(page, [2, COPY])
    page.go_back()
    screen.follow(page, "Show 1 image", 1, "[data-set=failed]")
    screen.chips(page, "Failed images")
    screen.shows_rows(page, [FAILED])


def test_map_of_100_000(server, tabs):
    """Many points are drawn as density; a shape selects them all."""
    many = 100_000
    rng = np.random.default_rng(0)
    middles = rng.uniform(-0.8, 0.8, (4, 2))
    kinds = np.arange(many, dtype="<i4") % 4
    points = middles[kinds] + rng.normal(0, 0.05, (many, 2))
    page = tabs(server.url)
    serve_map(page, server, points, classes=kinds)
    page.goto(f"{server.url}/d?view=map&color=class")
    screen.total(page, "100,000 images")
    expect(page.locator(".legend li")).to_have_text(
        [f"{imagenet.class_name(number)}25,000" for number in range(4)]
    )
    whole = drawn(page)
    box = page.locator("canvas").bounding_box()
    left, top = box["x"] + 5, box["y"] + 5
    corner = left + box["width"] - 65, top + box["height"] - 10
    screen.drag(page, (left, top), corner, key="Shift")
    expect(page.locator(".selected-count")).to_have_text("100,000 selected")
    page.get_by_role("button", name="Clear").click()
    for _ in range(6):
        page.get_by_role("button", name="Zoom in").click()
    wait_until_drawn(page, lambda text: text != whole)
    show_all(page, whole)
