"""How smooth is the page? `python -m bench.page.frames`

The frames of the page in a headless Chromium, over a made-up dataset.
"""

import asyncio
import tempfile
import time
import uuid
from pathlib import Path
from typing import Any

import click
import numpy as np

from bench.support.measure import Result, json_option, show
from local_forager.server.database import DATABASE_FILE, Database, ServerGeneration
from testing import synthetic
from testing.browser import chromium
from testing.servers.processes import local_forager

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


def index_id(rows: int) -> str:
    return str(uuid.UUID(int=rows))


def make_dataset(data_dir: Path, rows: int) -> None:
    """A data directory of local_forager with one dataset and its index."""
    num_train = rows * 4 // 5
    splits = ["train"] * num_train + ["val"] * (rows - num_train)
    names = [f"{NAME}/{split}/{row:07}.jpg" for row, split in enumerate(splits)]
    synthetic.write_copy(data_dir, index_id(rows), names, num_train)
    synthetic.write_thumbnails(data_dir, index_id(rows), names)

    async def register() -> None:
        database = Database(data_dir / DATABASE_FILE, ServerGeneration.B)
        train, val = (f"gs://nowhere/{NAME}/{split}/" for split in ("train", "val"))
        dataset = await database.create_dataset(NAME, train, val, index_id(rows))
        await database.add_items(dataset, names[:num_train], names[num_train:])
        database.close()

    asyncio.run(register())


def frames(page: Any, what: str, act: str) -> list[Result]:
    """Time between frames, the share that came late, and the page's work in each."""
    times, work = page.evaluate(RECORD, [act, FRAMES])
    late = float(np.mean(np.array(times) > 1.5 * 1000 / 60))
    return [
        Result(f"{what}: frame", "ms", times),
        Result(f"{what}: work per frame", "ms", work),
        Result(f"{what}: dropped", "", [late]),
    ]


def measure(page: Any, url: str, rows: int) -> list[Result]:
    """What a person sees: opening, scrolling, jumping, and the map."""
    begin = time.perf_counter()
    page.goto(f"{url}/{NAME}")
    page.locator(".total").wait_for()
    results = [Result("open the page", "s", [time.perf_counter() - begin])]
    page.wait_for_timeout(1500)
    results += frames(page, "nothing moves", "idle")
    results += frames(page, f"scroll {rows:,} images", "scroll")
    jumps = [page.evaluate(JUMP, share) for share in (0.3, 0.9, 0.5, 0.1, 0.7)]
    results.append(Result("thumbnails after a jump", "ms", jumps))
    begin = time.perf_counter()
    page.goto(f"{url}/{NAME}?view=map")
    page.locator(".legend", has_text="train").wait_for(timeout=120_000)
    results.append(Result("open the map, first time", "s", [time.perf_counter() - begin]))
    page.wait_for_timeout(500)
    results += frames(page, f"pan {rows:,} points", "pan")
    page.get_by_role("button", name="Zoom in").click()
    page.get_by_role("button", name="Zoom in").click()
    return results + frames(page, "pan, zoomed in", "pan")


def in_browser(directory: Path, rows: int) -> list[Result]:
    """`measure` in a headless Chromium, drawn in software."""
    with local_forager(directory, directory / "log") as server, chromium() as browser:
        page = browser.new_page(viewport={"width": 1280, "height": 800})
        return measure(page, server.url, rows)


@click.command()
@click.option("--rows", default=100_000, show_default=True, help="Images in the made-up dataset.")
@click.option(
    "--work_dir",
    type=click.Path(file_okay=False, path_type=Path),
    help="Where to write the made-up dataset, 14 kB per image.  [default: a temporary directory]",
)
@json_option
def main(rows: int, work_dir: Path | None, json_file: Path | None) -> None:
    """Time the frames of the page while it scrolls and pans."""
    with tempfile.TemporaryDirectory(dir=work_dir) as name:
        directory = Path(name)
        make_dataset(directory, rows)
        results = in_browser(directory, rows)
    show(f"The page over {rows:,} made-up images", results, json_file)


if __name__ == "__main__":
    main()
