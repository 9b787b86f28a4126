"""The page in a real headless Chromium: skipped where there is no playwright or no chromium."""

import json
import os
import re
import shutil
import uuid
from pathlib import Path
from urllib.request import Request, urlopen

import numpy as np
import pytest

import gcs
from local_forager.analysis import text_search
from testing import synthetic
from testing.servers import local_forager

playwright = pytest.importorskip(
    "playwright.sync_api", reason="no playwright: pip install playwright to test the page"
)
CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or ""
pytestmark = pytest.mark.skipif(
    not CHROMIUM, reason="no chromium: apt-get install chromium to test the page"
)
CHROMIUM_FLAGS = [
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
]
NAMES = [f"d/train/t{row:02}.jpg" for row in range(60)] + [
    f"d/val/v{row:02}.jpg" for row in range(20)
]
BAD = ("error", "warning")  # kinds of messages on the console
FAILED, COPY = 4, 65  # rows; the latter, of validation, has the picture of row 2
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


def post(url, payload):
    with urlopen(Request(url, json.dumps(payload).encode()), timeout=60) as response:
        return json.loads(response.read())


class World:
    """A server with an image bucket and an index bucket of its own."""

    def __init__(self, directory, *options):
        client = gcs.make_client()
        self.client = client
        self.images, self.index = (
            client.create_bucket(f"page-{uuid.uuid4()}").name for _ in range(2)
        )
        log = directory / "log"
        self.service = local_forager(directory, log, "--bucket", self.index, *options)
        self.url = self.service.url

    def publish(self, name, names, num_train, **more):
        index_id = str(uuid.uuid4())
        synthetic.publish(self.client, self.images, self.index, index_id, names, num_train, **more)
        self.create(name, index_id)

    def create(self, name, index_id, directory=None):
        base = f"gs://{self.images}/{directory or name}"
        paths = {"train_path": f"{base}/train/", "val_path": f"{base}/val/"}
        payload = {"dataset": name, "index_id": index_id, **paths}
        post(f"{self.url}/api/create_dataset_v2", payload)

    def label(self, name, identifiers, category, mode="POSITIVE", user="a@b.c"):
        payload = {"identifiers": identifiers, "user": user, "category": category, "mode": mode}
        path = f"api/add_annotations_by_internal_identifiers_v2/{name}"
        assert post(f"{self.url}/{path}", payload)["created"] == len(identifiers)


@pytest.fixture(scope="module")
def storage(emulator_url):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("STORAGE_EMULATOR_HOST", emulator_url)
        yield


@pytest.fixture(scope="module")
def world(storage, tmp_path_factory):
    world = World(tmp_path_factory.mktemp("world"))
    world.publish("d", NAMES, 60, failed={FAILED}, same={COPY: 2})
    world.label("d", ["t00", "t01", "t02", "v00"], "bird")
    world.label("d", ["t03"], "bird", "NEGATIVE")
    world.label("d", ["t01", "t07"], "sky", "far away")
    world.publish("empty", [], 0)
    world.create("gone", "no-such-index", "d")
    world.create("not a name", "x", "d")
    yield world
    world.service.stop()


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as starter:
        browser = starter.chromium.launch(executable_path=CHROMIUM, args=CHROMIUM_FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def tabs(browser):
    """A function that opens a page; afterwards: no console errors, no request off this machine."""
    contexts, problems = [], []

    def watch_request(request):
        if not request.url.startswith(("http://127.0.0.1:", "data:", "blob:")):
            problems.append(f"left the machine: {request.url}")

    def open_page(url, **options):
        context = browser.new_context(**({"viewport": {"width": 1200, "height": 800}} | options))
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(15_000)
        page.on(
            "console", lambda one: one.type in ("error", "warning") and problems.append(one.text)
        )
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("dialog", lambda dialog: problems.append(f"dialog {dialog.message}"))
        page.on("request", watch_request)
        page.goto(url)
        page.problems = problems
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert problems == []


def total(page, text):
    page.locator(".total", has_text=re.compile(f"^{text}$")).wait_for()


def shown_rows(page):
    """Rows of the tiles that are on the page, from their links."""
    links = page.locator(".grid .cell:not([hidden]) a").evaluate_all("as => as.map(a => a.href)")
    return sorted(int(re.search(r"image=(\d+)", link)[1]) for link in links)


def until(page, expression, argument=None):
    """Wait for an expression to be true; the page's policy forbids what Playwright would do."""
    for _ in range(150):
        if page.evaluate(expression, argument):
            return
        page.wait_for_timeout(100)
    raise AssertionError(f"never true: {expression}")


def wait_for_pictures(page, selector=".grid .tile"):
    """Until all thumbnails in the screen are there, but for one that failed."""
    until(
        page,
        """selector => {
          const tiles = [...document.querySelectorAll(selector)].filter(tile =>
            !tile.closest('[hidden]') && tile.getBoundingClientRect().top < innerHeight);
          return tiles.length && tiles.every(tile => tile.textContent.includes('failed')
            || tile.querySelector('img').naturalWidth > 0); }""",
        selector,
    )


def wait_for_title(page, text):
    until(page, "text => document.getElementById('detail-title')?.textContent === text", text)


def test_home_lists_datasets(world, tabs):
    page = tabs(world.url)
    cards = page.locator(".card")
    assert cards.all_inner_texts()[0].split("\n") == ["d", "60 train · 20 validation"]
    assert "no images" in cards.nth(1).inner_text()
    closed = page.locator(".card.closed")
    assert "not a name" in closed.inner_text() and "cannot be opened" in closed.inner_text()
    wait_for_pictures(page, "li:first-child .covers")
    cards.first.click()
    total(page, "80 images")
    assert page.url == f"{world.url}/d" and page.title() == "d · Forager"
    page.go_back()
    page.get_by_role("heading", name="Datasets").wait_for()


def test_home_without_datasets(storage, tmp_path, tabs):
    world = World(tmp_path)
    try:
        page = tabs(world.url)
        page.get_by_text("python ingest.py NAME").wait_for()
        world.publish("late", ["late/train/a.jpg"], 1)
        page.get_by_role("link", name="late").wait_for()  # appears by itself
    finally:
        world.service.stop()


def test_grid_shows_thumbnails(world, tabs):
    page = tabs(f"{world.url}/d")
    total(page, "80 images")
    wait_for_pictures(page)
    assert (
        page.locator(".cell:not([hidden])").nth(FAILED).inner_text().startswith("failed: t04.jpg")
    )
    first = page.locator(".cell:not([hidden])").first
    assert first.get_attribute("aria-setsize") == "80"
    until(page, "document.querySelector('.grid img').alt === 't00.jpg, bird'")


def test_grid_holds_only_what_is_seen(world, tabs):
    page = tabs(f"{world.url}/d", viewport={"width": 1000, "height": 400})
    total(page, "80 images")
    wait_for_pictures(page)
    assert len(shown_rows(page)) < 60
    page.mouse.wheel(0, 100_000)
    until(page, "[...document.querySelectorAll('.grid a')].some(a => a.href.endsWith('=79'))")
    wait_for_pictures(page)
    assert 0 not in shown_rows(page)


def test_grid_of_three_million(world, tabs):
    """Browsers cannot make an element that high: the last image is reached all the same."""
    page = tabs(world.url)
    many = (np.arange(3_000_000) % 80).astype("<i4").tobytes()
    page.route("**/page/d/rows*", lambda route: route.fulfill(body=many))
    page.goto(f"{world.url}/d")
    total(page, "3,000,000 of 80 images")
    places = "[...document.querySelectorAll('.cell:not([hidden])')].map(one => one.ariaPosInSet)"
    page.evaluate("scrollTo(0, document.documentElement.scrollHeight)")
    until(page, f"{places}.includes('3000000')")
    wait_for_pictures(page)
    page.evaluate("scrollTo(0, document.documentElement.scrollHeight / 2)")
    until(page, f"{places}.every(place => place > 1.4e6 && place < 1.6e6)")
    page.locator(".cell:not([hidden]) a").first.focus()
    page.keyboard.press("End")
    until(page, "document.activeElement.parentElement.ariaPosInSet === '3000000'")
    page.keyboard.press("Home")
    until(page, "document.activeElement.parentElement.ariaPosInSet === '1'")
    assert page.evaluate("document.activeElement.getBoundingClientRect().top") > 0


def test_filters_and_back(world, tabs):
    page = tabs(f"{world.url}/d")
    filters = page.locator(".filters")
    filters.get_by_role("link", name="Validation 20").click()
    total(page, "20 of 80 images")
    filters.get_by_role("link", name="bird 5").click()
    total(page, "1 of 80 images")
    assert shown_rows(page) == [60]
    page.get_by_role("link", name="Remove the filter: validation").click()
    total(page, "5 of 80 images")
    filters.get_by_role("link", name="negative 1").click()
    total(page, "1 of 80 images")
    assert page.url.endswith("/d?category=bird&mode=NEGATIVE")
    page.go_back()
    total(page, "5 of 80 images")
    page.go_back()
    page.go_back()
    total(page, "20 of 80 images")
    page.go_forward()
    total(page, "1 of 80 images")
    shared = tabs(page.url)
    total(shared, "1 of 80 images")
    assert shown_rows(shared) == [60]


def test_labelled_or_not(world, tabs):
    page = tabs(f"{world.url}/d")
    page.get_by_role("link", name="No label 74").click()
    total(page, "74 of 80 images")
    page.get_by_role("link", name="Any label 6").click()
    total(page, "6 of 80 images")
    assert shown_rows(page) == [0, 1, 2, 3, 7, 60]


def test_detail_facts_and_walk(world, tabs):
    page = tabs(f"{world.url}/d")
    wait_for_pictures(page)
    page.locator(".cell:not([hidden]) a").nth(2).click()
    dialog = page.get_by_role("dialog")
    assert dialog.get_by_role("heading", level=2).inner_text() == "t02.jpg"
    dialog.get_by_text("200 × 150 pixels").wait_for()
    facts = dialog.locator("dl").inner_text()
    assert f"gs://{world.images}/d/train/t02.jpg" in facts and "train · row 2" in facts
    assert dialog.locator(".labels").inner_text() == "bird"
    until(page, "document.querySelector('.full').naturalWidth === 200")
    strip = dialog.locator(".strip li")
    assert strip.count() == 24
    assert strip.first.inner_text() == "0.000"
    strip.first.locator("a").click()
    wait_for_title(page, "v05.jpg")
    assert f"image={COPY}" in page.url
    page.go_back()
    wait_for_title(page, "t02.jpg")
    page.go_back()
    dialog.wait_for(state="hidden")
    total(page, "80 images")


@pytest.mark.parametrize("by", ["imagenet", "imagenet_early"])
def test_detail_compares_by_each_embedding(world, tabs, by):
    page = tabs(f"{world.url}/d?image=0")
    page.locator(".strip li").first.wait_for()
    page.get_by_role("radio", name=by, exact=True).check()
    page.wait_for_url(f"**by={by}*")
    page.locator(".strip li").first.wait_for()
    page.get_by_role("link", name="Sort all images by likeness").click()
    total(page, "79 of 80 images")  # all but the failed one
    assert page.locator(".chip").inner_text().startswith("by likeness to image 0")


def test_detail_by_keyboard(world, tabs):
    page = tabs(f"{world.url}/d")
    wait_for_pictures(page)
    page.locator(".cell:not([hidden]) a").first.focus()
    for key in ("ArrowRight", "ArrowRight", "ArrowDown", "ArrowUp", "Enter"):
        page.keyboard.press(key)
    heading = page.get_by_role("dialog").get_by_role("heading", level=2)
    assert heading.inner_text() == "t02.jpg"
    page.keyboard.press("ArrowRight")
    wait_for_title(page, "t03.jpg")
    page.keyboard.press("Escape")
    page.get_by_role("dialog").wait_for(state="hidden")
    focused = page.evaluate("document.activeElement.getAttribute('href')")
    assert "image=2" in focused
    page.keyboard.press("End")
    until(page, "document.activeElement.getAttribute('href')?.endsWith('image=79')")


def test_detail_of_a_failed_image(world, tabs):
    page = tabs(f"{world.url}/d?image={FAILED}")
    page.get_by_text("It failed at ingest").wait_for()
    page.get_by_text("This image cannot be shown").wait_for()
    assert page.locator(".strip").count() == 0


def test_detail_of_no_image(world, tabs):
    page = tabs(f"{world.url}/d?image=80")
    page.get_by_role("dialog").get_by_text("There is no row 80").wait_for()
    page = tabs(f"{world.url}/d?image=x")
    page.get_by_role("dialog").get_by_text("There is no such image").wait_for()


def test_class_link_filters(world, tabs):
    page = tabs(f"{world.url}/d?image=0")
    page.locator("dl a").click()
    page.locator(".chip", has_text="ImageNet class").wait_for()
    kinds = synthetic.kind_of(np.arange(80))
    same = [
        row for row in range(80) if kinds[row if row != COPY else 2] == kinds[0] and row != FAILED
    ]
    assert shown_rows(page) == same


def drawn(page):
    """The canvas as text: the same only where the same is drawn."""
    page.wait_for_timeout(200)
    return page.evaluate("document.querySelector('canvas').toDataURL()")


def point_on_map(page, row):
    """Where a row lies on the screen, computed from the API's points as the page documents them."""
    return page.evaluate(
        """async row => { const answer = await fetch('/page/d/map?by=clip&method=pca');
          const points = new Float32Array(await answer.arrayBuffer());
          const box = document.querySelector('canvas').getBoundingClientRect();
          const scale = 0.46 * Math.min(box.width, box.height);
          return [box.left + box.width / 2 + points[2 * row] * scale,
                  box.top + box.height / 2 - points[2 * row + 1] * scale]; }""",
        row,
    )


def test_map_draws_hovers_and_opens(world, tabs):
    page = tabs(f"{world.url}/d?view=map")
    page.locator(".legend", has_text="train").wait_for()
    x, y = point_on_map(page, 10)
    page.mouse.move(x, y)
    page.locator(".tip img").wait_for()
    until(page, "document.querySelector('.tip img').naturalWidth > 0")
    page.mouse.click(x, y)
    page.get_by_role("dialog").wait_for()
    assert re.search(r"image=\d+", page.url)
    page.go_back()
    page.get_by_role("dialog").wait_for(state="hidden")
    assert page.locator("canvas").is_visible()


def test_map_colours_and_filters(world, tabs):
    page = tabs(f"{world.url}/d?view=map&color=label")
    page.locator(".legend", has_text="bird").wait_for()
    assert page.locator(".legend li").all_inner_texts() == ["no positive label\n75", "bird\n4"]
    page.get_by_label("Colour by").select_option("class")
    page.locator(".legend", has_text="class ").wait_for()
    assert page.url.endswith("color=class")
    page.locator(".filters").get_by_role("link", name="Validation").click()
    total(page, "20 of 80 images")
    page.go_back()
    total(page, "80 images")


def test_map_pans_and_zooms(world, tabs):
    page = tabs(f"{world.url}/d?view=map&pictures=no")
    page.locator(".legend", has_text="train").wait_for()
    seen = [drawn(page)]
    box = page.locator("canvas").bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2

    def changed():
        seen.append(drawn(page))
        assert seen[-1] != seen[-2]

    page.mouse.move(x, y)
    page.mouse.wheel(0, -200)
    changed()
    page.mouse.down()
    page.mouse.move(x + 60, y + 30, steps=4)
    page.mouse.up()
    changed()
    assert "image=" not in page.url  # a drag is no click
    page.locator("canvas").focus()
    for key in ("+", "ArrowLeft", "ArrowUp"):
        page.keyboard.press(key)
        changed()
    page.get_by_role("button", name="Show all").click()
    page.mouse.move(5, 5)
    page.evaluate("document.activeElement.blur()")
    assert drawn(page) == seen[0]


def test_map_shows_pictures_where_there_is_room(world, tabs):
    page = tabs(f"{world.url}/d?view=map&pictures=no")
    page.locator(".legend", has_text="train").wait_for()
    plain = drawn(page)
    page.get_by_label("Pictures").check()
    page.wait_for_timeout(1000)
    assert len(drawn(page)) > 1.2 * len(plain)  # pictures do not compress as dots do
    assert page.url.endswith("/d?view=map")


def test_map_says_that_umap_is_not_installed(world, tabs):
    page = tabs(f"{world.url}/d?view=map")
    option = page.locator("#map-method option", has_text="UMAP")
    if page.evaluate("fetch('/page/d/dataset').then(a => a.json()).then(d => d.umap.available)"):
        pytest.skip("umap-learn is installed")
    assert option.is_disabled() and "umap-learn" in option.inner_text()


def test_health_links_to_the_images(world, tabs):
    page = tabs(f"{world.url}/d?view=health")
    leak = page.locator("[data-set=leak]")
    leak.get_by_role("link", name="Show 2 images in 1 group").click()
    total(page, "2 of 80 images")
    assert page.locator(".badge:visible").all_inner_texts() == ["Group 1"]
    assert shown_rows(page) == [2, COPY]
    page.go_back()
    page.locator("[data-set=failed]").get_by_role("link", name="Show 1 image").click()
    total(page, "1 of 80 images")
    assert shown_rows(page) == [FAILED]
    shared = tabs(f"{world.url}/d?set=near&by=imagenet")
    total(shared, "2 of 80 images")


def test_labels_appear_without_a_reload(world, tabs):
    page = tabs(f"{world.url}/d?image=30")
    page.get_by_role("dialog").get_by_text("No labels").wait_for()
    world.label("d", ["t30"], "new")
    page.get_by_role("dialog").locator(".labels", has_text="new").wait_for()
    page.keyboard.press("Escape")
    page.locator(".filters").get_by_role("link", name="new 1").wait_for()
    world.label("d", ["t30"], "new", "TOMBSTONE")  # as Forager takes a label back
    page.locator(".filters").get_by_role("link", name="new 1").wait_for(state="detached")


def test_text_search_is_greyed_out_with_the_reason(world, tabs):
    page = tabs(f"{world.url}/d")
    field = page.get_by_role("searchbox", name="Search by text")
    assert field.is_disabled()
    page.get_by_text("--clip_weights").wait_for()


def write_text_tower(directory):
    """A tiny CLIP text tower with a tokenizer of letters, in the hub's layout."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    tokens = [chr(letter) for letter in range(97, 123)]
    words = ["<|startoftext|>", "<|endoftext|>", *tokens, *(token + "</w>" for token in tokens)]
    (directory / "vocab.json").write_text(json.dumps({word: at for at, word in enumerate(words)}))
    (directory / "merges.txt").write_text("#version: 0.2\n")
    config = transformers.CLIPTextConfig(
        vocab_size=len(words), hidden_size=32, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=4, projection_dim=512, max_position_embeddings=77,
        bos_token_id=0, eos_token_id=1, pad_token_id=1,
    )  # fmt: skip
    transformers.CLIPTextModelWithProjection(config).eval().save_pretrained(directory)


def test_text_search(storage, tmp_path, tabs):
    weights = tmp_path / "clip"
    weights.mkdir()
    write_text_tower(weights)
    assert text_search.why_not(weights) is None
    world = World(tmp_path, "--clip_weights", str(weights))
    try:
        world.publish("d", [f"d/train/t{row:02}.jpg" for row in range(12)], 12)
        page = tabs(f"{world.url}/d")
        field = page.get_by_role("searchbox", name="Search by text")
        field.fill("a dog")
        page.set_default_timeout(60_000)  # the first search loads the model
        field.press("Enter")
        page.locator(".chip", has_text="by text: a dog").wait_for()
        total(page, "12 images")
        order = page.evaluate("fetch('/page/d/rows?text=a+dog').then(a => a.arrayBuffer())"
                              ".then(b => [...new Int32Array(b)])")  # fmt: skip
        vector = text_search.TextTower(weights).vector("a dog")
        vectors = np.concatenate(list(synthetic.vectors(12, 512)))
        assert order == np.argsort(-vectors @ vector).tolist()
    finally:
        world.service.stop()


def test_empty_dataset(world, tabs):
    page = tabs(f"{world.url}/empty")
    page.get_by_text("This dataset has no images.").wait_for()
    for view in ("Map", "Health", "Images"):
        page.get_by_role("link", name=view, exact=True).click()
        page.locator(f"#tabs a[aria-current=page]:text-is('{view}')").wait_for()
    total(page, "0 images")


def test_dataset_without_index(world, tabs):
    page = tabs(f"{world.url}/gone")
    page.get_by_text("There is no whole index in").wait_for()
    page.get_by_text("60 training and 20 validation images").wait_for()


def test_unknown_dataset(world, tabs):
    page = tabs(f"{world.url}/nothing")
    page.get_by_text("There is no dataset named nothing here.").wait_for()
    # The two answers with status 404 are what a browser itself reports.
    assert len(page.problems) == 2 and all("404" in problem for problem in page.problems)
    page.problems.clear()
    page.get_by_role("link", name="All datasets").click()
    page.get_by_role("heading", name="Datasets").wait_for()


def test_hostile_names_and_labels_run_nothing(storage, tmp_path, tabs):
    world = World(tmp_path)
    try:
        world.publish("h", HOSTILE_NAMES, 6)
        known = [os.path.splitext(os.path.basename(name))[0] for name in HOSTILE_NAMES]
        for mode in ("POSITIVE", HOSTILE):
            world.label("h", known[:3], f"{HOSTILE}{mode}", mode, user=HOSTILE)
        world.label("h", known[:1], "javascript:window.hacked=1//\u202e")
        world.label("h", known[:1], "__proto__", "constructor")
        world.create(HOSTILE, HOSTILE, "h")
        page = tabs(world.url)
        page.get_by_text(HOSTILE).wait_for()
        page.goto(f"{world.url}/h")
        total(page, "7 images")
        wait_for_pictures(page)
        page.locator(".filters").get_by_text("__proto__").click()
        total(page, "1 of 7 images")
        for row, name in enumerate(HOSTILE_NAMES):
            page.goto(f"{world.url}/h?image={row}&category={HOSTILE}")
            page.get_by_role("dialog").get_by_text(name.rsplit("/")[-1], exact=True).wait_for()
            page.get_by_text("200 × 150 pixels").wait_for()
            page.locator(".strip li").first.wait_for()
        page.goto(f"{world.url}/h?view=map&color=label&text={HOSTILE}&by={HOSTILE}&set=near")
        page.goto(f"{world.url}/h?view=map&color=label")
        page.locator(".legend", has_text="onerror").wait_for()
        for query in (f"mode={HOSTILE}&category=x", f"view={HOSTILE}", "view=__proto__"):
            page.goto(f"{world.url}/h?{query}")
            page.locator(".total").wait_for()
        assert page.evaluate("window.hacked") is None
        assert page.locator("script").count() == 1
        page.problems[:] = [
            one for one in page.problems if "status of 400" not in one and "409" not in one
        ]
    finally:
        world.service.stop()


@pytest.mark.parametrize("view", ["", "?view=map", "?view=health", "?image=3"])
@pytest.mark.parametrize("width", [320, 768, 2560])
def test_nothing_is_wider_than_the_screen(world, tabs, width, view):
    page = tabs(f"{world.url}/d{view}", viewport={"width": width, "height": 800})
    page.locator("#tabs a").first.wait_for()
    page.wait_for_timeout(300)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.evaluate("document.querySelector('dialog').scrollWidth") <= width


def test_dark_and_light(world, tabs):
    def lightness(scheme):
        page = tabs(f"{world.url}/d", color_scheme=scheme)
        color = page.evaluate("getComputedStyle(document.body).backgroundColor")
        return sum(map(int, re.findall(r"\d+", color)[:3])) / 3

    assert lightness("light") > 200 and lightness("dark") < 60


def test_every_control_has_a_name(world, tabs):
    for view in ("", "?view=map", "?view=health", "?image=3"):
        page = tabs(f"{world.url}/d{view}")
        page.locator("#tabs a").first.wait_for()
        page.wait_for_timeout(500)
        nameless = page.evaluate(
            """() => [...document.querySelectorAll('a, button, input, select, img, canvas')].filter(
                 one => one.checkVisibility() && !one.closest('[aria-hidden]') && !(
                   one.textContent.trim() || one.ariaLabel || one.hasAttribute('alt')
                   || one.title || one.querySelector('img[alt]') || one.labels?.length))
                 .map(one => one.outerHTML)"""
        )
        assert nameless == []


def test_it_works_when_the_page_was_left_open(world, tabs):
    """A stale address of another view ends nowhere: the three views follow each other quickly."""
    page = tabs(f"{world.url}/d")
    for _ in range(3):
        for view in ("Map", "Health", "Images"):
            page.get_by_role("link", name=view, exact=True).click()
    total(page, "80 images")
    wait_for_pictures(page)
    assert Path(page.url).name == "d"
