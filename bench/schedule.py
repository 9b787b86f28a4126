"""How full are the batches of a GPU? `python -m bench.schedule`

The scheduler of the ingest (engine/batches.py) with images of COCO's sizes, driven by a simulated
clock and a model of a device: its rate, the cost of launching a batch and of a shape that is new.
No GPU is used, and none has confirmed the model of the device.
"""

from __future__ import annotations

import csv
import random
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path

import click

from bench.support.measure import Result, json_option, show
from engine.batches import AHEAD, GATHER_S, MAX_WAIT_S, QUIET_S, Groups
from engine.pipeline import WINDOW_GPU
from models.resnet import rounded_up

Size = tuple[int, int]  # height, width
REFERENCE_PIXELS = 640 * 480  # of the images by which a device's rate is given
BATCH = 32


@dataclass
class Device:
    """A device in images of 640x480 per second; times in seconds."""

    rate: float
    launch_s: float = 0.0015
    new_shape_s: float = 0.025
    free_at: float = 0.0
    busy_s: float = 0.0
    shapes: set[tuple[int, int, int]] = field(default_factory=set)

    def launch(self, now: float, canvas: Size, n: int) -> tuple[float, float]:
        """When the launch returns, and when the batch is done."""
        now += self.launch_s
        if (*canvas, n) not in self.shapes:
            self.shapes.add((*canvas, n))
            now += self.new_shape_s
        seconds = n * canvas[0] * canvas[1] / (self.rate * REFERENCE_PIXELS)
        self.free_at = max(now, self.free_at) + seconds
        self.busy_s += seconds
        return now, self.free_at


def coco_sizes(count: int, seed: int = 0) -> list[Size]:
    """Sizes of `count` images, drawn as they are distributed in COCO val2017."""
    with Path(__file__).with_name("coco_sizes.csv").open() as file:
        rows = [
            (int(row["height"]), int(row["width"]), int(row["images"]))
            for row in csv.DictReader(file)
        ]
    sizes = [(height, width) for height, width, _ in rows]
    return random.Random(seed).choices(sizes, [images for *_, images in rows], k=count)


def simulate(sizes: list[Size], device: Device, arrivals: float) -> dict[str, float]:
    """Run all images through the scheduler; `arrivals` is how many per second are decoded.

    An image arrives only while fewer than WINDOW_GPU are on their way.
    """
    canvases = [(rounded_up(height), rounded_up(width)) for height, width in sizes]
    groups: Groups[int] = Groups(
        lambda image: BATCH,
        gather_s=GATHER_S,
        quiet_s=QUIET_S,
        max_wait_s=MAX_WAIT_S,
    )
    launched: deque[tuple[float, list[int]]] = deque()
    now = next_arrival = 0.0
    arrived: list[float] = []
    batches: list[int] = []
    done, longest = 0, 0.0
    while done < len(sizes):
        while (
            len(arrived) < len(sizes) and len(arrived) - done < WINDOW_GPU and next_arrival <= now
        ):
            groups.add(canvases[len(arrived)], len(arrived), next_arrival)
            arrived.append(next_arrival)
            next_arrival += 1 / arrivals
        if len(launched) < AHEAD and (images := groups.take(now)):
            now, end = device.launch(now, canvases[images[0]], len(images))
            launched.append((end, images))
            batches.append(len(images))
        elif launched:
            end, images = launched.popleft()
            if len(arrived) - done >= WINDOW_GPU:  # arrivals stood still until now
                next_arrival = max(next_arrival, end)
            now = max(now, end)
            done += len(images)
            longest = max(longest, *(now - arrived[image] for image in images))
        else:
            coming = next_arrival if len(arrived) < len(sizes) else None
            times = [time for time in (groups.ready_at(), coming) if time is not None]
            now = max(now, min(times))
    pixels = sum(height * width for height, width in sizes)
    on_canvases = sum(height * width for height, width in canvases)
    return {
        "images/s": len(sizes) / now,
        "device busy": device.busy_s / now,
        "mean batch": sum(batches) / len(batches),
        "padding": on_canvases / pixels - 1,
        "shapes": len(device.shapes),
        "longest wait, s": longest,
    }


@click.command()
@click.option("--images", default=100_000, show_default=True)
@json_option
def main(images: int, json_file: Path | None) -> None:
    """Mean batch, share of the device's time in use, and padding, with COCO's sizes."""
    sizes = coco_sizes(images)
    results = []
    for rate, arrivals in ((4000.0, 1e9), (4000.0, 2000.0), (450.0, 1e9)):
        fed = "unlimited" if arrivals == 1e9 else f"{arrivals:,.0f}/s"
        for name, value in simulate(sizes, Device(rate), arrivals).items():
            results.append(Result(f"device of {rate:,.0f}/s, fed {fed}: {name}", "", [value]))
    show(f"Batches of {images:,} images of COCO's sizes (simulated)", results, json_file)


if __name__ == "__main__":
    main()
