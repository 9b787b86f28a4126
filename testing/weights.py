"""Seeded random weights in the published formats, written once per checkout."""

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

from common.program import ROOT

MAKE_WEIGHTS = Path(__file__).with_name("make_weights.py")


def seeded_weights() -> Path:
    """A directory with R-50.pkl and clip-vit-base-patch32/, of seeded random numbers."""
    digest = hashlib.sha256(MAKE_WEIGHTS.read_bytes()).hexdigest()[:12]
    directory = ROOT / ".cache" / f"weights-{digest}"
    if not directory.exists():
        making = directory.with_name(f"{directory.name}-{os.getpid()}")
        subprocess.run([sys.executable, str(MAKE_WEIGHTS), str(making)], check=True)
        try:
            os.replace(making, directory)
        except OSError:  # another process was faster
            shutil.rmtree(making)
    return directory
