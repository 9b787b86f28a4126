"""Each benchmark that the documents show, with as little work as it takes."""

import subprocess
import sys

import pytest

from common.program import ROOT
from testing.browser import MISSING, chromium_path
from tests.harness import clean_environment

SMALL = {
    "end_to_end": "--images 4 --size 64 48 --runs 1",
    "collection.columns": "--images 1000 --runs 1",
    "collection.labels": "--images 1000 --runs 1",
    "collection.listing": "--names 3000 --page_ms 1 --runs 1",
    "model": "--sizes 64x48 --images 2 --runs 1",
    "page.neighbours": "--rows 2000 --queries 2",
    "page.frames": "--rows 300",
    "page.subsets": "--rows 5000 --count 20",
    "pipeline": "--megapixels 2 --runs 1",
    "ray_engine": "--rows 300 --seconds 0.01 --runs 1",
    "collection.scale": "--few 100 --many 200 --names 2000 --reused 200 --runs 1",
    "schedule": "--images 500",
    "start": "--runs 1",
    "storage": "--objects 20 --megabytes 1 --runs 1",
    "trial": "--images 20 --trial 10 --runs 1",
}


@pytest.mark.soak
@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", SMALL)
def test_a_benchmark_runs(name, tmp_path):
    if name == "page.frames" and chromium_path() is None:
        pytest.skip(MISSING)
    if name == "ray_engine":
        pytest.importorskip("ray", reason="Ray is not installed")
    command = [sys.executable, "-m", f"bench.{name}", *SMALL[name].split()]
    environment = {**clean_environment(), "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip(), "it prints no figures"
