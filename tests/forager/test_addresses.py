"""Addresses of the server and of its web page."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.addresses import check_server_url, dataset_page, shown_address
from common.errors import ServerError
from forager.client import Forager


@pytest.mark.parametrize(
    "url",
    [
        *("localhost:8000", "ftp://x", "http://", "http://x:y", "http://x:0", "http://x:99999"),
        *("http://[x", "http://x/?q", "http://a b", "\x1b", "http://a..b:80", "http://\udc80"),
        *("http://" + "x" * 300, "http://" + "x." * 150, "http://a\uff20b"),
    ],
)
def test_what_is_no_address(url):
    with pytest.raises(ServerError, match=r"write it as http://HOST:PORT\.$") as caught:
        check_server_url(url)
    assert caught.value.message.isprintable()


@pytest.mark.parametrize(
    "url",
    [
        *("http://h", "https://h.org:8000/forager", "http://my_host.", "http://bücher.example"),
        *("http://10.0.0.1:80", "http://[::1]:80", "http://[fe80::1%25eth0]:80"),
        "http://bob:secret@h",
    ],
)
def test_addresses(url):
    assert check_server_url(url + "//") == url


@pytest.mark.parametrize(
    "url",
    [
        *("http://bob:s3/cret@host", "http://bob:s3cret@host:80", "http://bob:s3cret@host:port"),
        *("http://bob:s3?cret@host", "http://bob:s3#cret@host", "http://bob:s3@cret@host"),
        *("http://bob:s3://cret@host", "http://bob:s3cret@", "http://bob:s3cret"),
        *("http://[bob:s3cret@host", "http://bob:s3cret\uff20@host", "bob:s3cret@host"),
        *("//bob:s3cret@host", "ftp://bob:s3cret@host", "http:/bob:s3cret@host"),
        *("http://host/?token=s3cret", "http://host/#s3cret"),
    ],
)
def test_passwords_are_not_shown(url):
    said = shown_address(url)
    try:
        check_server_url(url)
    except ServerError as error:
        said += error.message
    assert "s3" not in said
    assert "cret" not in said


def test_a_shown_address_keeps_the_rest():
    assert shown_address("https://bob:s3cret@host:80/path") == "https://host:80/path"
    assert shown_address("http://[::1]:80") == "http://[::1]:80"
    assert shown_address("localhost:8000") == "localhost:8000"


@given(st.text() | st.text("a.:/@[]%?#-é0 ").map("http://{}".format))
def test_any_text_is_an_address_or_refused(url):
    """What the check accepts, aiohttp accepts too; it fails to connect at most."""
    try:
        check_server_url(url)
    except ServerError as error:
        assert error.message.isprintable()
    else:
        Forager(url)


@pytest.mark.parametrize(
    ("server", "viewer", "page"),
    [
        ("http://h:8000", None, "http://h:4000/d"),
        ("https://u:p@h", None, "http://h:4000/d"),
        ("http://[::1]:80", None, "http://[::1]:4000/d"),
        ("http://h:8000", "https://v/x/", "https://v/x/d"),
        ("http://h:8000", "https://u:p@v", "https://v/d"),
    ],
)
def test_dataset_page(server, viewer, page):
    assert dataset_page(server, viewer, "d") == page
