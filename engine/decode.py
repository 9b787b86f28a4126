"""One image: the bytes of a file -> RGB pixels, the model's CLIP input, a thumbnail.

Pixels are what Pillow decodes, as RGB. EXIF rotation is not applied: it never was, and indexes stay
comparable. Of an animation the first frame counts.
"""

import contextlib
import io
import math
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from PIL import ExifTags, Image, ImageFile

from common.errors import ImageError
from common.process import shortage
from common.terminal import printable
from dataset.arrays import Embedding
from dataset.quality import Quality, measure
from models.clip_crop import CLIP_SIDE, clip_crop

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")  # whatever the name says; JPEG is MPO too
THUMBNAIL_HEIGHT = 200  # pixels at most; the width follows
CLIP_BYTES = 3 * CLIP_SIDE**2  # of CLIP's input
MAX_PIXELS = 178_956_970  # Pillow's own limit against decompression bombs
MAX_JPEG_SIDE = 65_500  # pixels, libjpeg's limit
# Every scan of a progressive JPEG passes over all pixels. A usual file has 10 scans; libjpeg-turbo
# advises a limit, and has 500 in its own tests.
MAX_JPEG_SCANS = 500
MAX_SCANNED_PIXELS = 4_000_000_000  # scans times pixels: some 5 s of one core
# Pillow reads a header piece by piece, 1 to 10 us each, then the chunks of a PNG and the runs of a
# BMP. The header of a photograph has some hundred pieces, a PNG of 1 GB in all 700,000.
MAX_HEADER_READS = 100_000
MAX_READS = 2_000_000
MAX_TILES = 200_000  # strips or tiles of a TIFF file, which Pillow decodes one by one: 20 us each
SCAN_MARKER = b"\xff\xda"  # in compressed data, FF is always followed by 00 or by RST0 to RST7
TALL = 2  # heights per width; for taller images Pillow may scale along the columns first
Image.init()  # loads all plugins now: one that cannot be loaded later would make a good image bad
Image.MAX_IMAGE_PIXELS = None  # the limits here are checked before any pixel is decoded
ImageFile.LOAD_TRUNCATED_IMAGES = False
# Pillow stores pixels in blocks. glibc returns freed blocks of more than 32 MB to the system.
Image.core.set_block_size(64 << 20)
# Pillow's warnings about odd files do not help anybody who ingests a million images. The filter is
# set once per process, because warnings.catch_warnings does not work in threads.
warnings.filterwarnings("ignore", module="PIL")


class About(NamedTuple):
    """What is known of an image beside its pixels and vectors."""

    width: int  # pixels
    height: int
    is_rotated: bool  # its EXIF data ask to turn or mirror it, which is not done
    thumbnail_bytes: int  # the size of its thumbnail
    quality: Quality


@dataclass(frozen=True, kw_only=True)
class Decoded:
    """One image, decoded: what the models and the bucket need of it."""

    pixels: np.ndarray  # uint8 (height, width, 3), RGB, full resolution
    clip_input: np.ndarray | None  # uint8 (224, 224, 3), RGB; None where the device makes it
    thumbnail: bytes | None  # a JPEG file; None where another process uploaded it
    about: About


class Embedded(NamedTuple):
    """What became of a row that has an embedding."""

    embedding: Embedding
    about: About


class NotEmbedded(NamedTuple):
    """Why a row has no image, or no embedding."""

    reason: str
    changed: bool = False  # the object is not the listed one any more: the row stays pending


@contextlib.contextmanager
def fault_of_image(what: str) -> Iterator[None]:
    """Raise any exception in a `with` block as ImageError: `what`, then its type and message.

    Pillow raises OSError, SyntaxError, ValueError, struct.error, KeyError and others.

    Raises:
        ShortageError: what failed is the process or the machine, not this image.
    """
    try:
        yield
    except ImageError:
        raise
    except Exception as error:
        if found := shortage(error):
            raise found from error
        kind, message = type(error).__name__, str(error)
        described = printable(f"{kind}: {message}" if message else kind)
        raise ImageError(f"{what} ({described})") from error


class CountedReads(io.BytesIO):
    """A file in memory that lets itself be read in up to `allow` pieces."""

    def allow(self, reads: int) -> None:
        self._allowed = self._left = reads

    def read(self, size: int | None = -1) -> bytes:
        self._left -= 1
        if self._left < 0:
            allowed = f"{self._allowed:,}"
            raise ImageError(f"it has more than {allowed} parts, which take too long to read")
        return super().read(size)


def open_image(data: bytes, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """The image with its header read and its pixels not yet decoded.

    Raises:
        ImageError: empty, of no known format, of more than `max_pixels`, or slow to decode.
    """
    if not data:
        raise ImageError("the file is empty")
    file = CountedReads(data)
    file.allow(MAX_HEADER_READS)
    with fault_of_image("its header cannot be read"):
        try:
            image = Image.open(file, formats=FORMATS)
        except Image.UnidentifiedImageError as error:
            formats = ", ".join(FORMATS)
            raise ImageError(f"not an image in a supported format ({formats})") from error
    file.allow(MAX_READS)
    width, height = image.size
    if width * height > max_pixels:
        raise ImageError(
            f"{width} x {height} is {width * height / 1e6:,.1f} megapixels; "
            f"at most {max_pixels / 1e6:,.1f} fit in memory here"
        )
    if (tiles := len(image.tile)) > MAX_TILES:
        raise ImageError(f"it has {tiles:,} strips or tiles, more than the {MAX_TILES:,} allowed")
    scans = data.count(SCAN_MARKER) if image.format in ("JPEG", "MPO") else 1
    if scans > MAX_JPEG_SCANS or scans * width * height > MAX_SCANNED_PIXELS:
        raise ImageError(
            f"a JPEG of {scans:,} scans over {width * height / 1e6:,.1f} megapixels, which takes "
            "too long to decode"
        )
    return image


def decode(image: Image.Image) -> Image.Image:
    """The pixels of an opened image, as RGB.

    16-bit images are scaled to 8 bits, not clipped. Palettes and transparency are resolved by
    Pillow's conversion; what is transparent keeps its colour.

    Raises:
        ImageError: truncated or damaged.
    """
    with fault_of_image("it cannot be decoded"):
        image.load()
        if image.mode.startswith("I"):  # I;16 and its byte orders, and I: values to 65,535
            values = np.asarray(image).clip(0, 65_535)
            image = Image.fromarray((values >> 8).astype(np.uint8))
        return image if image.mode == "RGB" else image.convert("RGB")


def is_rotated(image: Image.Image) -> bool:
    """Whether the EXIF data of a decoded image ask viewers to turn or mirror it."""
    try:
        return image.getexif().get(ExifTags.Base.Orientation) in range(2, 9)
    except Exception:  # damaged EXIF data; Pillow's parsers raise SyntaxError, struct.error, others
        return False


def clip_input(image: Image.Image) -> np.ndarray:
    """The shorter side scaled to 224 (bicubic), and the centre cut out: uint8 (224, 224, 3).

    The same pixels as torchvision's Resize and CenterCrop on a Pillow image.
    """
    across, down = clip_crop(*image.size)
    scaled = image.resize(
        (across.scaled, down.scaled),
        Image.Resampling.BICUBIC,
        box=(across.start, down.start, across.end, down.end),
    )
    left, top = across.first, down.first
    return np.asarray(scaled.crop((left, top, left + CLIP_SIDE, top + CLIP_SIDE)))


def small_copy(image: Image.Image) -> Image.Image:
    """The pixels of a thumbnail: at most 200 pixels high, aspect kept, never enlarged.

    They are of the image alone: a thumbnail is public, and what a file says beside its pixels
    (comments, EXIF, XMP, a colour profile) may be private, or too long for a JPEG.
    """
    if image.height <= THUMBNAIL_HEIGHT:
        small = image.copy()
    else:
        # To the nearest width. reducing_gap averages to less than twice the size first, which takes
        # less than half the time and differs from the best result by 38 dB.
        width = max(1, math.ceil(image.width * THUMBNAIL_HEIGHT / image.height - 0.5))
        bicubic = Image.Resampling.BICUBIC
        small = image.resize((width, THUMBNAIL_HEIGHT), bicubic, reducing_gap=1.0)
    small.info = {}  # Pillow copies some of it into the file
    return small


def thumbnail(small: Image.Image) -> bytes:
    """A small copy as a JPEG file.

    Raises:
        ImageError: wider than a JPEG file can be.
    """
    if small.width > MAX_JPEG_SIDE:
        raise ImageError(f"its thumbnail would be {small.width:,} pixels wide, too wide for a JPEG")
    file = io.BytesIO()
    small.save(file, "JPEG")
    return file.getvalue()


def prepare(
    image: Image.Image, with_clip_input: bool = True, place: np.ndarray | None = None
) -> Decoded:
    """Decode an opened image once, for all its uses.

    Without `with_clip_input`, the device computes CLIP's input with the same numbers
    (models/clip.py). Tall images get theirs here in any case, because Pillow swaps its two passes
    for them.

    Pixels and CLIP's input are written to `place`, if it is given: uint8, `decoded_bytes` of them.

    Raises:
        ImageError: truncated or damaged, or Pillow cannot scale it.
    """
    rgb = decode(image)
    with fault_of_image("it cannot be scaled"):
        here = _makes_clip_input(rgb, with_clip_input)
        scaled = clip_input(rgb) if here else None
        pixels = np.asarray(rgb)
        if place is not None:
            there, clip_there = views(place, rgb.height, rgb.width, here)
            there[:] = pixels
            if clip_there is not None:
                clip_there[:] = scaled
            pixels, scaled = there, clip_there
        small = small_copy(rgb)
        file = thumbnail(small)
        about = About(
            width=rgb.width,
            height=rgb.height,
            is_rotated=is_rotated(image),
            thumbnail_bytes=len(file),
            quality=measure(small),
        )
        return Decoded(pixels=pixels, clip_input=scaled, thumbnail=file, about=about)


def decoded_bytes(image: Image.Image, with_clip_input: bool) -> int:
    """What the pixels and CLIP's input of an opened image will take."""
    clip_bytes = CLIP_BYTES if _makes_clip_input(image, with_clip_input) else 0
    return 3 * image.width * image.height + clip_bytes


def _makes_clip_input(image: Image.Image, asked: bool) -> bool:
    return asked or image.height > TALL * image.width


def views(
    place: np.ndarray, height: int, width: int, with_clip_input: bool
) -> tuple[np.ndarray, np.ndarray | None]:
    """Where pixels and CLIP's input of an image are in a place, uint8 of one dimension."""
    end = 3 * height * width
    pixels = place[:end].reshape(height, width, 3)
    if not with_clip_input:
        return pixels, None
    return pixels, place[end : end + CLIP_BYTES].reshape(CLIP_SIDE, CLIP_SIDE, 3)
