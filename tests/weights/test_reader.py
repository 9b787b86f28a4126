"""The weights as another process reads them."""

import os
import signal
import subprocess
import sys
import time

import click
import numpy as np
import pytest

from weights import files, resnet50
from weights import reader as weights_reader
from weights.files import WeightsError
from weights.reader import WeightsReader

START_ONE = """
import sys, time
from weights.reader import WeightsReader
reader = WeightsReader(*sys.argv[1:])
print(reader._process.pid, flush=True)
time.sleep(60)
"""


def test_the_arrays_and_digests_are_those_of_the_files(weights_dir):
    paths = weights_dir / "R-50.pkl", weights_dir / "clip-vit-base-patch32"
    expected = resnet50.read_resnet_weights(paths[0])
    with WeightsReader(paths[0], str(paths[1])) as reader:
        assert reader.clip_directory() == paths[1]
        read = reader.resnet_arrays()
        assert reader.digests() == tuple(map(files.digest, paths))
    assert list(read) == list(expected)
    for name, array in expected.items():
        np.testing.assert_array_equal(read[name], array)


def test_what_is_wrong_with_either_is_said_in_the_same_words(tmp_path):
    with WeightsReader(tmp_path / "R-50.pkl", str(tmp_path)) as reader:
        with pytest.raises(WeightsError, match="has no config.json"):
            reader.clip_directory()
        with pytest.raises(WeightsError, match=r"R-50.pkl is missing: get it with `curl"):
            reader.resnet_arrays()


def test_a_killed_reader_is_an_error_that_says_so(weights_dir):
    files = weights_dir / "R-50.pkl", str(weights_dir / "clip-vit-base-patch32")
    with WeightsReader(*files) as reader:
        reader.clip_directory()
        os.kill(reader._process.pid, signal.SIGKILL)
        with pytest.raises(click.ClickException, match="ended with code -9 before it was done"):
            reader.resnet_arrays()


def test_it_ends_with_the_process_that_started_it(weights_dir):
    """However that one ends: here it is killed while the reader waits to hand over the arrays."""
    files = str(weights_dir / "R-50.pkl"), str(weights_dir / "clip-vit-base-patch32")
    root = str(weights_reader.ROOT)
    command = [sys.executable, "-c", START_ONE, *files]
    parent = subprocess.Popen(command, stdout=subprocess.PIPE, cwd=root)
    reader = int(parent.stdout.readline())
    parent.kill()
    parent.communicate()
    deadline = time.monotonic() + 20
    while is_running(reader) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not is_running(reader)


def is_running(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    stat = f"/proc/{pid}/stat"  # an ended child of a killed parent may wait for init to take note
    if not os.path.exists(stat):
        return os.path.exists("/proc") is False
    with open(stat) as file:
        return file.read().rpartition(")")[2].split()[0] != "Z"
