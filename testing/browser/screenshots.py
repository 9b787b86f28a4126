"""Takes the README's pictures of the page from a running server, in a headless Chromium."""

from pathlib import Path
from typing import Any

import click

from testing.browser.chromium import chromium

WIDTH, HEIGHT = 1280, 800  # pixels
TIMEOUT = 30_000  # milliseconds
VIEWS = {"page": "", "image": "?image=0", "map": "?view=map&color=label"}
PICTURES_HERE = """() => [...document.images].every(image => !image.checkVisibility() || !image.src
  || image.getBoundingClientRect().top > innerHeight || image.complete)"""


def wait_until_complete(page: Any) -> None:
    """Wait until the view, its thumbnails and the pictures on the map are there."""
    from playwright.sync_api import expect

    expect(page.locator(".total")).to_be_visible(timeout=TIMEOUT)
    expect(page.locator("[aria-busy=true]")).to_have_count(0, timeout=TIMEOUT)
    page.wait_for_function(PICTURES_HERE, timeout=TIMEOUT)


@click.command(context_settings={"show_default": True})
@click.argument("url")
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    default="docs",
    help="Directory for page.png, image.png and map.png.",
)
@click.option("--dark", is_flag=True, help="Take them in dark colours.")
def main(url: str, out: Path, dark: bool) -> None:
    """Take pictures of the dataset at URL: its grid, its first image with neighbours, its map.

    \b
    Example:
        python -m testing.browser.screenshots http://127.0.0.1:8000/demo --out docs
    """
    out.mkdir(parents=True, exist_ok=True)
    with chromium() as browser:
        page = browser.new_page(
            viewport={"width": WIDTH, "height": HEIGHT},
            color_scheme="dark" if dark else "light",
            bypass_csp=True,  # the page's policy forbids wait_for_function
        )
        for name, query in VIEWS.items():
            page.goto(url.rstrip("/") + query)
            wait_until_complete(page)
            path = out / f"{name}.png"
            page.screenshot(path=path)
            click.echo(path)


if __name__ == "__main__":
    main(prog_name="python -m testing.browser.screenshots")
