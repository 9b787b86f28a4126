"""What both commands print in whole runs, word by word: tests/commands/transcripts/*.txt.

Times, sizes, ids and addresses have placeholders. After a change of messages, write them anew, and
read the difference:

    WRITE_TRANSCRIPTS=1 make test TEST_FLAGS=tests/commands/test_transcripts.py
"""

import json
import os
import re
from pathlib import Path

import ingest_labels
from tests.harness import invoked

TRANSCRIPTS = Path(__file__).with_name("transcripts")
PLACEHOLDERS = (
    (r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", "<id>"),
    (r"(\d+ (h|min) )*\d[\d.,]* s\b", "<n> s"),
    (r"\d[\d.,]* (images/s|bytes|kB|MB|GB)\b", r"<n> \1"),
    (r"[^\n]*\r|[^\n]*%\|[^\n]*\n", ""),  # progress bars
    (r"\d+%", "<n>%"),
    (r"(?m)^(embedding .* )[\d.,]+$", r"\1<n>"),  # images/s
    (r"(?m)^(Limited by|Longest step)\b.*\n", ""),  # which one is chance
    (r" {2,}", "  "),  # widths of columns
)


def compare(name, said, **placeholders):
    """The text is the transcript of this name, or is written in its place."""
    for placeholder, value in placeholders.items():
        said = said.replace(value, f"<{placeholder}>")
    for pattern, placeholder in PLACEHOLDERS:
        said = re.sub(pattern, placeholder, said)
    path = TRANSCRIPTS / f"{name}.txt"
    if "WRITE_TRANSCRIPTS" in os.environ:
        path.write_text(said)
    assert said == path.read_text()


def shown(command, result):
    streams = f"--- stdout\n{result.stdout}--- stderr\n{result.stderr}"
    return f"$ {command}\n{streams}--- exit code {result.exit_code}\n\n"


def test_ingest(world, fast_models):
    """A dry run, a run that stops at a bad image, one that starts over and skips it, a repeat."""
    world.put("t/a.jpg", "t/b.png", "v/c.jpg", **{"t/D.JPG": b"x", "t/bad.jpg": b"no image"})
    runs = ["--dry_run"], [], ["--restart", "--skip_bad_images"], []
    said = [shown(" ".join(["ingest.py", *options]), world.run(*options)) for options in runs]
    names = {"images": world.images, "bucket": world.index, "dataset": world.name}
    compare("ingest", "".join(said), **names, server=world.server)


def test_ingest_labels(world, fast_models):
    """A dry run, a run with a mistake in the file, a run, and a repeat."""
    world.put("t/a.jpg", "t/b.png", "v/c.jpg")
    world.ingest()
    labels = {
        "t/a.jpg": ["cat", {"category": "dog", "value": "NEGATIVE"}],
        "c.jpg": ["cat", {"category": "nose", "is_box": True, "x1": 1, "y1": 2, "x2": 9, "y2": 9}],
    }
    Path("labels.json").write_text(json.dumps(labels))
    Path("wrong.json").write_text(json.dumps({**labels, "t/none.jpg": ["cat"]}))
    said = []
    for file, *options in (
        *(("labels.json", "--dry_run"), ("wrong.json",), ("labels.json",), ("labels.json",)),
    ):
        arguments = [world.name, file, "--user", "ann@example.org", *options]
        env = {"SERVER_URL": world.server, "FORAGER_BUCKET": world.index}
        result = invoked(ingest_labels.main, arguments, env=env)
        said.append(shown(" ".join(["ingest_labels.py", file, *options]), result))
    names = {"images": world.images, "bucket": world.index, "dataset": world.name}
    compare("ingest_labels", "".join(said), **names, server=world.server)
