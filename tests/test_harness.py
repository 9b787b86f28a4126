"""What the tests start ends with them, however a run of pytest ends."""

import json
import os
import signal
import socket
import subprocess
import sys
from urllib.parse import urlsplit

import pytest

from common.program import ROOT
from testing.servers.guarded import guarded
from testing.servers.processes import LONGEST_S
from tests.harness import is_running, wait_for

SMALL_RUN = """
import json, os, sys, time
from pathlib import Path
import pytest
from tests.harness import start

@pytest.fixture
def started(emulator_url, tmp_path):
    process = start([sys.executable, "-c", "import time; time.sleep(600)"], dict(os.environ))
    found = Path(os.environ["FOUND"])
    found.with_suffix(".new").write_text(json.dumps([emulator_url, process.pid]))
    found.with_suffix(".new").rename(found)

def test_that_hangs(started):
    time.sleep(600)
"""


@pytest.fixture
def small_run(tmp_path):
    """Starts a run of pytest with the real fixtures; returns it, its server and its command."""
    (tmp_path / "test_small.py").write_text(SMALL_RUN)
    found = tmp_path / "found"
    runs = []

    def begin(*options):
        command = [sys.executable, "-m", "pytest", "-q", "-p", "tests.conftest", *options]
        command += ["-c", str(ROOT / "pyproject.toml"), str(tmp_path / "test_small.py")]
        clean = {name: text for name, text in os.environ.items() if "PYTEST" not in name}
        with open(tmp_path / "log", "w") as log:
            run = subprocess.Popen(
                **guarded([*command, "-p", "no:cacheprovider", f"--basetemp={tmp_path / 'base'}"]),
                env={**clean, "FOUND": str(found)},
                cwd=ROOT, stdout=log, stderr=subprocess.STDOUT, start_new_session=True,
            )  # fmt: skip
        runs.append(run)
        wait_for(lambda: found.exists() or run.poll() is not None)
        assert found.exists(), (tmp_path / "log").read_text()
        return run, *json.loads(found.read_text())

    yield begin
    for run in runs:
        run.kill()
        run.wait()


def is_served(url):
    """Whether anything listens at an address."""
    try:
        socket.create_connection((urlsplit(url).hostname, urlsplit(url).port), 10).close()
    except ConnectionRefusedError:
        return False
    return True


@pytest.mark.parametrize(("end", "options"), [(signal.SIGINT, ["-n", "1"]), (signal.SIGKILL, [])])
def test_nothing_is_left_of_a_run_that_was_stopped(small_run, options, end):
    run, server, pid = small_run(*options)
    assert is_served(server) and is_running(pid)
    if end == signal.SIGINT:
        os.killpg(run.pid, end)  # as Ctrl-C in a terminal does
    else:
        run.kill()
    run.wait(LONGEST_S)
    wait_for(lambda: not is_running(pid) and not is_served(server))


def test_guarded_commands_are_the_commands_themselves():
    done = subprocess.run(**guarded(["sh", "-c", "echo $$; exit 3"]), capture_output=True)
    assert done.returncode == 3 and done.stdout.strip().isdigit()
    with subprocess.Popen(**guarded(["sh", "-c", "echo $$; exec sleep 60"]), stdout=-1) as process:
        assert int(process.stdout.readline()) == process.pid
        process.send_signal(signal.SIGINT)
    assert process.returncode == -signal.SIGINT
