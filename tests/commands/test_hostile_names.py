"""Object names are untrusted text: never a local path, a shell command or a terminal escape."""

import base64
import json
import os
import re
import unicodedata
from pathlib import Path

import google_crc32c
import pytest

from common import terminal
from common.names import identifier
from engine import checkpoint
from testing.photographs import picture
from tests.harness import Index, ask, ended, pictures, start
from tests.stand_in import Answer, Rule, StandIn

# Without semicolons: the emulator takes what follows one for no part of the name.
NAMES = [
    "/etc/cron.d/absolute.jpg",
    "...jpg",
    "-rf.jpg",
    "\x1b[31mred\x1b[0m.jpg",
    "\x1b]0title\x07.jpg",
    "\x9b31mC1.jpg",
    "two\nlines.jpg",
    "carriage\rreturn.jpg",
    "back\b\b\bspace.jpg",
    "\u202egnp.exe.jpg",
    "\u2066isolate.jpg",
    "zero\u200bwidth.jpg",
    "private\ue000.jpg",
    "$(touch pwned).jpg",
    "`touch pwned`&&touch pwned|'\".jpg",
    "<img src=x onerror=alert(1)>.jpg",
    "%2e%2e%2f%2e%2e%2fencoded.jpg",
    "query?a=b&c=d#fragment +x.jpg",
    "{0}{x!r}%s%d%(name)s.jpg",
    "\\host\\windows.jpg",
    "50%25.jpg",
    "%.jpg",
    "e\u0301.jpg",
    "x...jpg",
    "caf\u00e9 \u65e5\u672c\u8a9e \U0001f600.jpg",
    "\u00e9" * 290 + ".jpg",
    "deep/" * 100 + "deep.jpg",
    "not an image/it's; touch pwned #.JPG",
    "kind.\x1b[31mevil",
]
IMAGES = [name for name in NAMES if name.endswith(".jpg")]


def assert_harmless(text):
    """Nothing in it acts on a terminal; only tqdm's own bar returns the carriage."""
    acting = {c for c in text if c not in "\n\r" and unicodedata.category(c)[0] == "C"}
    assert not acting, f"{acting} in {text!r}"
    assert "carriage\r" not in text and "two\n" not in text


def assert_nothing_outside(directory):
    """The directory and those around it contain only what an ingest creates."""
    files = (Path(at, name) for at, _, names in os.walk(directory) for name in names)
    found = {str(file.relative_to(directory)) for file in files}
    ours = r"(made/)?(resnet|clip|work/(lock|(failed|report)\.json|state\.sqlite.*"
    ours += r"|aux/imagenet\.pickle|index/(\w+\.json|manifest\.parquet)"
    ours += r"|index/local/\w+/embeddings\.npy))"
    assert all(re.fullmatch(ours, name) for name in found), found
    assert not os.path.exists("/etc/cron.d/absolute.jpg")


@pytest.fixture
def hostile(make_world, tmp_path, monkeypatch):
    """Makes a dataset of the hostile names, with these contents."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(checkpoint, "FAILURES_SHOWN", 1000)
    monkeypatch.setattr(terminal, "SHOWN_LINES", 1000)

    def make(content):
        objects = {f"train/{name}": content(name) for name in NAMES}
        return make_world({**objects, "val/fine.jpg": picture(0)})

    return make


def test_hostile_names_are_ingested_as_they_are(hostile, tmp_path):
    """And printed escaped where requests fail."""
    made = hostile(lambda name: picture(len(name)))
    with StandIn(made.storage.url, Rule("alt=media|thumbnails", "503", times=60)) as storage:
        done = made.ingest(storage=storage)
    assert "attempt 2 of 8" in done.stderr
    assert_harmless(done.stderr)
    assert_nothing_outside(tmp_path)
    index = Index(made.objects())
    assert index.labels == [*sorted(f"train/{name}" for name in IMAGES), "val/fine.jpg"]
    assert set(index.train) == set(map(identifier, IMAGES))
    files = {f"{identifier(name)}.jpg" for name in [*IMAGES, "fine.jpg"]}
    assert set(index.thumbnails) == files
    assert set(index.classes) == {os.path.basename(name) for name in index.labels}
    assert made.registered()[1] == len(IMAGES)


def test_hostile_names_are_printed_escaped(hostile, tmp_path):
    made = hostile(lambda name: b"not an image")
    done = made.run().failed(f"{len(IMAGES)} of {len(IMAGES) + 1} images")
    assert_harmless(done.stderr + done.stdout)
    assert_nothing_outside(tmp_path)
    assert r"train/\x1b[31mred\x1b[0m.jpg: not an image" in done.stderr
    assert r"train/two\nlines.jpg" in done.stderr and r"train/\u202egnp.exe.jpg" in done.stderr
    assert list(made.failed()) == sorted(f"train/{name}" for name in IMAGES)


def test_a_terminal_that_shows_ascii_alone_is_no_error(make_world):
    made = make_world({**pictures(1, 1), "train/notes.\u00e9": b"x"})
    ascii_alone = {**os.environ, "PYTHONIOENCODING": "ascii"}
    done = ended(start(made.command("--dry_run"), ascii_alone)).succeeded()
    assert r"skipped: .\xe9" in done.stdout


def also_listed(emulator_url, names):
    """The emulator with more names, which it cannot hold, under train/; they hold no images."""
    content = b"not an image"
    size, crc = len(content), base64.b64encode(google_crc32c.Checksum(content).digest()).decode()
    fields = f'"size": {size}, "crc32c": "{crc}", "generation": 1'
    items = [f'{{"name": {name}, {fields}}}' for name in names]

    def rule(asked):
        if ".." in asked.path:
            return Answer(200, content)
        if "prefix=train" in asked.path:
            page = ask(emulator_url + asked.path).decode()
            page = page.replace('"items": [', f'"items": [{", ".join(items)}, ')
            return Answer(200, page.encode(), {"Content-Type": "application/json"})
        return None

    return StandIn(emulator_url, rule)


def test_names_that_are_no_text_are_skipped_and_counted(make_world):
    made = make_world(pictures(1, 1))
    surrogates = [r'"train/\ud800.jpg"', r'"train/\ud800\u001b[31m.txt"']
    with also_listed(made.storage.url, surrogates) as storage:
        done = made.ingest(storage=storage)
    assert "Skipped 2 objects (name that is no valid text, such as " in done.stderr
    assert_harmless(done.stderr)


def test_names_that_climb_never_become_local_paths(make_world, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    made = make_world(pictures(1, 1))
    climbing = ["../" * 12 + "tmp/climbed.jpg", "..\\" * 12 + "climbed-too.jpg", ".."]
    listed = [json.dumps(f"train/{name}") for name in climbing]
    with also_listed(made.storage.url, listed) as storage:
        done = made.run(storage=storage)
        asked = [asked.path for asked in storage.asked if "alt=media" in asked.path]
    assert done.exit_code == 1 and "2 of 4 images cannot be embedded" in done.stderr
    assert sum("climbed" in path and path.count("/") == 6 for path in asked) == 2
    assert_nothing_outside(tmp_path)
    assert not os.path.exists("/tmp/climbed.jpg")
