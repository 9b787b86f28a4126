"""The commands where nothing is installed, on old Pythons, and while libraries are imported."""

import ast
import os
import shlex
import signal
import subprocess
import sys
import venv

import pytest

from common.program import ROOT
from tests.harness import run, start, wait_for

COMMAND_FILES = (
    *("ingest.py", "ingest_labels.py", "demo.py", "local_forager/__init__.py"),
    *("local_forager/__main__.py", "dataset/__init__.py", "dataset/export.py"),
)
COMMANDS = (["ingest.py"], ["ingest_labels.py"], ["demo.py"], ["-m", "local_forager"])
BEFORE_THE_GUARD = ("common/__init__.py", "common/guard.py", "common/program.py")
OLD = (
    "import runpy, sys; sys.version_info = (3, 9, 1); "
    "sys.argv = ['ingest.py']; runpy.run_path('ingest.py', run_name='__main__')"
)


@pytest.mark.parametrize("file", [*BEFORE_THE_GUARD, *COMMAND_FILES])
def test_old_pythons_can_read_what_comes_before_the_guard(file):
    ast.parse((ROOT / file).read_text(), feature_version=(3, 8))


def test_an_old_python_is_told_so():
    done = run([sys.executable, "-c", OLD], cwd=ROOT)
    done.failed("Python 3.10 or newer is needed, and this is Python 3.9: run `")


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_without_the_packages(command, tmp_path):
    venv.create(tmp_path / "bare", symlinks=True)
    done = run([str(tmp_path / "bare" / "bin" / "python"), *command], cwd=ROOT)
    helps = "make demo" if command == ["demo.py"] else ".venv"
    done.refused("bin/python does not have the package click: run `", helps)
    assert done.stderr.count("\n") == 1


def test_the_advice_leads_to_the_directory_of_the_program(tmp_path):
    venv.create(tmp_path / "bare", symlinks=True)
    python = str(tmp_path / "bare" / "bin" / "python")
    done = run([python, str(ROOT / "demo.py")], cwd=tmp_path)
    done.refused(f"run `cd {shlex.quote(str(ROOT))} && make demo`.")


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_ctrl_c_while_libraries_are_imported(command, tmp_path):
    """A package of the name click, which is imported first, takes for ever."""
    (tmp_path / "click.py").write_text(
        "import pathlib, time\n"
        f"pathlib.Path({str(tmp_path / 'importing')!r}).touch()\n"
        "time.sleep(600)\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    process = start([sys.executable, *command], environment, cwd=ROOT)
    wait_for((tmp_path / "importing").exists)
    process.send_signal(signal.SIGINT)
    out, said = process.communicate()
    assert (process.returncode, out, said) == (130, "", "Interrupted: nothing was begun.\n")


@pytest.mark.parametrize("streams", [">&- 2>err", ">&- 2>&-"])
def test_closed_streams_are_no_error(tmp_path, streams):
    """Nor does a file that is opened later get the number of one."""
    (tmp_path / "err").touch()
    command = f"{sys.executable} {ROOT / 'ingest.py'} --version {streams}"
    assert subprocess.run(["sh", "-c", command], cwd=tmp_path).returncode == 0
    assert (tmp_path / "err").read_text() == ""


@pytest.mark.parametrize(
    ("arguments", "full", "other"), [("--help", 1, 2), ("--version", 1, 2), ("birds", 2, 1)]
)
def test_a_full_disk_is_told_on_the_other_stream(arguments, full, other, tmp_path):
    command = f"{sys.executable} {ROOT / 'ingest.py'} {arguments} {full}>/dev/full {other}>said"
    assert subprocess.run(["sh", "-c", command], cwd=tmp_path).returncode == 1
    assert (tmp_path / "said").read_text() == (
        "Error: No space left on device: free some, or redirect what is printed to another disk.\n"
    )
