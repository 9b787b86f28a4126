"""The script that renames objects which are images by all but their names."""

import pytest

from preflight.renames import Renames, find_renames, new_name, script
from tests.renaming import renamed_by

SCRIPT = r"""#!/usr/bin/env bash
# Renames 2 objects in gs://b, so that Forager takes them as images.
# Each takes about a second; 8 run at a time. Nothing is replaced: an object whose new name
# is there already stays as it is.
# Not renamed: t/c.JPG (t/c.jpg is there already).
set -euo pipefail
{
    printf '%s\0' gs://b/t/a.JPG gs://b/t/a.jpg
    printf '%s\0' 'gs://b/t/b b.Jpeg' 'gs://b/t/b b.jpeg'
} | xargs -0 -n 2 -P 8 gcloud storage mv --no-clobber
"""


@pytest.mark.parametrize(
    ("name", "renamed"),
    [
        *(("t/a.JPG", "t/a.jpg"), ("A.PNG", "A.png"), ("a.b.JpEg", "a.b.jpeg")),
        *(("a.jpe", "a.jpg"), ("a.JFIF", "a.jpg"), ("a.jpg", ""), ("a.webp", "")),
        *(("a", ""), ("t.JPG/a", ""), ("t/.JPG", ""), ("a.JPG\udcff.JPG", "")),
    ],
)
def test_new_name(name, renamed):
    assert new_name(name) == renamed


def test_whole_script():
    names = ["t/b b.Jpeg", "t/a.JPG", "t/c.JPG", "t/c.jpg", "t/notes.txt"]
    assert script(find_renames(names, ["t/c.jpg"]), "b") == SCRIPT


def test_objects_that_keep_their_names_and_why():
    names = ["a.JPG", "a.Jpg", "b*.JPG", "c[1].PNG", "d.JPG"]
    assert find_renames(names, ["d.jpg"]) == Renames(
        [],
        [
            ("a.JPG", "another object would get the same name"),
            ("a.Jpg", "another object would get the same name"),
            ("b*.JPG", "gcloud takes *, ?, [ and ] in names for patterns"),
            ("c[1].PNG", "gcloud takes *, ?, [ and ] in names for patterns"),
            ("d.JPG", "d.jpg is there already"),
        ],
    )


def test_the_script_renames_any_names(tmp_path):
    names = ["it's.JPG", "$(touch pwned).JPG", "two\nlines \\ '.JPG", "bell\x07é\x9b.JPG", "é.JPG"]
    text = script(find_renames(names, []), "b")
    assert text.replace("\n", "").isprintable()
    (tmp_path / "renames.sh").write_text(text)
    asked = [(f"gs://b/{name}", f"gs://b/{name[:-4]}.jpg") for name in names]
    assert renamed_by("bash renames.sh", tmp_path) == sorted(asked)
    assert not (tmp_path / "pwned").exists()


def test_a_dry_run_writes_the_script_for_all_that_is_skipped(world, fast_models, tmp_path):
    world.put("v/b.jpg", **dict.fromkeys(["t/A.JPG", "t/b.JPG", "t/c.jfif"], b"x"))
    result = world.run("--dry_run", "--write_renames", "re names.sh")
    assert "No training images" in result.stderr
    said = result.stderr.splitlines()
    assert said[1:4] == [
        "Skipped 2 objects (.JPG, such as t/A.JPG): the server takes lower-case names only.",
        "Skipped 1 object (.jfif, such as t/c.jfif): the server takes .jpg, .jpeg and .png only.",
        "Wrote a script that renames 3 objects. Read it, then run: bash 're names.sh'",
    ]
    renamed = renamed_by("bash 're names.sh'", tmp_path)
    assert renamed[0] == (f"gs://{world.images}/t/A.JPG", f"gs://{world.images}/t/A.jpg")
    assert len(renamed) == 3


def test_nothing_to_rename_writes_no_script(world, fast_models, tmp_path):
    world.put("t/a.jpg", "v/b.jpg", **{"t/b.JPG": b"x", "t/b.Jpg": b"x"})
    said = world.run("--dry_run", "--write_renames", "renames.sh").stderr
    assert said.splitlines()[-1] == (
        "renames.sh was not written: it would rename nothing: t/b.JPG, because another object "
        "would get the same name."
    )
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--write_renames", "a.sh"], "--write_renames goes with --dry_run."),
        (
            ["--dry_run", "--write_renames", "no/a.sh"],
            "--write_renames no/a.sh: there is no such directory.",
        ),
    ],
)
def test_a_script_that_cannot_be_written(world, fast_models, options, message):
    result = world.run(*options)
    assert result.exit_code > 0
    assert f"Error: {message}\n" in result.stderr
