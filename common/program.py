"""The files of this program: what Ray sends to its workers, and what their versions depend on."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
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


def copy_program(directory: Path) -> None:
    """Copy the modules that a worker runs, and nothing else of the checkout."""
    for path in program_files():
        (directory / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / path, directory / path)


def program_digest() -> str:
    """The first 12 hexadecimal digits of a SHA-256 over these modules."""
    hashed = hashlib.sha256()
    for path in program_files():
        hashed.update(str(path).encode() + (ROOT / path).read_bytes())
    return hashed.hexdigest()[:12]


def program_version() -> str:
    """The commit of this checkout, if it is one, and the digest of these modules."""
    digest = f"program {program_digest()}"
    if not (ROOT / ".git").exists():  # git would find a repository around it
        return digest
    command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--exclude=*"]
    try:
        said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):  # git is not installed, or not allowed here
        return digest
    return f"commit {said.strip()}, {digest}"
