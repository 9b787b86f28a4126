"""The names of clusters on the map, what is selected on it, and its toolbar."""

import re

import numpy as np
import pytest

from local_forager.indexes.index import class_name
from tests.harness import wait_for
from tests.local_forager import screen
from tests.local_forager.page_server import serve_map
from tests.local_forager.screen import expect

EACH = 300  # points of a cluster
MIDDLES = [(-0.7, 0.6), (0.7, 0.6), (-0.7, -0.6), (0.7, -0.6), (0, 0)]
BIRD, SKY = 0, 1  # places in the categories of dataset "d"
BOXES = """() => ['.map-box', '.names button'].map(selector =>
  [...document.querySelectorAll(selector)].map(one => {
    const { left, right, top, bottom } = one.getBoundingClientRect();
    return [left, right, top, bottom]; }))"""


@pytest.fixture
def named(server, tabs):
    """Open the map of five clusters: labelled, of one class, of two, of none, barely labelled."""

    def open_map(query="", **options):
        rng = np.random.default_rng(0)
        kinds = np.arange(5 * EACH) % 5
        points = np.array(MIDDLES)[kinds] + rng.normal(0, 0.04, (len(kinds), 2))
        classes = rng.choice([1, 2, 3, 4, 5], len(kinds), p=[2 / 8, 2 / 8, 1 / 8, 1 / 8, 2 / 8])
        classes[kinds == 0] = 1
        classes[kinds == 1] = 2
        classes[kinds == 2] = 3 + np.arange(EACH) % 2
        classes[kinds == 4] = 5
        labels = np.full(len(kinds), -1)
        labels[np.flatnonzero(kinds == 0)[::3]] = BIRD
        labels[np.flatnonzero(kinds == 4)[::8]] = SKY
        page = tabs(server.url, **options)
        serve_map(page, server, points, classes, labels, val=np.flatnonzero(kinds == 1))
        page.goto(f"{server.url}/d?view=map{query}")
        screen.total(page, "1,500 images")
        return page

    return open_map


def shows_names(page, *texts):
    """Wait until the map has these names, in any order."""
    screen.complete(page)
    expect(page.locator(".names button")).to_have_count(len(texts))
    assert set(page.locator(".names button").all_text_contents()) == set(texts)


def shows_only(page, *texts):
    """Wait until the map has some of these names, as often as there is room, and no others."""
    names = page.locator(".names button")
    wait_for(lambda: (found := set(names.all_text_contents())) and found <= set(texts))


def none_overlap(page):
    """The names lie within the map, beside each other; how many there are."""
    screen.complete(page)
    ((left, right, top, bottom),), names = page.evaluate(BOXES)
    for place, one in enumerate(names):
        assert left <= one[0] + 1 and one[1] - 1 <= right, one
        assert top <= one[2] + 1 and one[3] - 1 <= bottom, one
        for other in names[:place]:
            apart = one[0] > other[1] or other[0] > one[1] or one[2] > other[3] or other[2] > one[3]
            assert apart, (one, other)
    return len(names)


def test_clusters_are_named_by_labels_or_classes(named):
    page = named()
    both = (f"{class_name(3)}, {class_name(4)}", f"{class_name(4)}, {class_name(3)}")
    second = next(text for text in both if page.get_by_role("button", name=text).count())
    shows_names(page, "bird", class_name(2), second, class_name(5))
    expect(page.get_by_role("list", name="On the map").get_by_role("button")).to_have_count(4)
    about = page.get_by_role("button", name=class_name(2), exact=True).get_attribute("title")
    assert re.fullmatch(
        rf"{class_name(2)}: 100% here, 2\d% of all\. About 2\d\d images: click to zoom in\.", about
    )
    page.locator(".filters").get_by_role("link", name="Validation").click()
    screen.total(page, "300 of 1,500 images")
    shows_names(page, class_name(2))


def test_a_name_zooms_to_its_cluster(named):
    page = named("&pictures=no")
    page.get_by_role("button", name=class_name(5), exact=True).press("Enter")
    expect(page).to_have_url(re.compile(r"at=-?0\.0"))
    shows_only(page, class_name(5), "sky")
    assert page.evaluate("document.activeElement.className").startswith("canvas")
    page.keyboard.press("0")
    expect(page.get_by_role("button", name="bird", exact=True)).to_be_attached()
    screen.complete(page)
    box = page.get_by_role("button", name="bird", exact=True).bounding_box()
    page.mouse.click(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    expect(page).to_have_url(re.compile(r"at=-0\.[67]"))
    assert "image=" not in page.url
    shows_only(page, "bird", class_name(1))


def test_names_are_switched_off(named, tabs):
    page = named("&pictures=no")
    page.get_by_role("checkbox", name="Names").uncheck()
    expect(page.locator(".names button")).to_have_count(0)
    expect(page).to_have_url(re.compile("names=no"))
    page.reload()
    screen.total(page, "1,500 images")
    shows_names(page)
    page.locator("canvas").press("n")
    expect(page.get_by_role("checkbox", name="Names")).to_be_checked()
    expect(page.locator(".names button")).to_have_count(4)
    expect(page).not_to_have_url(re.compile("names="))


@pytest.mark.parametrize("width", [400, 1400])
def test_names_do_not_overlap(opened, width):
    page = opened("?view=map&pictures=no", viewport={"width": width, "height": 800})
    assert none_overlap(page) >= 3
    for _ in range(3):
        page.get_by_role("button", name="Zoom in").click()
        none_overlap(page)
    page.locator("canvas").press("ArrowLeft")
    none_overlap(page)


def test_selecting_does_not_move_the_map(named):
    page = named("&names=no", viewport={"width": 1400, "height": 800})
    canvas = page.locator("canvas")
    before = canvas.bounding_box()
    x, y = before["x"] + 20, before["y"] + 20
    screen.drag(page, (x, y), (x + 0.4 * before["width"], y + 0.4 * before["height"]), key="Shift")
    expect(page.locator(".selected-count")).to_have_text("300 selected")
    assert canvas.bounding_box() == before
    assert page.locator(".selection").bounding_box()["y"] >= before["y"] + before["height"]
    expect(page.locator(".strip li").first).to_be_in_viewport()
    assert page.evaluate("scrollY") == 0


def test_a_selected_picture_has_a_frame(opened):
    """A pixel beside it is ink, and was not before."""
    page = opened("?view=map&names=no", viewport={"width": 1400, "height": 800})
    frame = """async row => { const answer = await fetch('/page/d/map?by=clip&method=pca');
      const points = new Float32Array(await answer.arrayBuffer());
      const canvas = document.querySelector('canvas');
      const scale = 0.46 * Math.min(canvas.width, canvas.height);
      const x = canvas.width / 2 + points[2 * row] * scale;
      const y = canvas.height / 2 - points[2 * row + 1] * scale;
      const copy = new OffscreenCanvas(1, 1).getContext('2d', { willReadFrequently: true });
      copy.drawImage(canvas, -Math.round(x + 22 + 3), -Math.round(y));
      return [...copy.getImageData(0, 0, 1, 1).data].join(); }"""
    screen.complete(page)
    before = page.evaluate(frame, 20)
    page.get_by_role("link", name="Images", exact=True).click()
    page.get_by_role("link", name="t20.jpg").press("Space")
    page.get_by_role("link", name="Map", exact=True).click()
    screen.until(page, f"() => ({frame})(20).then(color => color === '29,35,32,255')")
    assert before != "29,35,32,255"


def test_toolbar_is_one_row_where_there_is_room_and_never_cut(named):
    page = named("", viewport={"width": 1400, "height": 800})
    parts = """[...document.querySelectorAll('.map-controls > *')].map(one => {
      const { left, right, top, bottom } = one.getBoundingClientRect();
      return [left, right, (top + bottom) / 2]; })"""
    middles = {round(middle) for _, _, middle in page.evaluate(parts)}
    assert max(middles) - min(middles) <= 4
    page.set_viewport_size({"width": 400, "height": 800})
    edges = """[...document.querySelectorAll('.map-controls label')].map(one => {
      const { left, right } = one.getBoundingClientRect(); return [left, right]; })"""
    sides = page.evaluate(edges)
    assert len(sides) == 10 and all(left >= 0 and right <= 400 for left, right in sides)
    assert page.evaluate("document.documentElement.scrollWidth") <= 400
