"""Preparing an image: what is the image's fault, and what is the process's."""

import asyncio
import errno

import pytest
from PIL import Image

from common.errors import ImageError, ShortageError
from dataset.state import Row
from engine import decode
from engine.prepare import OwnMemory, Preparation
from gcs import ListedObject
from testing.photographs import picture


def prepared(image_file, fails_with, monkeypatch):
    """Decode a file in a Preparation whose Pillow fails with this error."""

    def fail(*_, **__):
        raise fails_with

    monkeypatch.setattr(Image, "open", fail)

    async def run():
        memory = OwnMemory(10**8)
        preparation = Preparation("b", "i", "id", decode_workers=1, memory=memory, at_once=9)
        row = Row(0, ListedObject("t/a.jpg", len(image_file), 0, 0))
        return await preparation._in_thread(row, decode.open_image, image_file)

    return asyncio.run(run())


@pytest.mark.parametrize(
    "error", [OSError(errno.EMFILE, "x"), OSError(errno.EIO, "x"), MemoryError()]
)
def test_a_shortage_while_decoding_is_not_the_fault_of_the_image(emulator, monkeypatch, error):
    with pytest.raises(ShortageError):
        prepared(picture(1), error, monkeypatch)


def test_a_damaged_header_is_the_fault_of_the_image(emulator, monkeypatch):
    with pytest.raises(ImageError, match="its header cannot be read"):
        prepared(picture(1), ValueError("broken"), monkeypatch)
