"""The grid of thumbnails, its filters and the search by text."""

import json

import numpy as np
import pytest

from local_forager.analysis import text_search
from testing import synthetic
from tests.local_forager.page_server import (
    FAILED,
    complete,
    page_server,
    shown_rows,
    shows_rows,
    total,
    until,
    wait_for,
    wait_for_pictures,
)

playwright = pytest.importorskip("playwright.sync_api", reason="no playwright")
expect = playwright.expect


def test_grid_shows_thumbnails(server, tabs):
    """It holds only what is on the screen, and Tab leads to an image there."""
    page = tabs(f"{server.url}/d", viewport={"width": 1000, "height": 400})
    total(page, "80 images")
    wait_for_pictures(page)
    cells = page.locator(".cell:not([hidden])")
    expect(cells.nth(FAILED)).to_contain_text("failed: t04.jpg")
    expect(cells.first).to_have_attribute("aria-setsize", "80")
    expect(cells.first.locator("img")).to_have_attribute("alt", "t00.jpg, bird")
    assert len(shown_rows(page)) < 60
    stop = "[...document.querySelectorAll('.cell:not([hidden]) a[tabindex=\"0\"]')]"
    until(page, f"{stop}.map(a => a.href.split('=')[1]).join() === '0'")
    page.mouse.wheel(0, 100_000)
    until(page, "[...document.querySelectorAll('.grid a')].some(a => a.href.endsWith('=79'))")
    wait_for_pictures(page)
    assert 0 not in shown_rows(page)
    until(page, f"{stop}.length === 1 && !{stop}[0].href.endsWith('image=0')")
    top, bottom = page.evaluate(
        f"(box => [box.top, box.bottom])({stop}[0].getBoundingClientRect())"
    )
    assert 0 <= top < bottom < 400
    page.set_viewport_size({"width": 1200, "height": 800})
    page.get_by_role("radio", name="large").check()
    width = "document.querySelector('.cell:not([hidden])').offsetWidth"
    until(page, f"{width} >= 240")
    page.reload()
    total(page, "80 images")
    until(page, f"{width} >= 240")
    expect(page.get_by_role("radio", name="large")).to_be_checked()


def arrives(page, held):
    """Let a request go that was held back, and wait until the page has dealt with its answer."""
    with page.expect_response(held.request.url) as answer:
        held.continue_()
    answer.value.finished()
    complete(page)
    page.evaluate("new Promise(done => requestAnimationFrame(() => setTimeout(done, 100)))")


def test_late_health_report_leaves_the_grid_in_place(server, tabs):
    page = tabs(f"{server.url}/d?image=51")
    expect(page.get_by_role("dialog")).to_contain_text("t51.jpg")
    page.keyboard.press("Escape")
    until(page, "document.activeElement.getAttribute('href')?.endsWith('image=51')")
    held = []
    page.route("**/page/d/health*", lambda route: held.append(route))
    page.get_by_role("link", name="Health").click()
    wait_for(lambda: held, "the request for the health report")
    page.get_by_role("link", name="Images", exact=True).click()
    total(page, "80 images")
    before = page.evaluate("scrollY")
    assert before > 0
    arrives(page, held[0])
    assert page.evaluate("scrollY") == before


def test_late_answer_does_not_replace_a_newer_view(server, tabs):
    page = tabs(f"{server.url}/d")
    total(page, "80 images")
    held = []
    page.route("**/page/d/rows?*split=val*", lambda route: held.append(route))
    page.locator(".filters").get_by_role("link", name="Validation 20").click()
    wait_for(lambda: held, "the request for validation images")
    page.locator(".filters").get_by_role("link", name="Train 60").click()
    total(page, "60 of 80 images")
    arrives(page, held[0])
    total(page, "60 of 80 images")


def test_grid_of_a_million(server, tabs):
    """Browsers limit the height of an element; the last image is reached all the same."""
    page = tabs(server.url)
    many = (np.arange(1_000_000) % 80).astype("<i4").tobytes()
    page.route("**/page/d/rows*", lambda route: route.fulfill(body=many))
    page.goto(f"{server.url}/d")
    total(page, "1,000,000 of 80 images")
    places = "[...document.querySelectorAll('.cell:not([hidden])')].map(one => one.ariaPosInSet)"
    page.evaluate("scrollTo(0, document.documentElement.scrollHeight)")
    until(page, f"{places}.includes('1000000')")
    wait_for_pictures(page)
    page.evaluate("scrollTo(0, document.documentElement.scrollHeight / 2)")
    until(page, f"{places}.every(place => place > 0.45e6 && place < 0.55e6)")
    page.locator(".cell:not([hidden]) a").first.focus()
    page.keyboard.press("End")
    until(page, "document.activeElement.parentElement.ariaPosInSet === '1000000'")
    page.keyboard.press("Home")
    until(page, "document.activeElement.parentElement.ariaPosInSet === '1'")
    until(page, "document.activeElement.getBoundingClientRect().top > 0")


def test_filters_and_back(server, tabs):
    page = tabs(f"{server.url}/d")
    filters = page.locator(".filters")
    filters.get_by_role("link", name="Validation 20").click()
    total(page, "20 of 80 images")
    filters.get_by_role("link", name="bird 5").click()
    total(page, "1 of 80 images")
    shows_rows(page, [60])
    page.get_by_role("link", name="Remove the filter: validation").click()
    total(page, "5 of 80 images")
    filters.get_by_role("link", name="negative 1").click()
    total(page, "1 of 80 images")
    expect(page).to_have_url(f"{server.url}/d?category=bird&mode=NEGATIVE")
    page.go_back()
    total(page, "5 of 80 images")
    page.go_back()
    total(page, "1 of 80 images")
    page.go_back()
    total(page, "20 of 80 images")
    page.go_forward()
    total(page, "1 of 80 images")
    shared = tabs(page.url)
    total(shared, "1 of 80 images")
    shows_rows(shared, [60])
    page.goto(f"{server.url}/d")
    page.get_by_role("link", name="No label 74").click()
    total(page, "74 of 80 images")
    page.get_by_role("link", name="Any label 6").click()
    total(page, "6 of 80 images")
    shows_rows(page, [0, 1, 2, 3, 7, 60])


def test_labels_appear_without_a_reload(server, tabs, dataset_name):
    server.publish(dataset_name, [f"{dataset_name}/train/a.jpg"], 1)
    page = tabs("about:blank")
    page.clock.install()
    page.goto(f"{server.url}/{dataset_name}?image=0")
    dialog = page.get_by_role("dialog")
    expect(dialog.get_by_text("No labels")).to_be_visible()
    server.label(dataset_name, ["a"], "new")
    page.clock.fast_forward(4_000)
    expect(dialog.locator(".labels")).to_have_text("new")
    page.keyboard.press("Escape")
    link = page.locator(".filters").get_by_role("link", name="new 1")
    expect(link).to_be_visible()
    server.label(dataset_name, ["a"], "new", "TOMBSTONE")  # as Forager removes a label
    page.clock.fast_forward(4_000)
    expect(link).to_have_count(0)


def test_boxes_on_thumbnails(server, tabs, dataset_name):
    names = [f"{dataset_name}/train/{letter}.jpg" for letter in "abc"]
    server.publish(dataset_name, names, 3, shapes={1: (100, 200)})
    hostile = "<b>\u202edog"
    server.box(dataset_name, "a", hostile, (10, 30, 120, 90))  # begins left of what the tile shows
    server.box(dataset_name, "b", "cat", (20, 199, 90, 120), "NEGATIVE")
    page = tabs(f"{server.url}/{dataset_name}")
    total(page, "3 images")
    wait_for_pictures(page)
    tiles = page.locator(".cell:not([hidden]) .tile")
    expect(tiles.locator(".boxes text")).to_have_text([hostile, "cat: negative"])
    expect(tiles.first.locator("img")).to_have_attribute("alt", f"a.jpg, box {hostile}")
    for place, (left, top, side), box in (
        (0, (25, 0, 150), (10, 30, 120, 90)),
        (1, (0, 50, 100), (20, 120, 90, 199)),
    ):
        tile = tiles.nth(place).bounding_box()
        rect = tiles.nth(place).locator("rect").bounding_box()
        scale = tile["width"] / side
        assert rect["x"] - tile["x"] == pytest.approx((box[0] - left) * scale, abs=3)
        assert rect["y"] - tile["y"] == pytest.approx((box[1] - top) * scale, abs=3)
        assert rect["width"] == pytest.approx((box[2] - box[0]) * scale, abs=5)
        assert rect["height"] == pytest.approx((box[3] - box[1]) * scale, abs=5)
        text = tiles.nth(place).locator("text").bounding_box()
        assert text["x"] >= tile["x"] and 8 < text["height"] < 20
    page.get_by_label("Boxes", exact=True).uncheck()
    expect(tiles.first.locator(".boxes")).to_be_hidden()
    tiles.first.click()
    page.get_by_label("Show the box").check()  # the same switch
    page.keyboard.press("Escape")
    expect(page.get_by_label("Boxes", exact=True)).to_be_checked()
    expect(tiles.first.locator(".boxes")).to_be_visible()


def test_no_boxes_on_thumbnails_of_unknown_size(server, tabs, dataset_name):
    server.publish(dataset_name, [f"{dataset_name}/train/a.jpg"], 1, with_manifest=False)
    server.box(dataset_name, "a", "dog", (10, 30, 120, 90))
    page = tabs(f"{server.url}/{dataset_name}")
    expect(page.locator(".tile img").first).to_have_attribute("alt", "a.jpg, box dog")
    expect(page.locator(".tile .boxes")).to_have_count(0)


def test_text_search_without_weights(server, tabs):
    page = tabs(f"{server.url}/d?text=a+dog&split=val")
    total(page, "20 of 80 images")
    expect(page.get_by_role("alert")).to_contain_text("not sorted by the text “a dog”")
    shows_rows(page, range(60, 80))
    expect(page.get_by_role("searchbox", name="Search by text")).to_be_disabled()
    expect(page.get_by_role("search").get_by_text("--clip_weights")).to_be_visible()


def write_text_tower(directory):
    """A tiny CLIP text tower with a tokenizer of letters, in the hub's layout."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    tokens = [chr(letter) for letter in range(97, 123)]
    words = ["<|startoftext|>", "<|endoftext|>", *tokens, *(token + "</w>" for token in tokens)]
    directory.mkdir()
    (directory / "vocab.json").write_text(json.dumps({word: at for at, word in enumerate(words)}))
    (directory / "merges.txt").write_text("#version: 0.2\n")
    config = transformers.CLIPTextConfig(
        vocab_size=len(words), hidden_size=32, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=4, projection_dim=512, max_position_embeddings=77,
        bos_token_id=0, eos_token_id=1, pad_token_id=1,
    )  # fmt: skip
    transformers.CLIPTextModelWithProjection(config).eval().save_pretrained(directory)


def test_text_search(emulator, tmp_path, tabs):
    weights = tmp_path / "clip"
    write_text_tower(weights)
    assert text_search.why_not(weights) is None
    with page_server(tmp_path, "--clip_weights", str(weights)) as server:
        server.publish("d", [f"d/train/t{row:02}.jpg" for row in range(12)], 12)
        page = tabs(f"{server.url}/d")
        field = page.get_by_role("searchbox", name="Search by text")
        field.fill("a dog")
        field.press("Enter")
        expect(page.locator(".summary .chip")).to_contain_text("by text: a dog")
        total(page, "12 images")
        order = page.evaluate("fetch('/page/d/rows?text=a+dog').then(a => a.arrayBuffer())"
                              ".then(b => [...new Int32Array(b)])")  # fmt: skip
        vector = text_search.TextTower(weights).vector("a dog")
        vectors = np.concatenate(list(synthetic.vectors(12, 512)))
        assert order == np.argsort(-vectors @ vector).tolist()
        page.close()  # before its server: the page asks for new labels
