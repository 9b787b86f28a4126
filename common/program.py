"""The files of this program: what Ray sends to its workers, and what their versions depend on."""

from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
MODULES = ("gcs.py", "embeddings.py")
FOLDERS = ("common", "storage", "weights", "models", "dataset", "engine")


def program_files() -> Iterator[Path]:
    """The modules that a worker runs, relative to ROOT, in a fixed order."""
    yield from map(Path, MODULES)
    for folder in FOLDERS:
        for path in sorted((ROOT / folder).rglob("*.py")):
            yield path.relative_to(ROOT)
