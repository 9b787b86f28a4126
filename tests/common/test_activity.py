"""What requests are counted as, and that another process can add its own."""

import pytest

from common.network import activity
from common.network.activity import Requests

API = "https://www.googleapis.com/storage/v1/b/b"
UPLOAD = "https://www.googleapis.com/upload/storage/v1/b/b/o"


@pytest.mark.parametrize(
    ("method", "address", "kind"),
    [
        ("GET", f"{API}/o?prefix=t%2F", "list"),
        ("GET", f"{API}/o/t%2Fa.jpg?alt=media&generation=1", "read"),
        ("GET", "https://www.googleapis.com/download/storage/v1/b/b/o/a?alt=media", "read"),
        ("GET", "https://storage.googleapis.com/b/t/a.jpg", "read"),
        ("GET", f"{API}/o/t%2Fo?fields=name", "describe"),
        ("GET", f"{API}/iam/testPermissions?permissions=storage.objects.get", "permissions"),
        ("POST", f"{UPLOAD}?uploadType=media&name=a%2Fcompose", "write"),
        ("POST", f"{UPLOAD}?uploadType=resumable", "write"),
        ("PUT", f"{UPLOAD}?uploadType=resumable&upload_id=x", "chunk"),
        ("POST", f"{API}/o/a/compose?prettyPrint=false", "compose"),
        ("POST", "https://storage.googleapis.com/batch/storage/v1", "copy"),
        ("DELETE", f"{API}/o/a", "delete"),
    ],
)
def test_kinds_of_requests(method, address, kind):
    assert activity.kind_of(method, address) == kind


def test_only_what_came_since_is_told_and_travels_as_numbers(capsys):
    activity.count("list", Requests(1, 0, 5, 7))
    activity.warn("before")
    start = activity.activity()
    assert activity.activity_since(start) == ({}, [])
    activity.count("list", Requests(2, 1, 0, 9))
    numbers = activity.as_numbers(activity.activity_since(start).requests)
    activity.count_numbers(numbers)
    activity.warn("after")
    since = activity.activity_since(start)
    assert since == ({"list": Requests(4, 2, 0, 18)}, ["after"])
    assert capsys.readouterr().err == "before\nafter\n"
