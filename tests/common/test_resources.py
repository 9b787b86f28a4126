"""Limits of the process, and what a shortage of them is called."""

import errno
import resource
import subprocess
import sys

import pytest

from common.resources import ShortageError, shortage

RAISE = """
import resource
from common.resources import raise_open_file_limit
print(raise_open_file_limit(), resource.getrlimit(resource.RLIMIT_NOFILE)[0])
"""


@pytest.mark.parametrize(("soft", "hard", "limit"), [(64, 200, 200), (200, 200, 200)])
def test_the_limit_on_open_files_is_raised_to_the_hard_limit(soft, hard, limit):
    done = subprocess.run(
        [sys.executable, "-c", RAISE],
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard)),
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == f"{limit} {limit}\n"


def raised(error, *causes):
    """The error as it is raised from the first cause, that from the second and so on."""
    effect = error
    for cause in causes:
        effect.__cause__ = cause
        effect = cause
    return error


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (OSError(errno.EMFILE, "x"), "Too many open files. This process can open up to"),
        (OSError(errno.ENFILE, "x"), "Too many open files in system. All programs"),
        (OSError(errno.ENOMEM, "x"), "Cannot allocate memory. There is not enough memory"),
        (MemoryError(), "Cannot allocate memory. There is not enough memory"),
        (OSError(errno.EIO, "x"), "Input/output error. A disk of this machine"),
        (raised(ValueError(), KeyError(), OSError(errno.EMFILE, "x")), "Too many open files."),
    ],
)
def test_a_shortage_is_one_sentence_with_the_next_step(error, words):
    found = shortage(error)
    assert isinstance(found, ShortageError)
    assert found.message.startswith(words)
    assert found.message.endswith("the same command then continues where this one stopped.")


@pytest.mark.parametrize("error", [ValueError(), OSError("x"), OSError(errno.ENOENT, "x")])
def test_other_errors_are_no_shortage(error):
    assert shortage(error) is None


def test_pillows_plugins_are_loaded_before_the_first_image():
    """A plugin that is imported late may meet a process without free descriptors."""
    code = "import engine.decode, PIL.Image; print(PIL.Image._initialized)"
    command = [sys.executable, "-c", code]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == "2\n"
