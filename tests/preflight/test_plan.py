"""What a dry run says of what is listed."""

from contextlib import closing
from pathlib import Path

import pytest

from common.options import Limit
from preflight.describe import describe_plan, describe_skipped
from tests.dataset.states import listed, listing_of


@pytest.fixture
def listing(tmp_path):
    objects = ["t/a.jpg", "t/b.JPG", "t/c.Jpeg", "t/d.webp", "t/e.txt", "t/f.txt", "t/g/", "t/h"]
    train = [listed(name, 1_000_000) for name in objects]
    val = [listed(f"v/{n}.jpg", 500_000) for n in range(1200)]
    with closing(listing_of(tmp_path, train, val)) as made:
        yield made


def test_the_plan_in_numbers(listing):
    lines = describe_plan(listing, "images", "index-bucket").splitlines()
    assert [line.split() for line in lines[:4]] == [
        ["objects", "number", "size"],
        ["training", "1", "1.0", "MB"],
        ["validation", "1,200", "600.0", "MB"],
        ["skipped:", ".txt", "2", "-"],
    ]
    assert lines[-2] == (
        "Would read 601.0 MB from gs://images, keep 17.2 MB on this disk, and upload about 27.1 MB "
        "to gs://index-bucket."
    )


def test_what_is_skipped_is_named_with_what_would_help(listing):
    only_lower_case = "the server takes lower-case names only."
    only_three = "the server takes .jpg, .jpeg and .png only. Convert them to include them."
    said = [
        "Skipped 2 objects (.txt, such as t/e.txt).",
        f"Skipped 1 object (.JPG, such as t/b.JPG): {only_lower_case}",
        f"Skipped 1 object (.Jpeg, such as t/c.Jpeg): {only_lower_case}",
        f"Skipped 1 object (.webp, such as t/d.webp): {only_three}",
        "Skipped 1 object (directory, such as t/g/).",
        "Skipped 1 object (no extension, such as t/h).",
    ]
    assert list(describe_skipped(listing, Path("renames.sh"))) == said
    assert list(describe_skipped(listing, None)) == [
        *said,
        "Under another name 2 of them would be images: --dry_run --write_renames FILE writes a "
        "script that renames them.",
    ]


@pytest.mark.parametrize(
    ("limit", "images", "expected"),
    [(Limit(5, False), 100, 5), (Limit(0.01, True), 250, 2), (Limit(1.0, True), 3, 3)],
)
def test_limit(limit, images, expected):
    assert limit.of(images) == expected
