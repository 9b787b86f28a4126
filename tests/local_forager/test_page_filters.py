"""Filters and orders of the page: labels, classes, names, and sizes with their histograms."""

import re

import numpy as np
import pytest

from local_forager import types as page_types
from local_forager.indexes import index as imagenet
from local_forager.indexes.fields import BINS
from local_forager.page.rows import histogram
from testing import synthetic
from tests.local_forager import screen
from tests.local_forager.page_server import COPY, FAILED, fetch, get, made_fields
from tests.local_forager.screen import expect


def test_filters_of_the_page(server, tabs):
    page = tabs(f"{server.url}/d")
    screen.follow(page, "And with this label: bird", 4)
    page.get_by_role("button", name="Modes of sky").click()
    screen.follow(page, "Without this label: sky: far away", 3)
    screen.follow(page, "Remove the filter: and bird", 78)
    page.get_by_label("Object name contains").fill("v1")
    page.get_by_label("Object name contains").press("Enter")
    screen.total(page, "10 of 80 images")
    screen.chips(page, "not sky: far away", "name contains v1")
    page.get_by_label("Sort").select_option("name, backwards")
    expect(page.locator(".cell:not([hidden])").first).to_have_attribute("aria-posinset", "1")
    expect(screen.tiles(page).first).to_have_attribute("href", re.compile("image=79$"))


def test_signs_of_a_mode_and_counts_that_follow_the_other_filters(server, tabs):
    page = tabs(f"{server.url}/d?split=train")
    bird = page.locator("#category-bird")
    expect(bird).to_have_text(re.compile("^bird3.*negative.*1$"))
    page.get_by_role("button", name="Modes of bird").click()
    screen.follow(page, "Or with this label: bird: negative", 1)
    screen.follow(page, "Or with this label: bird", 4, "li:has(> #category-bird) > .mores")
    screen.chips(page, "train", "or bird: negative", "or bird")
    screen.follow(page, "any mode 4", 4, ".filters")
    screen.chips(page, "train", "bird: any mode", "or bird: negative", "or bird")
    expect(page.locator("#split-val")).to_have_text("Validation1")
    expect(bird).to_have_text(re.compile("^bird3"))  # its own filter does not count
    screen.follow(page, "Clear all", 80)
    expect(page.locator("#select-all")).to_be_focused()  # the link is gone
    expect(bird).to_have_text(re.compile("^bird4"))
    page.goto(f"{server.url}/d?or=bird&with=sky")  # a link from before signs had modes
    screen.chips(page, "bird", "and sky")


def test_the_keyboard_stays_at_what_it_chose(opened):
    page = opened()
    for name, found in [("#category-bird", 4), ("#split-val", 1), ("#chip-0", 4)]:
        page.locator(name).press("Enter")
        screen.total(page, f"{found} of 80 images")
        expect(page.locator(name)).to_be_focused()


def test_sidebar_is_short(server, tabs, dataset_name):
    server.publish(dataset_name, 20)
    for number in range(30):
        server.label(dataset_name, [str(row) for row in range(1 + number % 5)], f"label {number}")
    page = tabs(f"{server.url}/{dataset_name}", more_filters=False)
    screen.total(page, "20 images")
    labels = page.locator("[id^=category-]")
    expect(labels).to_have_count(12)
    page.get_by_role("button", name="18 more").click()
    expect(labels).to_have_count(30)
    page.keyboard.press("/")
    expect(page.locator("#name")).to_be_focused()  # there is no search by text
    page.reload()
    screen.total(page, "20 images")
    in_grid = "document.activeElement.closest('.grid') !== null"
    presses = 0
    while not page.evaluate(in_grid):
        page.keyboard.press("Tab")
        presses += 1
        assert presses <= 15
    page.reload()
    screen.total(page, "20 images")
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")  # Skip to the images
    screen.focused(page, 0)
    labels.first.focus()
    page.keyboard.press("ArrowDown")
    expect(labels.nth(1)).to_be_focused()


def test_orders_that_a_dataset_is_too_large_for(server, tabs):
    reason = "Only datasets of up to 9 images can be sorted by their neighbours."
    refused = {"neighbour_sorts": {"available": False, "reason": reason}}
    page = tabs(server.url)
    page.route("**/page/d/dataset", lambda held: held.fulfill(json=server.dataset("d") | refused))
    page.goto(f"{server.url}/d?sort=outliers&split=val")
    screen.total(page, "20 of 80 images")
    expect(page.get_by_role("alert")).to_have_text(reason)
    expect(page.locator("#sort option", has_text="outliers")).to_be_disabled()
    expect(page.locator(".filters").get_by_text(reason)).to_be_visible()


def test_class_by_name(server, tabs):
    """In the panel, in the legend of the map, and in the facts of an image."""
    kinds = synthetic.kind_of(np.arange(80))
    kinds[COPY], kinds[FAILED] = kinds[2], -1
    name = imagenet.class_name(80 * kinds[0])
    page = tabs(f"{server.url}/d")
    page.get_by_label("Find a class").fill(name.upper())
    page.locator(".filters").get_by_role("link", name=name).click()
    expect(page.locator(".summary .chip")).to_contain_text(f"ImageNet class: {name}")
    screen.shows_rows(page, np.flatnonzero(kinds == kinds[0]).tolist())
    for query, place in (("view=map&color=class", ".legend"), ("image=0", "#detail dl")):
        page.goto(f"{server.url}/d?{query}")
        page.locator(place).get_by_role("link", name=name).click()
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
    screen.total(page, "79 of 80 images")
    expect(page.locator("#working")).to_be_empty()


def test_sizes_of_the_page(server, tabs):
    page = tabs(f"{server.url}/d")
    page.get_by_label("File size to").fill("0")
    page.get_by_role("button", name="Apply").click()
    screen.total(page, "1 of 80 images")
    screen.chips(page, "file size up to 0 bytes")
    screen.shows_rows(page, [FAILED])
    screen.follow(page, "Remove the filter: file size", 80)
    for label, limit, found in (("Width from", "201", 2), ("Aspect to", "2", 1)):
        page.get_by_label(label).fill(limit)
        page.get_by_label(label).press("Enter")
        screen.total(page, f"{found} of 80 images")
    screen.chips(page, "width from 201 pixels", "aspect up to 2")
    screen.follow(page, "Remove the filter: width", 78)
    page.get_by_label("Sort").select_option("narrowest first")
    expect(screen.tiles(page).first).to_have_attribute("href", re.compile("image=12$"))


def test_either_label_on_the_page(server, tabs, dataset_name):
    hostile = ["<b>100%0A</b>\n=1", "\u202efirst"]
    server.publish(dataset_name, 4)
    for row, label in enumerate(hostile):
        server.label(dataset_name, [str(row)], label)
    page = tabs(f"{server.url}/{dataset_name}")
    for place, images in enumerate((1, 2)):
        page.get_by_role("link", name="Or with this label").nth(place).click()
        screen.total(page, f"{images} of 4 images")
    page.reload()
    screen.total(page, "2 of 4 images")
    chips = page.locator(".summary .chip bdi").all_text_contents()
    assert chips == [f"or {label}" for label in sorted(hostile)]
    page.locator(".summary .chip").first.click()
    screen.total(page, "1 of 4 images")
    expect(page.locator(".summary .chip bdi")).to_have_text(hostile[1])
    screen.shows_rows(page, [1])


@pytest.mark.parametrize("damage", ["no manifest", "of other images", "damaged"])
def test_index_whose_sizes_are_not_known(server, tabs, dataset_name, damage):
    def change(file):
        blob = file("manifest.parquet")
        if damage == "no manifest":
            blob.delete()
        else:
            content = synthetic.manifest_of(["another.jpg"] * 2, [(1, 1, 1)] * 2)
            blob.upload_from_string(content[:-9] if damage == "damaged" else content)

    server.publish(dataset_name, 2, change=change)
    sizes = server.dataset(dataset_name)["sizes"]
    assert not sizes["available"] and damage in sizes["reason"]
    for query in ("min_width=1", "max_aspect=1", "sort=tallest"):
        answer = get(f"{server.url}/page/{dataset_name}/rows?{query}")
        assert answer == (409, {"error": sizes["reason"]})
    assert len(fetch(f"{server.url}/page/{dataset_name}/rows?sort=largest")[2]) == 2 * 4
    page = tabs(f"{server.url}/{dataset_name}?min_width=1&sort=portrait")
    screen.total(page, "2 images")
    note = "They are not filtered by width and not sorted"
    expect(page.get_by_role("alert")).to_contain_text(note)
    expect(page.locator("section.ranges")).to_contain_text(sizes["reason"])
    expect(page.get_by_label("Width from")).to_have_count(0)
    expect(page.locator("#sort option", has_text="widest")).to_be_disabled()


@pytest.mark.parametrize("name", ["width", "brightness"])  # bins of logarithmic and of equal width
@pytest.mark.parametrize(
    "values",
    [[5], [0], [0, 0, 7], [1, 2, 3], [640] * 9 + [10**12], list(range(5000)), [-1, 3, -1, 900]],
)
def test_bins_hold_all_known_values(values, name):
    field = made_fields(**{name: values})[name]
    known = np.array([value for value in values if value >= 0])
    chosen = np.array(values) > np.median(known)
    found = histogram(field, chosen)
    edges = found["edges"]
    assert edges[0] == known.min() and edges[-1] == pytest.approx(known.max() + field.step)
    assert (np.diff(edges) > 0).all() and len(edges) <= BINS + 2
    assert found["images"] == np.histogram(known, edges)[0].tolist()
    assert sum(found["chosen"]) == chosen.sum()


def test_no_bins_without_values():
    for values in ([-1] * 3, []):
        field = made_fields(width=values)["width"]
        assert histogram(field, np.ones(len(values), bool)) is None


def histograms(server, query=""):
    answer = server.typed(f"d/histograms?{query}", page_types.HistogramList)
    return {one["field"]: one for one in answer["histograms"]}


def test_histograms_pass_the_filters_of_other_fields(server):
    every = histograms(server)
    assert list(every) == ["width", "height", "aspect", "bytes"]
    width, aspect = every["width"], every["aspect"]
    assert (width["edges"][0], width["edges"][-1]) == (100, 301) and sum(width["images"]) == 79
    assert (aspect["step"], aspect["edges"][0], aspect["edges"][-1]) == (0.001, 0.5, 3.001)
    assert width["images"] == width["chosen"]
    wide = histograms(server, "min_width=201")
    assert wide["width"]["chosen"] == width["images"]
    assert wide["height"]["images"] == every["height"]["images"]
    assert sum(wide["height"]["chosen"]) == sum(wide["bytes"]["chosen"]) == 2
    assert sum(histograms(server, "set=leak")["width"]["chosen"]) == 2
    assert sum(histograms(server, "category=bird&split=val")["aspect"]["chosen"]) == 1


def plot(page, name):
    """The plot of a histogram on the screen, and the x of a place from 0 to 1."""
    element = page.locator(f"[data-field={name}] .plot")
    element.scroll_into_view_if_needed()
    box = element.bounding_box()
    return lambda share: (box["x"] + share * box["width"], box["y"] + box["height"] / 2)


def test_brush_with_the_mouse(server, opened):
    page = opened()
    expect(page.get_by_role("slider", name="Width: lower end")).to_be_visible()
    at = plot(page, "width")
    page.mouse.move(*at(0.8))
    page.mouse.down()
    page.mouse.move(*at(1.2), steps=3)
    expect(page.locator("[data-field=width] .axis")).to_contain_text("300 pixels2 images")
    screen.total(page, "80 images")  # only shown until the button is up
    page.mouse.up()
    screen.total(page, "2 of 80 images")
    screen.shows_rows(page, [10, 11])
    expect(page.locator(".summary .chip")).to_contain_text("width from ")
    screen.drag(page, at(0.8), at(-0.2))  # the handle, back to the beginning
    screen.total(page, "80 images")
    expect(page).to_have_url(f"{server.url}/d")
    page.go_back()
    screen.total(page, "2 of 80 images")
    page.go_forward()
    screen.total(page, "80 images")
    page.route("**/histograms?*min_width*", lambda held: None)  # the new ones never come
    for start, end, found in ((0.8, 1.2, "2 of 80 images"), (0.8, -0.2, "80 images")):
        screen.drag(page, at(start), at(end))
        screen.total(page, found)


def test_brush_with_the_keyboard(opened):
    page = opened()
    upper = page.get_by_role("slider", name="Width: upper end")
    expect(upper).to_have_attribute("aria-valuenow", "300")
    upper.focus()
    page.keyboard.press("ArrowLeft")  # applied after a pause; the failed one has no width
    screen.total(page, "77 of 80 images")
    expect(upper).to_be_focused()
    page.keyboard.press("Home")
    page.keyboard.press("Enter")
    screen.total(page, "1 of 80 images")
    screen.shows_rows(page, [12])
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Escape")
    expect(upper).to_have_attribute("aria-valuetext", "102 pixels")
    screen.total(page, "1 of 80 images")
    page.keyboard.press("End")
    page.keyboard.press("Enter")
    screen.total(page, "80 images")
    expect(page.locator("[data-field=height] .axis")).to_have_text("100 to 200 pixels")
    screen.follow(page, "Validation 20", 20, ".filters")
    bars = page.locator("[data-field=width] .bars")
    expect(bars).to_have_attribute("d", re.compile("^M[^M]*$"))  # one bar: all are 200 wide


def test_brush_with_a_finger(opened):
    page = opened(has_touch=True, viewport={"width": 400, "height": 800})
    page.get_by_text("Search and filters").tap()
    expect(page.get_by_role("slider", name="Height: lower end")).to_be_visible()
    at = plot(page, "height")
    touch = page.context.new_cdp_session(page)
    points = [[{"x": x, "y": y}] for x, y in (at(0.9), at(0.95), at(0.99))]
    touch.send("Input.dispatchTouchEvent", {"type": "touchStart", "touchPoints": points[0]})
    for moved in points[1:]:
        touch.send("Input.dispatchTouchEvent", {"type": "touchMove", "touchPoints": moved})
    touch.send("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []})
    screen.total(page, "1 of 80 images")
    expect(page).to_have_url(re.compile("min_height=1[89][0-9]$"))
