"""One image: bytes -> pixels, CLIP input, thumbnail; or the reason why there are none."""

import contextlib
import errno
import io
import random
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, ImageCms, ImageFile
from PIL.PngImagePlugin import PngInfo
from skimage.data import astronaut

from common.errors import ImageError, ShortageError
from engine import decode as decoding
from engine.decode import clip_input, decode, open_image, prepare, small_copy, thumbnail
from models import clip_crop


def noise(width, height, mode="RGB"):
    shape = (height, width) if mode == "L" else (height, width, len(mode))
    pixels = np.random.default_rng(width * height).integers(0, 256, shape, np.uint8)
    return Image.fromarray(pixels, mode if mode == "CMYK" else None)


def file_of(image, kind="PNG", **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def test_exif_rotation_is_not_applied():
    image = noise(30, 20)
    exif = image.getexif()
    exif[0x0112] = 6  # turn by 90 degrees
    prepared = prepare(open_image(file_of(image, "JPEG", exif=exif)))
    assert prepared.about.is_rotated
    assert prepared.pixels.shape == (20, 30, 3)
    with Image.open(io.BytesIO(prepared.thumbnail)) as small:
        assert small.size == (30, 20)
        assert 0x0112 not in small.getexif()


def orientation(number):
    exif = Image.Exif()
    exif[0x0112] = number
    return exif


@pytest.mark.parametrize(
    ("kind", "exif", "rotated"),
    [
        *(("JPEG", orientation(number), number in (3, 8)) for number in (1, 3, 8, 9)),
        *(("PNG", orientation(number), number == 6) for number in (1, 6)),
        ("WEBP", orientation(5), True),
        ("JPEG", b"Exif\0\0II*\0\xff\xff\xff\x7f" * 9, False),
        *(("JPEG", exif, False) for exif in (b"Exif\0\0", b"nonsense", b"")),
    ],
)
def test_an_exif_rotation_is_noticed(kind, exif, rotated):
    assert prepare(open_image(file_of(noise(30, 20), kind, exif=exif))).about.is_rotated is rotated


@pytest.mark.parametrize(
    ("mode", "kind"),
    [*((mode, "PNG") for mode in ("RGB", "L", "LA", "RGBA")), ("RGB", "JPEG"), ("CMYK", "JPEG")],
)
def test_pixels_are_pillows_in_rgb(mode, kind):
    data = file_of(noise(300, 400, mode), kind)  # more than a thumbnail has
    expected = Image.open(io.BytesIO(data)).convert("RGB")
    np.testing.assert_array_equal(prepare(open_image(data)).pixels, np.asarray(expected))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "MPO", "WEBP", "GIF", "BMP", "TIFF"])
def test_the_content_decides_not_the_name(kind):
    image = noise(20, 10)
    options = {"save_all": True, "append_images": [image]} if kind == "MPO" else {}
    opened = open_image(file_of(image, kind, **options))
    assert opened.format == kind
    assert decode(opened).size == (20, 10)


def test_16_bits_are_scaled_not_clipped():
    values = np.array([[0, 255, 256, 32_768, 65_535]], np.uint16)
    pixels = prepare(open_image(file_of(Image.fromarray(values)))).pixels
    assert pixels[0, :, 0].tolist() == [0, 0, 1, 128, 255]


def test_too_many_pixels_are_refused_before_decoding():
    data = file_of(Image.new("1", (3000, 2000)))
    assert open_image(data, 6_000_000).size == (3000, 2000)
    with pytest.raises(ImageError, match=r"3000 x 2000 is 6\.0 megapixels; at most 5\.9 fit"):
        open_image(data, 5_900_000)


@pytest.mark.parametrize(
    ("size", "scaled"),
    [
        ((224, 224), (224, 224)),
        ((640, 480), (298, 224)),
        ((375, 500), (224, 298)),
        ((97, 131), (224, 302)),
        ((800, 120), (1493, 224)),
        ((333, 257), (290, 224)),
        ((227, 224), (227, 224)),
        ((1, 1), (224, 224)),
        ((3, 1), (672, 224)),
    ],
)
def test_clip_input_is_the_centre_of_the_scaled_image(size, scaled):
    image = noise(*size)
    left, top = (int(round((side - 224) / 2)) for side in scaled)
    whole = np.asarray(image.resize(scaled, Image.Resampling.BICUBIC))
    cut = clip_input(image)
    assert cut.dtype == np.uint8
    assert (cut == whole[top : top + 224, left : left + 224]).all()


@pytest.mark.parametrize("size", [(1500, 12), (12, 1500)])
def test_clip_input_of_a_very_long_image_scales_the_crop_alone(size, monkeypatch):
    image = Image.fromarray(np.linspace(0, 255, 1500 * 12).astype(np.uint8).reshape(12, 1500))
    image = image.resize(size).convert("RGB")
    plain = clip_input(image).astype(int)
    monkeypatch.setattr(clip_crop, "MAX_SCALED_SIDE", 1000)
    assert np.abs(clip_input(image).astype(int) - plain).max() <= 2


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((640, 480), (267, 200)),
        ((480, 640), (150, 200)),
        ((100, 200), (100, 200)),
        ((1000, 200), (1000, 200)),
        ((1, 1), (1, 1)),
        ((300, 201), (299, 200)),
        ((2, 4000), (1, 200)),
    ],
)
def test_thumbnail_is_an_rgb_jpeg_at_most_200_high(size, expected):
    with Image.open(io.BytesIO(thumbnail(small_copy(noise(*size))))) as small:
        assert (small.format, small.mode, small.size) == ("JPEG", "RGB", expected)


@pytest.mark.parametrize("size", [(640, 480), (1280, 720), (2000, 1500)])
def test_thumbnail_is_as_good_as_one_scaled_at_once(size):
    photograph = Image.fromarray(astronaut()).resize(size)
    with Image.open(io.BytesIO(thumbnail(small_copy(photograph)))) as small:
        best = io.BytesIO()
        photograph.resize(small.size, Image.Resampling.BICUBIC).save(best, "JPEG")
        difference = np.asarray(small).astype(float) - np.asarray(Image.open(best))
    assert 10 * np.log10(255**2 / (difference**2).mean()) > 35  # decibels: PSNR


def progressive(scans, width, height):
    """The beginning of a progressive JPEG with this number of scans, enough to be opened."""
    file = io.BytesIO()
    Image.new("L", (width, height)).save(file, "JPEG", progressive=True)
    return file.getvalue() + b"\xff\xda" * (scans - file.getvalue().count(b"\xff\xda"))


@pytest.mark.parametrize(("scans", "side"), [(490, 9_900), (501, 10), (41, 9_900)])
def test_a_jpeg_made_to_take_long_is_refused_before_it_is_decoded(scans, side):
    with pytest.raises(ImageError, match=rf"a JPEG of {scans} scans over .* takes too long"):
        open_image(progressive(scans, side, side))


@pytest.mark.parametrize(("scans", "side"), [(10, 9_900), (490, 2_000)])
def test_a_large_progressive_jpeg_is_opened(scans, side):
    assert open_image(progressive(scans, side, side)).size == (side, side)


SECRET = b"between us"
LONG = SECRET + b"." * 70_000  # more than the comment of a JPEG file can hold


def said(kind, comment):
    """Options that save an image with all that a file can say beside its pixels."""
    exif, text = Image.Exif(), PngInfo()
    exif[0x010E] = SECRET.decode()
    for key in ("Comment", "comment", "XML:com.adobe.xmp"):
        text.add_text(key, comment.decode())
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    options = {"exif": exif, "xmp": SECRET, "icc_profile": profile, "dpi": (71, 71)}
    if kind == "GIF":
        return {"comment": comment}
    return {**options, "pnginfo": text} if kind == "PNG" else {**options, "comment": comment}


@pytest.mark.parametrize("size", [(60, 40), (600, 400)])
@pytest.mark.parametrize(
    ("kind", "comment"), [("JPEG", SECRET), ("PNG", LONG), ("GIF", LONG), ("WEBP", SECRET)]
)
def test_a_thumbnail_has_pixels_alone(kind, comment, size):
    data = file_of(noise(*size), kind, **said(kind, comment))
    made = prepare(open_image(data)).thumbnail
    assert SECRET not in made
    at, segments = 2, set()
    while made[at + 1] != 0xDA:  # where the pixels begin
        segments.add(made[at + 1])
        at += 2 + int.from_bytes(made[at + 2 : at + 4], "big")
    assert segments == {0xE0, 0xDB, 0xC0, 0xC4}  # JFIF, tables and the size


@pytest.mark.parametrize(
    ("place", "name"),
    [
        (Image, "open"),
        (ImageFile.ImageFile, "load"),
        (Image.Image, "convert"),
        (Image.Image, "resize"),
        (Image.Image, "save"),
    ],
)
@pytest.mark.parametrize(
    ("error", "raised", "message"),
    [
        (ValueError("odd"), ImageError, r"\(ValueError: odd\)"),
        (ZeroDivisionError(), ImageError, r"\(ZeroDivisionError\)"),
        (OSError(errno.EMFILE, "x"), ShortageError, "can open up to"),
        (OSError(errno.EIO, "x"), ShortageError, "disk"),
        (MemoryError(), ShortageError, "memory"),
    ],
)
def test_any_error_is_the_reason_unless_the_machine_is_short(
    monkeypatch, place, name, error, raised, message
):
    def fail(*_, **__):
        raise error

    data = file_of(noise(600, 400, "RGBA"))
    monkeypatch.setattr(place, name, fail)
    with pytest.raises(raised, match=message):
        prepare(open_image(data))


def chunk(kind, data=b""):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def bmp_of_runs(runs):
    """A BMP file of 2000 x 2000 pixels, compressed in runs of equal pixels."""
    header = struct.pack("<IiiHHIIiiII", 40, 2000, 2000, 1, 8, 1, len(runs), 0, 0, 256, 0)
    start = 14 + len(header) + 1024
    file = struct.pack("<2sIHHI", b"BM", start + len(runs), 0, 0, start)
    return file + header + bytes(1024) + runs


def tiff_of_strips(count):
    """A TIFF file of one column, with a strip per pixel."""
    places = np.arange(8, 8 + count, dtype="<u4").tobytes() + np.ones(count, "<u4").tobytes()
    after = 8 + count + len(places)
    tags = [(256, 3, 1, 1), (257, 4, 1, count), (258, 3, 1, 8), (259, 3, 1, 1), (262, 3, 1, 1)]
    tags += [(273, 4, count, 8 + count), (278, 3, 1, 1), (279, 4, count, 8 + 5 * count)]
    table = b"".join(struct.pack("<HHII", *tag) for tag in tags)
    head = b"II*\0" + struct.pack("<I", after)
    return head + bytes(count) + places + struct.pack("<H", len(tags)) + table + bytes(4)


KINDS = ("JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP")
SMALL = {kind: file_of(noise(40, 30), kind) for kind in KINDS}


@pytest.mark.parametrize(
    ("kind", "at", "part"),
    [
        ("JPEG", 2, b"\xff"),  # fill bytes
        ("JPEG", 2, b"\xff\xe5\0\2"),  # an empty APP segment
        ("PNG", 33, chunk(b"prIv")),
        ("PNG", -12, chunk(b"prIv")),  # after the pixels
    ],
)
def test_a_file_of_very_many_parts_is_refused(monkeypatch, kind, at, part):
    """Read one by one, 16 MB of them would take minutes."""
    monkeypatch.setattr(decoding, "MAX_HEADER_READS", 4000)
    monkeypatch.setattr(decoding, "MAX_READS", 4000)
    start, rest = SMALL[kind][:at], SMALL[kind][at:]
    assert prepare(open_image(start + part * 100 + rest)).about.height == 30
    with pytest.raises(ImageError, match="more than 4,000 parts"):
        prepare(open_image(start + part * 5000 + rest))


def test_a_bmp_file_of_very_many_runs_is_refused(monkeypatch):
    monkeypatch.setattr(decoding, "MAX_READS", 4000)
    with pytest.raises(ImageError, match="more than 4,000 parts"):
        prepare(open_image(bmp_of_runs(b"\1\5" * 5000)))


def test_a_tiff_file_of_very_many_strips_is_refused(monkeypatch):
    monkeypatch.setattr(decoding, "MAX_TILES", 2000)
    assert prepare(open_image(tiff_of_strips(2000))).about.height == 2000
    with pytest.raises(ImageError, match="2,001 strips or tiles, more than the 2,000 allowed"):
        open_image(tiff_of_strips(2001))


def mutant(rng):
    """A file with some bytes changed, cut out, repeated or moved."""
    data = bytearray(SMALL[rng.choice(sorted(SMALL))])
    for _ in range(rng.choice([1, 1, 2, 8, 40])):
        at, size = rng.randrange(len(data)), rng.choice([1, 1, 2, 4, 30])
        piece = data[at : at + size]
        change = rng.choice(["byte", "extreme", "cut", "repeat", "move"])
        if change == "byte":
            data[at] ^= 1 << rng.randrange(8)
        elif change == "extreme":
            data[at : at + size] = rng.choice([b"\0", b"\xff", b"\x7f"]) * len(piece)
        elif change == "cut" and len(data) > 2 * size:
            del data[at : at + size]
        elif change == "repeat":
            data[at:at] = piece * rng.choice([1, 3, 100])
        else:
            to = rng.randrange(len(data))
            data[to : to + size] = piece
    return bytes(data)


@pytest.mark.parametrize("count", [600, pytest.param(20_000, marks=pytest.mark.soak)])
def test_mutants_of_real_files_are_images_or_have_a_reason(count):
    rng, embedded = random.Random(count), 0
    for _ in range(count):
        with contextlib.suppress(ImageError):
            embedded += prepare(open_image(mutant(rng), 1_000_000)).pixels.size > 0
    assert 0.1 * count < embedded < 0.9 * count
