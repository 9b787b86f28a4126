"""A headless Chromium: for the page's tests, its benchmark, and the pictures in the README."""

from __future__ import annotations

import html
import os
import shutil
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

HEADLESS = "chromium-headless-shell"
MISSING = f"There is no Chromium: run `apt-get install {HEADLESS}`, or name another in CHROMIUM."
FLAGS = [
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
]
WIDTH, HEIGHT = 1280, 800  # pixels
TIMEOUT = 30_000  # milliseconds
VIEWS = {"page": "", "image": "?image=0", "map": "?view=map&color=label"}
PICTURES_HERE = """() => [...document.images].every(image => !image.checkVisibility() || !image.src
  || image.getBoundingClientRect().top > innerHeight || image.complete)"""
COLUMNS = 118  # characters; longer lines are wrapped
STYLE = """
body { margin: 0; background: #1d1f24; }
pre { display: inline-block; margin: 0; padding: 18px 22px; color: #d8dbe2;
      font: 13px/1.45 "DejaVu Sans Mono", Menlo, monospace; }
b { color: #8fd18f; }
"""


def chromium_path() -> str | None:
    """The browser's program: CHROMIUM in the environment, or what Debian installs; None without it.

    The build without windows is preferred: the tests of the page take half of the CPU time with it.
    """
    return os.environ.get("CHROMIUM") or shutil.which(HEADLESS) or shutil.which("chromium")


@contextmanager
def chromium() -> Iterator[Any]:
    """A Playwright Browser; ClickException if Playwright or Chromium is missing."""
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        raise click.ClickException("There is no playwright: pip install playwright.") from None
    path = chromium_path()
    if path is None:
        raise click.ClickException(MISSING)
    with sync_playwright() as starter:
        browser = starter.chromium.launch(executable_path=path, args=FLAGS)
        try:
            yield browser
        finally:
            browser.close()


def wait_until_complete(page: Any) -> None:
    """Wait until the view, its thumbnails and the pictures on the map are there."""
    from playwright.sync_api import expect

    expect(page.locator(".total")).to_be_visible(timeout=TIMEOUT)
    expect(page.locator("[aria-busy=true]")).to_have_count(0, timeout=TIMEOUT)
    page.wait_for_function(PICTURES_HERE, timeout=TIMEOUT)


def page_of(text: str) -> str:
    """An HTML page that shows the text; commands, which begin with $, are bold.

    Of a progress bar, only the last state is shown.
    """
    shown = []
    for line in text.rstrip().split("\n"):
        wrapped = textwrap.wrap(line.rpartition("\r")[2], COLUMNS, break_on_hyphens=False)
        escaped = html.escape("\n".join(wrapped))
        shown.append(f"<b>{escaped}</b>" if line.startswith("$ ") else escaped)
    content = "\n".join(shown)
    return f"<meta charset=utf-8><style>{STYLE}</style><pre>{content}</pre>"


@click.group()
def main() -> None:
    """Take the README's pictures in a headless Chromium."""


@main.command("page", context_settings={"show_default": True})
@click.argument("url")
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    default="docs",
    help="Directory for page.png, image.png and map.png.",
)
@click.option("--dark", is_flag=True, help="Take them in dark colours.")
def page_pictures(url: str, out: Path, dark: bool) -> None:
    """Take pictures of the dataset at URL: its grid, its first image with neighbours, its map.

    \b
    Example:
        python -m testing.browser page http://127.0.0.1:8000/demo --out docs
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


@main.command("terminal")
@click.argument("text", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.argument("out", type=click.Path(dir_okay=False, path_type=Path))
def terminal_picture(text: Path, out: Path) -> None:
    """Write a picture of the output in the file TEXT to OUT.

    \b
    Example:
        python -m testing.browser terminal demo.txt docs/terminal.png
    """
    with chromium() as browser:
        page = browser.new_page()
        page.set_content(page_of(text.read_bytes().decode()))
        page.locator("pre").screenshot(path=out)
    click.echo(out)


if __name__ == "__main__":
    main(prog_name="python -m testing.browser")
