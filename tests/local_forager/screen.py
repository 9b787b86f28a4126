"""What the tests of the page wait for in a browser."""

import re

from tests.harness import wait_for

try:
    from playwright.sync_api import expect
except ImportError:
    expect = None  # type: ignore[assignment]  # the fixture `browser` skips what uses it


def until(page, expression, argument=None):
    """Wait until a JavaScript expression is true, or a function of argument returns true.

    The page's policy forbids Playwright's wait_for_function.
    """
    wait_for(lambda: page.evaluate(expression, argument))


def complete(page):
    """Wait until the page shows all of its view, pictures on the map included."""
    until(
        page,
        """() => document.querySelector('main').ariaBusy === 'false'
                 && !document.querySelector('[aria-busy=true]')""",
    )


def total(page, text):
    """Wait until the page says how many images it shows."""
    expect(page.locator(".total")).to_have_text(re.compile(f"^{text}$"))
    complete(page)


def follow(page, link, found, within="body"):
    """Click a link, and wait until the page shows so many of its 80 images."""
    page.locator(within).get_by_role("link", name=link).click()
    total(page, f"{found} of 80 images" if found < 80 else "80 images")


def chips(page, *texts):
    """Wait until the filters above the images are these."""
    expect(page.locator(".summary .chip")).to_have_text([f"{text}×" for text in texts])


def tiles(page):
    return page.locator(".cell:not([hidden]) a")


def wait_for_pictures(page, selector=".grid .tile"):
    """Wait for all thumbnails on the screen, except those of failed images."""
    until(
        page,
        """selector => {
          const tiles = [...document.querySelectorAll(selector)].filter(tile =>
            !tile.closest('[hidden]') && tile.getBoundingClientRect().top < innerHeight);
          return tiles.length && tiles.every(tile => tile.textContent.includes('failed')
            || tile.querySelector('img').naturalWidth > 0); }""",
        selector,
    )


def focused(page, image):
    """Wait until the keyboard's focus is on the tile of this row."""
    until(page, f"document.activeElement.getAttribute('href')?.endsWith('image={image}')")


def hold(page, pattern):
    """Keep the requests that match; returns the list to which they are added."""
    held = []
    page.route(pattern, lambda route: held.append(route))
    return held


def reported(page, *texts):
    """Wait until the browser has reported just these problems, such as a status; forget them."""
    # It may report a picture that is missing later; its messages arrive while it is asked.
    wait_for(lambda: page.evaluate("1") and len(page.problems) >= len(texts))
    assert len(page.problems) == len(texts), page.problems
    assert all(map(str.__contains__, page.problems, texts)), page.problems
    page.problems.clear()


def drag(page, *places, key=None):
    """Press the button at the first place of the screen, release it at the last one."""
    page.mouse.move(*places[0])
    if key:
        page.keyboard.down(key)
    page.mouse.down()
    for place in places[1:]:
        page.mouse.move(*place, steps=4)
    page.mouse.up()
    if key:
        page.keyboard.up(key)


def shown_rows(page):
    """Rows of the visible tiles, ascending."""
    links = page.locator(".grid .cell:not([hidden]) a").evaluate_all("as => as.map(a => a.href)")
    return sorted(int(match[1]) for link in links if (match := re.search(r"image=(\d+)", link)))


def shows_rows(page, rows):
    """Wait until the visible tiles are those of rows."""
    wait_for(lambda: shown_rows(page) == sorted(rows))
