"""Makes a picture of what a command printed, as a terminal shows it, in a headless Chromium."""

import html
import textwrap
from pathlib import Path

import click

from testing.browser.chromium import chromium

COLUMNS = 118  # characters; longer lines are wrapped
STYLE = """
body { margin: 0; background: #1d1f24; }
pre { display: inline-block; margin: 0; padding: 18px 22px; color: #d8dbe2;
      font: 13px/1.45 "DejaVu Sans Mono", Menlo, monospace; }
b { color: #8fd18f; }
"""


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


@click.command()
@click.argument("text", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.argument("out", type=click.Path(dir_okay=False, path_type=Path))
def main(text: Path, out: Path) -> None:
    """Write a picture of the output in the file TEXT to OUT.

    \b
    Example:
        python -m testing.browser.terminal_picture demo.txt docs/terminal.png
    """
    with chromium() as browser:
        page = browser.new_page()
        page.set_content(page_of(text.read_bytes().decode()))
        page.locator("pre").screenshot(path=out)
    click.echo(out)


if __name__ == "__main__":
    main(prog_name="python -m testing.browser.terminal_picture")
