"""Runs a script of renames with a gcloud that writes down what it is told."""

import os
import subprocess
from pathlib import Path


def renamed_by(command: str, directory: Path) -> list[tuple[str, str]]:
    """The old and new names, sorted, that the script which `command` runs gives to gcloud."""
    programs = directory / "programs"
    programs.mkdir()
    gcloud, told = programs / "gcloud", programs / "told"
    gcloud.write_text(f"#!/bin/sh\nprintf '%s\\0' \"$@\" >>'{told}'\n")  # in one write
    gcloud.chmod(0o755)
    path = f"{programs}{os.pathsep}{os.environ['PATH']}"
    subprocess.run(["bash", "-c", command], check=True, cwd=directory, env={"PATH": path})
    words = told.read_text().split("\0")[:-1]
    calls = [words[start : start + 5] for start in range(0, len(words), 5)]
    assert all(call[:3] == ["storage", "mv", "--no-clobber"] for call in calls)
    return sorted((old, new) for *_, old, new in calls)
