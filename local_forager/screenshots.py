"""Pictures of the page for the README, taken from a running server in a headless Chromium."""

import os
import shutil
from pathlib import Path
from typing import Any

import click

FLAGS = [
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
]
WIDTH, HEIGHT = 1280, 800  # pixels
VIEWS = {"page": "", "image": "?image=0", "map": "?view=map&color=label"}
READY = """() => {
  const seen = [...document.images].filter(image => image.checkVisibility() && image.src
    && image.getBoundingClientRect().top < innerHeight);
  const waiting = document.querySelector('[role=status]:not(.total)');
  return document.querySelector('.total') && !waiting && seen.every(image => image.complete);
}"""
TRIES = 100  # of a tenth of a second each


def wait(page: Any) -> None:
    """Until the page shows what it has to show; it forbids what Playwright's own waiting does."""
    for _ in range(TRIES):
        page.wait_for_timeout(100)
        if page.evaluate(READY):
            page.wait_for_timeout(1000)  # the map asks for its pictures a few at a time
            return
    raise click.ClickException(f"{page.url} is not complete after {TRIES / 10:.0f} seconds.")


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
        python -m local_forager.screenshots http://127.0.0.1:8000/demo --out docs
    """
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        raise click.ClickException("There is no playwright: pip install playwright.") from None
    chromium = os.environ.get("CHROMIUM") or shutil.which("chromium")
    if chromium is None:
        raise click.ClickException("There is no chromium: apt-get install chromium.")
    out.mkdir(parents=True, exist_ok=True)
    with sync_playwright() as starter:
        browser = starter.chromium.launch(executable_path=chromium, args=FLAGS)
        page = browser.new_page(
            viewport={"width": WIDTH, "height": HEIGHT}, color_scheme="dark" if dark else "light"
        )
        for name, query in VIEWS.items():
            page.goto(url.rstrip("/") + query)
            wait(page)
            path = out / f"{name}.png"
            page.screenshot(path=path)
            click.echo(path)
        browser.close()


if __name__ == "__main__":
    main(prog_name="python -m local_forager.screenshots")
