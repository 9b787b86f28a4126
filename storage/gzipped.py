"""Objects that are stored gzip-compressed, unpacked with a bound on their size."""

from __future__ import annotations

import zlib

from common.errors import ImageError

MAX_UNZIPPED_BYTES = 1 << 30
GZIP = b"\x1f\x8b"  # how gzip files begin (RFC 1952); no image does


def unzipped_size(data: bytes) -> int:
    """The size that a gzip file states for its content (at least 1); 0 if it is no gzip file."""
    if not data.startswith(GZIP):
        return 0
    return max(1, int.from_bytes(data[-4:], "little"))


def unzipped(data: bytes) -> bytes:
    """The content of a gzip file; never more is unpacked than its stated size.

    Raises:
        ImageError: damaged, or more than MAX_UNZIPPED_BYTES.
    """
    size = unzipped_size(data)
    if size > MAX_UNZIPPED_BYTES:
        raise ImageError(f"it is gzip-compressed, and {size / 1e9:,.1f} GB uncompressed")
    decompressor = zlib.decompressobj(wbits=31)
    try:
        content = decompressor.decompress(data, size)
        rest = b"" if decompressor.eof else decompressor.decompress(decompressor.unconsumed_tail, 1)
    except zlib.error as error:
        raise ImageError(f"its gzip compression is damaged ({error})") from error
    if rest or not decompressor.eof or decompressor.unused_data:
        raise ImageError("its gzip compression is cut short, or has several members")
    return content
