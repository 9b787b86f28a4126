"""The list of datasets, the grid of thumbnails, and the search by text."""

import os
import re

import numpy as np
import pytest

import gcs
from local_forager.analysis import text_search
from testing import synthetic
from testing.weights import write_text_tower
from tests.harness import wait_for
from tests.local_forager import screen
from tests.local_forager.page_server import FAILED, page_server
from tests.local_forager.screen import expect

HOSTILE = "<img src=x onerror=window.hacked=1>"
HOSTILE_NAMES = [
    f"h/train/{HOSTILE}.jpg",
    'h/train/"><svg onload=window.hacked=1>.jpg',
    "h/train/' onclick='window.hacked=1.jpg",
    "h/train/</title></script><script>window.hacked=1</script>.png",
    "h/train/javascript:window.hacked=1.jpg",
    "h/train/gpj.\u202eevil #?%2e&amp;.jpg",
    "h/val/{{window.hacked=1}}.jpg",
]


def test_home_lists_datasets(server, tabs):
    page = tabs(server.url)
    card = page.locator(".card", has_text="60 train · 20 validation").first
    expect(card.locator(".card-name")).to_have_text("d")
    screen.wait_for_pictures(page, "li:first-child .covers")
    card.click()
    screen.total(page, "80 images")
    expect(page).to_have_url(f"{server.url}/d")
    expect(page).to_have_title("d · Forager")
    page.go_back()
    expect(page.get_by_role("heading", name="Datasets")).to_be_visible()


def test_home_shows_a_new_dataset_without_a_reload(emulator, tmp_path, tabs):
    with page_server(tmp_path) as server:
        page = tabs("about:blank")
        page.clock.install()
        page.goto(server.url)
        expect(page.get_by_text("python ingest.py NAME")).to_be_visible()
        server.publish("late", 1)
        server.create("not a name", "x", "nothing")
        page.clock.fast_forward(5_000)
        expect(page.get_by_role("link", name="late")).to_be_visible()
        expect(page.locator(".card.closed")).to_contain_text("no images")
        expect(page.locator(".card.closed")).to_contain_text("No Forager can open")
        page.close()  # before its server: the page asks for new datasets


def test_empty_dataset(server, tabs, dataset_name):
    server.publish(dataset_name, 0)
    page = tabs(f"{server.url}/{dataset_name}")
    expect(page.get_by_text("This dataset has no images.")).to_be_visible()
    for view in ("Map", "Health", "Images"):
        page.get_by_role("link", name=view, exact=True).click()
        expect(page.locator("#tabs a[aria-current=page]")).to_have_text(view)
    screen.total(page, "0 images")


def test_datasets_that_cannot_be_shown(server, tabs, dataset_name):
    server.create(dataset_name, "no-such-index", "d")
    page = tabs(f"{server.url}/{dataset_name}")
    expect(page.get_by_text("There is no complete index in")).to_be_visible()
    expect(page.get_by_text("60 training and 20 validation images")).to_be_visible()
    page.goto(f"{server.url}/nothing")
    expect(page.get_by_text("There is no dataset named nothing here.")).to_be_visible()
    # The browser itself reports the two answers with status 404.
    assert len(page.problems) == 2 and all("404" in problem for problem in page.problems)
    page.problems.clear()
    page.get_by_role("link", name="All datasets").click()
    expect(page.get_by_role("heading", name="Datasets")).to_be_visible()


def test_hostile_names_and_labels_run_nothing(server, tabs, dataset_name):
    server.publish(dataset_name, HOSTILE_NAMES, 6)
    known = [os.path.splitext(os.path.basename(name))[0] for name in HOSTILE_NAMES]
    for mode in ("POSITIVE", HOSTILE):
        server.label(dataset_name, known[:3], f"{HOSTILE}{mode}", mode, user=HOSTILE)
    server.label(dataset_name, known[:1], "javascript:window.hacked=1//\u202e")
    server.label(dataset_name, known[:1], "__proto__", "constructor")
    server.create(f"{HOSTILE}{dataset_name[:12]}", HOSTILE, "h")
    page = tabs(server.url)
    expect(page.get_by_text(HOSTILE).first).to_be_visible()
    address = f"{server.url}/{dataset_name}"
    page.goto(address)
    screen.total(page, "7 images")
    screen.wait_for_pictures(page)
    page.locator(".filters").get_by_text("__proto__").click()
    screen.total(page, "1 of 7 images")
    for row, name in enumerate(HOSTILE_NAMES):
        page.goto(f"{address}?image={row}&category={HOSTILE}")
        title = page.get_by_role("dialog").get_by_text(name.rsplit("/")[-1], exact=True)
        expect(title).to_be_visible()
        expect(page.get_by_text("200 × 150 pixels")).to_be_visible()
        screen.complete(page)
    page.goto(f"{address}?view=map&color=label&text={HOSTILE}&by={HOSTILE}&set=near")
    screen.complete(page)
    page.goto(f"{address}?view=map&color=label")
    expect(page.locator(".legend")).to_contain_text("onerror")
    for query in (f"mode={HOSTILE}&category=x", f"view={HOSTILE}", "view=__proto__"):
        page.goto(f"{address}?{query}")
        expect(page.locator(".total")).to_be_visible()
    assert page.evaluate("window.hacked") is None
    expect(page.locator("script")).to_have_count(1)
    page.problems[:] = [
        one for one in page.problems if "status of 400" not in one and "409" not in one
    ]


@pytest.mark.parametrize("view", ["", "?view=map", "?view=health", "?image=3"])
def test_every_control_has_a_name_and_nothing_is_wider_than_the_screen(server, tabs, view):
    page = tabs(f"{server.url}/d{view}", viewport={"width": 320, "height": 800})
    for width in (320, 768, 2560):
        page.set_viewport_size({"width": width, "height": 800})
        screen.complete(page)
        screen.until(page, f"document.documentElement.scrollWidth <= {width}")
        screen.until(page, f"document.querySelector('dialog').scrollWidth <= {width}")
    nameless = """() => [...document.querySelectorAll('a, button, input, select, img, canvas')]
        .filter(one => one.checkVisibility() && !one.closest('[aria-hidden]') && !(
          one.textContent.trim() || one.ariaLabel || one.hasAttribute('alt') || one.title
          || one.querySelector('img[alt]') || one.labels?.length))
        .map(one => one.outerHTML)"""
    assert page.evaluate(nameless) == []


def test_header_is_one_row_on_a_telephone(server, tabs, dataset_name):
    server.publish(dataset_name, 1)  # a name of 34 characters
    page = tabs(f"{server.url}/{dataset_name}", viewport={"width": 400, "height": 800})
    screen.total(page, "1 image")
    assert page.locator(".bar").bounding_box()["height"] < 60
    for link in ("Images", "Map", "Health"):
        expect(page.get_by_role("link", name=link, exact=True)).to_be_in_viewport(ratio=1)


def test_missing_thumbnails_look_the_same_everywhere(server, tabs, dataset_name):
    index_id = server.publish(dataset_name, 3)
    for row in range(3):
        blob = f"thumbnails/{index_id}/{row}.jpg"
        gcs.make_client().bucket(server.index).blob(blob).delete()
    page = tabs(f"{server.url}/{dataset_name}")
    missing = '[src="/static/missing.svg"]'
    expect(page.locator(f".grid img{missing}")).to_have_count(3)
    page.goto(f"{server.url}/{dataset_name}?image=0")
    expect(page.locator(f".strip img{missing}")).to_have_count(2)
    page.goto(server.url)
    card = page.locator(".card", has_text=dataset_name)
    expect(card.locator(f".covers img{missing}")).to_have_count(3)


def test_dark_and_light(server, tabs):
    def lightness(scheme):
        page = tabs(f"{server.url}/d", color_scheme=scheme)
        color = page.evaluate("getComputedStyle(document.body).backgroundColor")
        red, green, blue = map(int, color.removeprefix("rgb(").removesuffix(")").split(","))
        return (red + green + blue) / 3

    assert lightness("light") > 200 and lightness("dark") < 60


def test_views_that_change_quickly_end_at_the_last_one(server, tabs):
    page = tabs(f"{server.url}/d")
    for _ in range(3):
        for view in ("Map", "Health", "Images"):
            page.get_by_role("link", name=view, exact=True).click()
    screen.total(page, "80 images")
    screen.wait_for_pictures(page)
    expect(page).to_have_url(f"{server.url}/d")


def test_grid_shows_thumbnails(opened):
    """It holds only what is on the screen, and Tab leads to an image there."""
    page = opened(viewport={"width": 1000, "height": 400})
    screen.wait_for_pictures(page)
    cells = page.locator(".cell:not([hidden])")
    expect(cells.nth(FAILED)).to_contain_text("failed: t04.jpg")
    expect(cells.first).to_have_attribute("aria-setsize", "80")
    expect(cells.first.locator("img")).to_have_attribute("alt", "t00.jpg, bird")
    assert len(screen.shown_rows(page)) < 60
    stop = "[...document.querySelectorAll('.cell:not([hidden]) a[tabindex=\"0\"]')]"
    screen.until(page, f"{stop}.map(a => a.href.split('=')[1]).join() === '0'")
    page.mouse.wheel(0, 100_000)
    screen.until(
        page, "[...document.querySelectorAll('.grid a')].some(a => a.href.endsWith('=79'))"
    )
    screen.wait_for_pictures(page)
    assert 0 not in screen.shown_rows(page)
    screen.until(page, f"{stop}.length === 1 && !{stop}[0].href.endsWith('image=0')")
    top, bottom = page.evaluate(
        f"(box => [box.top, box.bottom])({stop}[0].getBoundingClientRect())"
    )
    assert 0 <= top < bottom < 400
    page.set_viewport_size({"width": 1200, "height": 800})
    page.get_by_role("radio", name="large").check()
    width = "document.querySelector('.cell:not([hidden])').offsetWidth"
    screen.until(page, f"{width} >= 240")
    page.reload()
    screen.total(page, "80 images")
    screen.until(page, f"{width} >= 240")
    expect(page.get_by_role("radio", name="large")).to_be_checked()


def arrives(page, held):
    """Let a request go that was held back, and wait until the page has dealt with its answer."""
    with page.expect_response(held.request.url) as answer:
        held.continue_()
    answer.value.finished()
    screen.complete(page)
    page.evaluate("new Promise(done => requestAnimationFrame(() => setTimeout(done, 100)))")


def test_late_health_report_leaves_the_grid_in_place(server, tabs):
    page = tabs(f"{server.url}/d?image=51")
    expect(page.get_by_role("dialog")).to_contain_text("t51.jpg")
    page.keyboard.press("Escape")
    screen.focused(page, 51)
    held = screen.hold(page, "**/page/d/health*")
    page.get_by_role("link", name="Health").click()
    wait_for(lambda: held)
    page.get_by_role("link", name="Images", exact=True).click()
    screen.total(page, "80 images")
    before = page.evaluate("scrollY")
    assert before > 0
    arrives(page, held[0])
    assert page.evaluate("scrollY") == before


def test_late_answer_does_not_replace_a_newer_view(opened):
    page = opened()
    held = screen.hold(page, "**/page/d/rows?*split=val*")
    page.locator(".filters").get_by_role("link", name="Validation 20").click()
    wait_for(lambda: held)
    screen.follow(page, "Train 60", 60, ".filters")
    arrives(page, held[0])
    screen.total(page, "60 of 80 images")


def test_grid_of_a_million(server, tabs):
    """Browsers limit the height of an element; the last image is reached all the same."""
    page = tabs(server.url)
    many = (np.arange(1_000_000) % 80).astype("<i4").tobytes()
    page.route("**/page/d/rows*", lambda route: route.fulfill(body=many))
    page.goto(f"{server.url}/d")
    screen.total(page, "1,000,000 of 80 images")
    places = "[...document.querySelectorAll('.cell:not([hidden])')].map(one => one.ariaPosInSet)"
    page.evaluate("scrollTo(0, document.documentElement.scrollHeight)")
    screen.until(page, f"{places}.includes('1000000')")
    screen.wait_for_pictures(page)
    page.evaluate("scrollTo(0, document.documentElement.scrollHeight / 2)")
    screen.until(page, f"{places}.every(place => place > 0.45e6 && place < 0.55e6)")
    screen.tiles(page).first.focus()
    page.keyboard.press("End")
    screen.until(page, "document.activeElement.parentElement.ariaPosInSet === '1000000'")
    page.keyboard.press("Home")
    screen.until(page, "document.activeElement.parentElement.ariaPosInSet === '1'")
    screen.until(page, "document.activeElement.getBoundingClientRect().top > 0")


def test_filters_and_back(server, tabs):
    page = tabs(f"{server.url}/d")
    screen.follow(page, "Validation 20", 20, ".filters")
    screen.follow(page, re.compile("^bird 1"), 1, ".filters")  # of the validation images
    screen.shows_rows(page, [60])
    screen.follow(page, "Remove the filter: validation", 4)
    screen.follow(page, re.compile("^negative 1"), 1, ".filters")
    expect(page).to_have_url(f"{server.url}/d?category=bird&mode=NEGATIVE")
    for found in (4, 1, 20):
        page.go_back()
        screen.total(page, f"{found} of 80 images")
    page.go_forward()
    screen.total(page, "1 of 80 images")
    page.reload()
    screen.total(page, "1 of 80 images")
    screen.shows_rows(page, [60])
    page.goto(f"{server.url}/d")
    screen.follow(page, "No label 74", 74)
    screen.follow(page, "Any label 6", 6)
    screen.shows_rows(page, [0, 1, 2, 3, 7, 60])


def test_labels_appear_without_a_reload(server, tabs, dataset_name):
    server.publish(dataset_name, 1)
    page = tabs("about:blank")
    page.clock.install()
    page.goto(f"{server.url}/{dataset_name}?image=0")
    dialog = page.get_by_role("dialog")
    expect(dialog.get_by_text("No labels")).to_be_visible()
    server.label(dataset_name, ["0"], "new")
    page.clock.fast_forward(4_000)
    expect(dialog.locator(".labels")).to_have_text("new")
    page.keyboard.press("Escape")
    link = page.locator(".filters").get_by_role("link", name="new 1")
    expect(link).to_be_visible()
    server.label(dataset_name, ["0"], "new", "TOMBSTONE")  # as Forager removes a label
    page.clock.fast_forward(4_000)
    expect(link).to_have_count(0)


def test_text_search_without_weights(server, tabs):
    page = tabs(f"{server.url}/d?text=a+dog&split=val")
    screen.total(page, "20 of 80 images")
    expect(page.get_by_role("alert")).to_contain_text("not sorted by the text “a dog”")
    screen.shows_rows(page, range(60, 80))
    expect(page.get_by_role("searchbox", name="Search by text")).to_be_disabled()
    expect(page.get_by_role("search").get_by_text("--clip_weights")).to_be_visible()


def test_text_search(emulator, tmp_path, tabs):
    weights = tmp_path / "clip"
    write_text_tower(weights)
    assert text_search.why_not(weights) is None
    note = "Answers are random."
    with page_server(tmp_path, "--clip_weights", str(weights), "--note", note) as server:
        server.publish("d", 12)
        page = tabs("about:blank")
        with page.expect_request("**/page/text_model"):  # so that the search need not wait for it
            page.goto(f"{server.url}/d")
        expect(page.get_by_role("alert")).to_have_text(note)
        field = page.get_by_role("searchbox", name="Search by text")
        field.fill("a dog")
        field.press("Enter")
        expect(page.locator(".summary .chip")).to_contain_text("by text: a dog")
        screen.total(page, "12 images")
        order = page.evaluate("fetch('/page/d/rows?text=a+dog').then(a => a.arrayBuffer())"
                              ".then(b => [...new Int32Array(b)])")  # fmt: skip
        vector = text_search.text_vector(text_search.text_tower(weights), "a dog")
        vectors = np.concatenate(list(synthetic.vectors(12, 512)))
        assert order == np.argsort(-vectors @ vector).tolist()
        page.close()  # before its server: the page asks for new labels
