"""Limits of the process, and what a shortage of them is called."""

import errno
import resource
import subprocess
import sys

import pytest

from common.errors import ShortageError
from common.process import shortage

RAISE = """
import resource
from common.process import raise_open_file_limit
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


FILES = (
    "Too many open files. This process can open up to {limit:,}: raise the limit, such as with "
    "`ulimit -n 65536`;"
)
MEMORY = "Cannot allocate memory. There is not enough memory: free some, or lower --decode_workers;"


@pytest.mark.parametrize(
    ("error", "advice"),
    [
        (OSError(errno.EMFILE, "x"), FILES),
        (raised(ValueError(), KeyError(), OSError(errno.EMFILE, "x")), FILES),
        (OSError(errno.ENOMEM, "x"), MEMORY),
        (MemoryError(), MEMORY),
        (
            OSError(errno.ENFILE, "x"),
            "Too many open files in system. All programs on this machine together have too many "
            "files open: end some;",
        ),
        (
            OSError(errno.EIO, "x"),
            "Input/output error. A disk of this machine cannot be read or written: repair it;",
        ),
        (
            RuntimeError("can't start new thread"),
            "This process cannot start more threads: raise the limit, such as with `ulimit -u`;",
        ),
    ],
)
def test_a_shortage_is_one_sentence_with_the_next_step(error, advice):
    found = shortage(error)
    assert isinstance(found, ShortageError)
    advice = advice.format(limit=resource.getrlimit(resource.RLIMIT_NOFILE)[0])
    assert found.message == f"{advice} the same command then continues where this one stopped."


@pytest.mark.parametrize("error", [ValueError(), OSError("x"), OSError(errno.ENOENT, "x")])
def test_other_errors_are_no_shortage(error):
    assert shortage(error) is None


def test_pillows_plugins_are_loaded_before_the_first_image():
    """A plugin that is imported late may meet a process without free descriptors."""
    code = "import engine.decode, PIL.Image; print(PIL.Image._initialized)"
    command = [sys.executable, "-c", code]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == "2\n"
