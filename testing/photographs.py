"""Sample images: crops of scikit-image's photographs, JPEG files of any size, random pictures."""

from __future__ import annotations

import functools
import io
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

NAMES = ("astronaut", "cat", "coffee", "rocket", "hubble_deep_field", "coins")
CROPS = 10  # of each photograph; every third is for validation
SIZES = ((320, 240), (240, 320), (200, 200), (400, 250))  # width, height


def encoded(image: Image.Image, kind: str = "JPEG", quality: int = 85) -> bytes:
    """The image as the bytes of a file."""
    file = io.BytesIO()
    image.save(file, kind, quality=quality)
    return file.getvalue()


def picture(seed: int, size: tuple[int, int] = (40, 30), kind: str = "JPEG") -> bytes:
    """A small image file of random blocks; no two seeds give the same."""
    blocks = np.random.default_rng(seed).integers(0, 256, (4, 5, 3), np.uint8)
    return encoded(Image.fromarray(blocks).resize(size, Image.Resampling.BICUBIC), kind)


@functools.cache
def photograph(width: int, height: int) -> Path:
    """A JPEG file of this size, of scikit-image's astronaut: some 70 kB at 640 x 480."""
    from skimage import data

    directory = Path(tempfile.gettempdir(), "forager-bench")
    directory.mkdir(exist_ok=True)
    path = directory / f"astronaut-{width}x{height}.jpg"
    if not path.exists():
        image = Image.fromarray(data.astronaut()).resize((width, height))
        path.write_bytes(encoded(image, quality=90))
    return path


def crops() -> Iterator[tuple[str, str, Image.Image]]:
    """(split, file name, image) of CROPS crops of each photograph, in SIZES."""
    from skimage import data

    for name in NAMES:
        whole = Image.fromarray(getattr(data, name)())
        for number in range(CROPS):
            width, height = SIZES[number % len(SIZES)]
            scale = max(width / whole.width, height / whole.height, 0.5)
            scaled = whole.resize(
                (max(width, round(whole.width * scale)), max(height, round(whole.height * scale)))
            )
            left = (scaled.width - width) * number // (CROPS - 1)
            top = (scaled.height - height) * (number * 7 % CROPS) // (CROPS - 1)
            split = "val" if number % 3 == 2 else "train"
            suffix = ".png" if number % 5 == 4 else ".jpg"
            crop = scaled.crop((left, top, left + width, top + height))
            yield split, f"{name}-{number:02}{suffix}", crop
