"""The zoo of bad images, made by code: each embeds as it should or is failed with its reason."""

import gzip
import io
import re
import struct
import tracemalloc
import zlib

import numpy as np
import pytest
from PIL import Image

from common.errors import ImageError
from dataset.state import State
from storage.async_client import unzipped, unzipped_size
from testing.photographs import picture
from tests.harness import Index, World, ended, pictures

MAX_RSS = 2_000_000_000  # bytes: an image of 100 megapixels takes 1.4 GB, whatever its file


def colours(size=(40, 30), mode="RGB"):
    return Image.open(io.BytesIO(picture(1, size))).convert(mode)


def saved(image, kind, **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width, height, depth, kind, pixels=b"", extra=b""):
    """A PNG file written by hand: what Pillow would not write."""
    header = struct.pack(">IIBBBBB", width, height, depth, kind, 0, 0, 0)
    chunks = chunk(b"IHDR", header) + extra + chunk(b"IDAT", zlib.compress(pixels, 9))
    return b"\x89PNG\r\n\x1a\n" + chunks + chunk(b"IEND", b"")


def rows(width, height, sample):
    """Unfiltered PNG rows of one sample, given as its bytes."""
    return (b"\0" + sample * width) * height


def exif(orientation=6):
    data = Image.Exif()
    data[274] = orientation
    return data.tobytes()


def many_scans():
    """A progressive JPEG whose last scan comes a thousand times."""
    data = saved(colours(), "JPEG", progressive=True)
    last = data.rindex(b"\xff\xda")
    return data[:last] + data[last:-2] * 1000 + data[-2:]


RGB, GRAY = 2, 0
TEXT = chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(9 << 20)))  # 9 MiB when it is unpacked
# Large ones are functions: most workers of a test run need none of them.
GOOD = {
    "cmyk.jpg": saved(colours(mode="CMYK"), "JPEG"),
    "gray-alpha.png": saved(colours(mode="L").convert("LA"), "PNG"),
    "palette.png": saved(colours(mode="P"), "PNG", transparency=bytes(range(40))),
    "palette-index.png": saved(colours(mode="P"), "PNG", transparency=3),
    "gray16.png": png(40, 30, 16, GRAY, rows(40, 30, b"\x80\x10")),
    "rgb16.png": png(40, 30, 16, RGB, rows(40, 30, b"\x80\x10\x20\x00\xff\xff")),
    "bilevel.png": saved(colours(mode="1"), "PNG"),
    "animated-png.png": saved(colours(), "PNG", save_all=True, append_images=[colours((40, 30))]),
    "animated-gif-1.png": saved(colours(), "GIF", save_all=True, append_images=[colours()]),
    "animated-gif-2.jpg": saved(colours(), "GIF", save_all=True, append_images=[colours()]),
    "exif-nonsense.jpg": saved(colours(), "JPEG", exif=b"Exif\0\0II*\0\xff\xff\xff\x7f" * 9),
    "exif-rotated.jpg": saved(colours(), "JPEG", exif=exif()),
    "icc-nonsense.jpg": saved(colours(), "JPEG", icc_profile=b"no profile" * 99),
    "one-pixel.png": saved(colours((1, 1)), "PNG"),
    "tall.png": saved(colours((1, 20_000)), "PNG"),
    "wide.jpg": saved(colours((20_000, 20)), "JPEG"),
    "png-inside.jpg": saved(colours(), "PNG"),
    "jpeg-inside.png": saved(colours(), "JPEG"),
    "gzipped.jpg": gzip.compress(saved(colours(), "JPEG")),
    "100-megapixels-16-bit.png": lambda: png(
        10_000, 10_000, 16, GRAY, rows(10_000, 10_000, b"\x55\x11")
    ),
    "more-data-than-pixels.png": lambda: png(40, 30, 8, GRAY, bytes(50_000_000)),
}
BAD = {
    "text.jpg": (b"not an image at all", "not an image"),
    "html.png": (b"<!DOCTYPE html><title>Sign in</title>", "not an image"),
    "empty.jpg": (b"", "the file is empty"),
    "one-byte.png": (b"\x89", "not an image"),
    "cut-short-jpeg.jpg": (picture(2)[:-150], "truncated|cannot be decoded"),
    "cut-short-png.png": (saved(colours(), "PNG")[:200], "truncated|cannot be decoded"),
    "no-pixels.png": (png(40, 30, 8, GRAY)[:33], "header cannot be read|not an image|truncated"),
    "damaged.png": (
        saved(colours(), "PNG").replace(b"IDAT", b"IDAT\xff\xff", 1),
        "cannot be decoded|header",
    ),
    "bomb.png": (png(50_000, 50_000, 1, GRAY), r"50000 x 50000 is 2,500.0 megapixels"),
    "text-bomb.png": (png(40, 30, 8, GRAY, rows(40, 30, b"\1"), TEXT), "header cannot be read"),
    "many-scans.jpg": (many_scans(), "a JPEG of 1,009 scans"),
    "too-wide.png": (png(70_000, 1, 1, GRAY, rows(8750, 1, b"\1")), "too wide for a JPEG"),
    "gzip-bomb.jpg": (lambda: gzip.compress(bytes(200 << 20)), "not an image"),
    "gzip-huge.jpg": (gzip.compress(b"small")[:-4] + b"\xff\xff\xff\xff", "4.3 GB uncompressed"),
    "gzip-lies.jpg": (gzip.compress(picture(3))[:-4] + b"\x05\0\0\0", "gzip"),
    "gzip-cut.jpg": (gzip.compress(picture(3))[:300], "gzip"),
    "large-object.jpg": (np.random.default_rng(0).bytes(700_000), "too large for an image"),
    "overflow.png": (saved(colours((33, 33)), "PNG"), "no finite numbers"),
}
ZOO = {
    **{f"train/{name}": data for name, data in GOOD.items()},
    **{f"val/bad-{name}": data for name, (data, _) in BAD.items()},
    "val/fine.jpg": picture(9),
}


LIMITS = {"FAKE_BAD_SIZE": "33x33", "FAKE_OBJECT_BYTES": "650000"}


@pytest.fixture(scope="module")
def zoo(emulator_url, servers, tmp_path_factory):
    """The zoo after a first run: how that ended, and what it left behind."""
    made = World(emulator_url, servers["B"], tmp_path_factory.mktemp("zoo") / "made")
    made.put(**{name: data() if callable(data) else data for name, data in ZOO.items()})
    peak = {"FAKE_PEAK_FILE": str(made.directory / "peak")}
    made.first = ended(made.start(storage=emulator_url, **LIMITS, **peak))
    made.reasons, made.embedded = made.failed(), made.done()
    made.uploaded = made.left_behind()
    assert made.registered() is None
    return made


def test_zoo_stops_before_upload_and_registration(zoo):
    assert zoo.first.exit_code == 1
    assert f"{len(BAD)} of {len(ZOO)} images cannot be embedded; nothing was" in zoo.first.error
    assert str(zoo.work / "failed.json") in zoo.first.error
    assert all(name.startswith("thumbnails/") for name in zoo.uploaded)


def test_zoo_takes_bounded_memory(zoo):
    assert 0 < int((zoo.directory / "peak").read_text()) < MAX_RSS


@pytest.mark.parametrize("name", GOOD)
def test_zoo_good_images_are_done(zoo, name):
    assert f"train/{name}" in zoo.embedded
    assert f"thumbnails/ID/{name.rpartition('.')[0]}.jpg" in zoo.uploaded


@pytest.mark.parametrize("name", BAD)
def test_zoo_bad_images_are_failed_with_their_reason(zoo, name):
    reason = zoo.reasons[f"val/bad-{name}"]
    assert re.search(BAD[name][1], reason), reason


def test_zoo_is_registered_with_zeros_for_what_failed(zoo, emulator_url):
    zoo.ingest("--skip_bad_images", storage=emulator_url, **LIMITS)
    assert zoo.registered() == (zoo.index_id(), len(GOOD), len(BAD) + 1)
    expected = [1.0 if status == 1 else 0.0 for status in zoo.statuses().values()]
    for array in Index(zoo.objects()).arrays.values():
        np.testing.assert_allclose(np.linalg.norm(array, axis=1), expected, atol=1e-5)


def test_rows_that_do_not_add_up_are_never_uploaded(make_world, monkeypatch):
    made = make_world(pictures(3, 1))
    record = State.record
    monkeypatch.setattr(State, "record", lambda self, rows: record(self, list(rows)[1:]))
    with pytest.raises(RuntimeError, match="do not add up"):
        made.run()
    assert not any(name.startswith("indexes/") for name in made.left_behind())


def test_budgets_bound_what_is_unpacked():
    """A gzip file is unpacked within a budget of what it says, and never beyond it."""
    assert unzipped_size(gzip.compress(bytes(1000))) == 1000
    assert unzipped_size(b"\xff\xd8 a JPEG") == 0
    lying = gzip.compress(bytes(10 << 20))[:-4] + struct.pack("<I", 1000)
    tracemalloc.start()
    with pytest.raises(ImageError, match="gzip"):
        unzipped(lying)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1 << 20
