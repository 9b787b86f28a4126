"""How smooth the page is: frame times in a headless Chromium over a made-up dataset."""

import asyncio
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import uuid
from pathlib import Path
from typing import Any

import click
import numpy as np

from local_forager.server.database import Database
from testing import synthetic

FLAGS = [
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
]
FRAMES = 240
NAME = "made-up"

# Runs an act before each frame; answers with the times between frames and with the work in each:
# from the beginning of a frame to the first message handled after it, layout and painting included.
RECORD = """
async ([act, frames]) => {
  const acts = {
    idle: () => {},
    scroll: frame => scrollBy(0, frame < 0 ? 0 : 40),
    pan: frame => {
      const canvas = document.querySelector('canvas');
      const box = canvas.getBoundingClientRect();
      const at = kind => canvas.dispatchEvent(new PointerEvent(kind, { pointerId: 1, bubbles: true,
        clientX: box.left + 300 + 150 * Math.sin(frame / 20),
        clientY: box.top + 200 + 100 * Math.cos(frame / 20) }));
      canvas.setPointerCapture = () => {};
      if (frame === 0) at('pointerdown');
      at('pointermove');
      if (frame === frames - 1) at('pointerup');
    },
  };
  const channel = new MessageChannel();
  const times = [], work = [];
  let begin = 0, waiting = null;
  channel.port1.onmessage = () => { work.push(performance.now() - begin); waiting(); };
  for (let frame = 0; frame < frames; frame += 1) {
    await new Promise(done => {
      requestAnimationFrame(() => {
        begin = performance.now();
        times.push(begin);
        waiting = done;
        channel.port2.postMessage(0);
      });
      acts[act](frame);  // what it makes the page draw comes after this in the same frame
    });
  }
  return [times.slice(1).map((time, at) => time - times[at]), work];
}
"""

JUMP = """
async share => {
  scrollTo(0, document.documentElement.scrollHeight * share);
  const begin = performance.now();
  for (;;) {
    await new Promise(requestAnimationFrame);
    const tiles = [...document.querySelectorAll('.grid .cell:not([hidden]) .tile')].filter(tile => {
      const box = tile.getBoundingClientRect();
      return box.bottom > 0 && box.top < innerHeight;
    });
    const here = tiles.length && tiles.every(tile => tile.querySelector('img').naturalWidth > 0);
    if (here || performance.now() - begin > 10000) return performance.now() - begin;
  }
}
"""


def make_dataset(data_dir: Path, rows: int) -> None:
    index_id, num_train = str(uuid.UUID(int=rows)), rows * 4 // 5
    splits = ["train"] * num_train + ["val"] * (rows - num_train)
    names = [f"{NAME}/{split}/{row:07}.jpg" for row, split in enumerate(splits)]
    synthetic.write_copy(data_dir, index_id, names, num_train)
    synthetic.write_thumbnails(data_dir, index_id, names)

    async def register() -> None:
        database = Database(data_dir / "forager.sqlite3", "B")
        train, val = (f"gs://nowhere/{NAME}/{split}/" for split in ("train", "val"))
        dataset = await database.create_dataset(NAME, train, val, index_id)
        await database.add_items(dataset, names[:num_train], names[num_train:])
        database.close()

    asyncio.run(register())


def report(what: str, times: list[float], work: list[float]) -> None:
    """One line: time between frames, and how long the page worked for each."""
    late = np.mean(np.array(times) > 1.5 * 1000 / 60)
    usual, worst = np.median(times), max(times)
    click.echo(
        f"{what:32} | {usual:6.1f} | {np.percentile(times, 95):6.1f} "
        f"| {worst:6.1f} | {late:8.1%} | {np.median(work):6.1f} | {np.percentile(work, 95):6.1f}"
    )


def measure(page: Any, url: str, rows: int) -> None:
    click.echo(
        "milliseconds a frame             | median |    95% |  worst |  dropped |   work |    95%"
    )
    begin = time.perf_counter()
    page.goto(f"{url}/{NAME}")
    page.locator(".total").wait_for()
    opened = time.perf_counter() - begin
    page.wait_for_timeout(1500)
    report("nothing moves", *page.evaluate(RECORD, ["idle", FRAMES]))
    report(f"scroll {rows:,} images", *page.evaluate(RECORD, ["scroll", FRAMES]))
    jumps = [page.evaluate(JUMP, share) for share in (0.3, 0.9, 0.5, 0.1, 0.7)]
    tiles = page.locator(".grid .cell").count()
    begin = time.perf_counter()
    page.goto(f"{url}/{NAME}?view=map")
    page.locator(".legend", has_text="train").wait_for(timeout=120_000)
    laid_out = time.perf_counter() - begin
    page.wait_for_timeout(500)
    report(f"pan {rows:,} points", *page.evaluate(RECORD, ["pan", FRAMES]))
    page.get_by_role("button", name="Zoom in").click()
    page.get_by_role("button", name="Zoom in").click()
    report("pan, zoomed in", *page.evaluate(RECORD, ["pan", FRAMES]))
    click.echo(f"opened in {opened:.1f} s; the map, first time, in {laid_out:.1f} s")
    click.echo(f"{tiles} tiles exist; a jump shows its thumbnails in {np.median(jumps):,.0f} ms")


@click.command(context_settings={"show_default": True})
@click.option("--rows", default=100_000, help="Images in the made-up dataset.")
@click.option(
    "--work_dir",
    type=click.Path(file_okay=False, path_type=Path),
    help="Where the made-up dataset is written, 14 kB an image; a temporary directory otherwise.",
)
def main(rows: int, work_dir: Path | None) -> None:
    """Time the frames of the page while it scrolls, pans and zooms, drawn in software.

    \b
    Example:
        python -m bench.page --rows 100000
    """
    from playwright.sync_api import sync_playwright

    chromium = os.environ.get("CHROMIUM") or shutil.which("chromium")
    if chromium is None:
        raise click.ClickException("There is no chromium on the path: apt-get install chromium.")
    directory = Path(tempfile.mkdtemp(dir=work_dir))
    command = [sys.executable, "-m", "local_forager", "--port", "0", "--data_dir", str(directory)]
    try:
        make_dataset(directory, rows)
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
            assert server.stdout is not None
            found = re.search(r"http://\S+", server.stdout.readline())
            assert found is not None
            try:
                with sync_playwright() as starter:
                    browser = starter.chromium.launch(executable_path=chromium, args=FLAGS)
                    page = browser.new_page(viewport={"width": 1280, "height": 800})
                    measure(page, found[0], rows)
                    browser.close()
            finally:
                server.terminate()
    finally:
        shutil.rmtree(directory)


if __name__ == "__main__":
    main(prog_name="python -m bench.page")
