"""The list of datasets, and datasets that have nothing to show."""

import os

import pytest

from tests.local_forager.page_server import complete, page_server, total, until, wait_for_pictures

playwright = pytest.importorskip("playwright.sync_api", reason="no playwright")
expect = playwright.expect
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
    wait_for_pictures(page, "li:first-child .covers")
    card.click()
    total(page, "80 images")
    expect(page).to_have_url(f"{server.url}/d")
    expect(page).to_have_title("d · Forager")
    page.go_back()
    expect(page.get_by_role("heading", name="Datasets")).to_be_visible()


def test_home_names_datasets_that_cannot_be_opened(server, tabs, dataset_name):
    server.create(f"not a name {dataset_name}", "x", "nothing")
    page = tabs(server.url)
    closed = page.locator(".card.closed", has_text=dataset_name)
    expect(closed).to_contain_text("no images")
    expect(closed).to_contain_text("No Forager can open")


def test_home_shows_a_new_dataset_without_a_reload(emulator, tmp_path, tabs):
    with page_server(tmp_path) as server:
        page = tabs("about:blank")
        page.clock.install()
        page.goto(server.url)
        expect(page.get_by_text("python ingest.py NAME")).to_be_visible()
        server.publish("late", ["late/train/a.jpg"], 1)
        page.clock.fast_forward(5_000)
        expect(page.get_by_role("link", name="late")).to_be_visible()
        page.close()  # before its server: the page asks for new datasets


def test_empty_dataset(server, tabs, dataset_name):
    server.publish(dataset_name, [], 0)
    page = tabs(f"{server.url}/{dataset_name}")
    expect(page.get_by_text("This dataset has no images.")).to_be_visible()
    for view in ("Map", "Health", "Images"):
        page.get_by_role("link", name=view, exact=True).click()
        expect(page.locator("#tabs a[aria-current=page]")).to_have_text(view)
    total(page, "0 images")


def test_dataset_without_index(server, tabs, dataset_name):
    server.create(dataset_name, "no-such-index", "d")
    page = tabs(f"{server.url}/{dataset_name}")
    expect(page.get_by_text("There is no complete index in")).to_be_visible()
    expect(page.get_by_text("60 training and 20 validation images")).to_be_visible()


def test_unknown_dataset(server, tabs):
    page = tabs(f"{server.url}/nothing")
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
    total(page, "7 images")
    wait_for_pictures(page)
    page.locator(".filters").get_by_text("__proto__").click()
    total(page, "1 of 7 images")
    for row, name in enumerate(HOSTILE_NAMES):
        page.goto(f"{address}?image={row}&category={HOSTILE}")
        title = page.get_by_role("dialog").get_by_text(name.rsplit("/")[-1], exact=True)
        expect(title).to_be_visible()
        expect(page.get_by_text("200 × 150 pixels")).to_be_visible()
        complete(page)
    page.goto(f"{address}?view=map&color=label&text={HOSTILE}&by={HOSTILE}&set=near")
    complete(page)
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
        complete(page)
        until(page, f"document.documentElement.scrollWidth <= {width}")
        until(page, f"document.querySelector('dialog').scrollWidth <= {width}")
    nameless = """() => [...document.querySelectorAll('a, button, input, select, img, canvas')]
        .filter(one => one.checkVisibility() && !one.closest('[aria-hidden]') && !(
          one.textContent.trim() || one.ariaLabel || one.hasAttribute('alt') || one.title
          || one.querySelector('img[alt]') || one.labels?.length))
        .map(one => one.outerHTML)"""
    assert page.evaluate(nameless) == []


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
    total(page, "80 images")
    wait_for_pictures(page)
    expect(page).to_have_url(f"{server.url}/d")
