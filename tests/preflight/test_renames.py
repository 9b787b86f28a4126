"""The script that renames objects which are images by all but their names."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.names import IMAGE_SUFFIXES, identifier
from preflight.renames import Renames, find_renames, new_name, script
from tests.renaming import renamed_by

SCRIPT = r"""#!/usr/bin/env bash
# Renames 2 objects in gs://b, so that Forager takes each as an image with a basename of its own.
# This takes about 1.0 s: 8 objects at a time, a second each. With more CPU cores, set
# AT_ONCE. Nothing is replaced: an object whose new name is there already stays as it is.
# Not renamed: t/c.JPG (t/c.jpg is there already).
set -euo pipefail
{
    printf '%s\0' gs://b/t/a.JPG gs://b/t/a.jpg
    printf '%s\0' 'gs://b/t/b b.Jpeg' 'gs://b/t/b b.jpeg'
} | xargs -0 -n 2 -P "${AT_ONCE:-8}" gcloud storage mv --no-clobber
"""


@pytest.mark.parametrize(
    ("name", "renamed"),
    [
        *(("t/a.JPG", "t/a.jpg"), ("A.PNG", "A.png"), ("a.b.JpEg", "a.b.jpeg")),
        *(("a.jpe", "a.jpg"), ("a.JFIF", "a.jpg"), ("a.jpg", ""), ("a.webp", "")),
        *(("a", ""), ("t.JPG/a", ""), ("t/.JPG", "")),
    ],
)
def test_new_name(name, renamed):
    assert new_name(name) == renamed


def test_whole_script():
    names = ["t/b b.Jpeg", "t/a.JPG", "t/c.JPG", "t/c.jpg", "t/notes.txt"]
    assert "".join(script(find_renames(names), "b")) == SCRIPT


def test_a_name_that_is_no_valid_text_is_left_out():
    assert find_renames(["a/\udcff.jpg", "b/\udcff.jpg", "\udcff.JPG"]) == Renames([], [])


def test_objects_that_keep_their_names_and_why():
    names = ["a.JPG", "a.Jpg", "b*.JPG", "c[1].PNG", "d.JPG", "d.jpg"]
    assert find_renames(names) == Renames(
        [],
        [
            ("a.JPG", "another object would get the same name"),
            ("a.Jpg", "another object would get the same name"),
            ("d.JPG", "d.jpg is there already"),
            ("b*.JPG", "gcloud takes *, ?, [ and ] in names for patterns"),
            ("c[1].PNG", "gcloud takes *, ?, [ and ] in names for patterns"),
        ],
    )


@pytest.mark.parametrize(
    ("names", "renamed"),
    [
        ("cat/1.jpg dog/1.jpg dog/2.jpg", "cat/cat_1.jpg dog/dog_1.jpg dog/2.jpg"),
        ("1.jpg cat/1.jpg", "1.jpg cat/cat_1.jpg"),
        # One directory is not enough; two are.
        ("t/cat/1.jpg v/cat/1.jpg", "t/cat/t_cat_1.jpg v/cat/v_cat_1.jpg"),
        # Other images have the shorter names, or get them.
        ("x/cat_1.jpg t/cat/1.jpg v/dog/1.jpg", "x/cat_1.jpg t/cat/t_cat_1.jpg v/dog/v_dog_1.jpg"),
        (
            "a_b/c.jpg x/c.jpg a/b_c.jpg y/b_c.jpg",
            "a_b/a_b_c_jpg.jpg x/x_c_jpg.jpg a/a_b_c.jpg y/y_b_c.jpg",
        ),
        ("t/a.JPG v/a.png", "t/t_a.jpg v/v_a.png"),
        ("t/a.jpg t/a.png", "t/t_a_jpg.jpg t/t_a_png.png"),
        ("t/a.txt v/a.jpg", "t/a.txt v/a.jpg"),
        (f"{'d' * 150}/{'e' * 150}/1.jpg {'f' * 150}/{'e' * 150}/1.jpg", ""),
    ],
)
def test_basenames_are_made_unique_by_their_directories(names, renamed):
    found = find_renames(names.split())
    new_names = dict(found.new_names)
    assert not found.kept or renamed == ""
    assert [new_names.get(name, name) for name in names.split()] == (renamed or names).split()


@given(
    st.lists(
        st.from_regex(r"([ab_]/){0,3}[ab_]{1,2}\.(jpg|png|JPG|txt)", fullmatch=True), unique=True
    )
)
def test_no_two_images_have_a_basename_after_the_renames(names):
    renames = find_renames(names)
    new_names = dict(renames.new_names)
    after = [new_names.get(name, name) for name in names]
    assert len(set(after)) == len(names)
    kept = {identifier(name) for name, _ in renames.kept}
    images = [identifier(name) for name in after if name.endswith(IMAGE_SUFFIXES)]
    assert all(images.count(name) == 1 for name in images if name not in kept)


def test_the_script_renames_any_names(tmp_path):
    names = ["it's.JPG", "$(touch pwned).JPG", "two\nlines \\ '.JPG", "bell\x07é\x9b.JPG", "é.JPG"]
    text = "".join(script(find_renames(names), "b"))
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
    assert said[2:5] == [
        "Skipped 2 objects (.JPG, such as t/A.JPG): the server takes lower-case names only.",
        "Skipped 1 object (.jfif, such as t/c.jfif): the server takes .jpg, .jpeg and .png only.",
        "Wrote a script that renames 4 objects, which takes about 1.0 s. Read it, then run: bash "
        "'re names.sh'",
    ]
    renamed = renamed_by("bash 're names.sh'", tmp_path)
    assert renamed[0] == (f"gs://{world.images}/t/A.JPG", f"gs://{world.images}/t/A.jpg")
    assert len(renamed) == 4  # and t/b.JPG would have the basename of v/b.jpg


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
        (
            ["--dry_run", "--write_renames", "/proc/a.sh"],
            "--write_renames /proc/a.sh cannot be written (No such file or directory): name "
            "another file.",
        ),
    ],
)
def test_a_script_that_cannot_be_written(world, fast_models, options, message):
    world.put("t/a.jpg", "t/b.JPG", "v/c.jpg")
    result = world.run(*options)
    assert result.exit_code > 0
    assert f"Error: {message}\n" in result.stderr
