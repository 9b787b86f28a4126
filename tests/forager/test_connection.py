"""Bodies that a server may answer with."""

import pytest

from forager.connection import page_title, parsed


@pytest.mark.parametrize(
    ("page", "title"),
    [
        (b"<title>Not found</title>", "Not found"),
        (b"<TITLE class='x'>\n a <b>b</b>\n&amp; c</TITLE>", "a b & c"),
        (b"<h1>Sorry</h1>", "Sorry"),
        (b"<title></title><h1>Sorry</h1>", "Sorry"),
        (b'<title>E</title><pre class="exception_value">too long</pre>', "E: too long"),
        (b"<title>\x1b[2J</title>", r"\x1b[2J"),
        (b"<title>never closed", "never closed"),
        (b"<title", ""),
        (b"no page", ""),
        (b"", ""),
    ],
)
def test_page_title(page, title):
    assert page_title(page) == title


@pytest.mark.parametrize(
    "piece",
    [b"<title", b"<title>", b"<h1>", b"<title><", b"<title>x</titl", b"<pre class=", b"<", b"&lt"],
)
def test_hostile_pages_take_linear_time(piece):
    """Where the time grows with the square of the length, they take hours."""
    page_title(piece * (10_000_000 // len(piece)))
    page_title(b"<title>" + piece * (10_000_000 // len(piece)) + b"</title>")


@pytest.mark.parametrize("data", [b"", b"{", b"[" * 100_000, b"\xff", b"9" * 5000])
def test_what_is_not_json(data):
    assert parsed(data) is None
