"""A headless Chromium by Playwright: for the page's tests, its benchmark and its pictures."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import click

HEADLESS = "chromium-headless-shell"
MISSING = f"There is no Chromium: run `apt-get install {HEADLESS}`, or name another in CHROMIUM."
FLAGS = [
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
]


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
