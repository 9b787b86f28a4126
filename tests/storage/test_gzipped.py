"""Objects that are stored gzip-compressed."""

import gzip

import pytest

from common.errors import ImageError
from storage.gzipped import unzipped


def test_gzip_is_unpacked():
    assert unzipped(gzip.compress(b"an image" * 1000)) == b"an image" * 1000


def test_gzip_cut_short_is_unusable():
    with pytest.raises(ImageError, match="gzip-compressed"):
        unzipped(gzip.compress(b"an image" * 1000)[:-20])
