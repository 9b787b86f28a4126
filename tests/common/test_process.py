"""Signals end a command with one line and an exit code; a shortage has its own sentence."""

import contextlib
import errno
import resource
import signal
import subprocess
import sys

import pytest

from common.errors import ShortageError
from common.process import shortage
from common.program import ROOT
from testing.servers.guarded import guarded

PROGRAM = """
import asyncio, signal, sys, threading
from common.process import until_interrupted

def interrupt_another_thread():
    if sys.stdin.readline():
        signal.pthread_kill(threading.get_ident(), signal.SIGINT)  # does not end the loop's wait

async def run():
    threading.Thread(target=interrupt_another_thread, daemon=True).start()
    print("begun", flush=True)
    try:
        await asyncio.sleep(3600)
    finally:
        print("recorded", flush=True)
        if {stays}:
            threading.Event().wait()

asyncio.run(until_interrupted(run()))
"""
MESSAGE = "Interrupted: the same command continues where this one stopped.\n"


@contextlib.contextmanager
def begin(*prefix, stays=False):
    """The program, under way; it is killed at the end, in case that it has not ended."""
    with subprocess.Popen(
        **guarded([*prefix, sys.executable, "-c", PROGRAM.format(stays=stays)]),
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            assert process.stdout.readline() == "begun\n"
            yield process
        finally:
            process.kill()


@pytest.mark.parametrize(
    ("number", "code"),
    [(signal.SIGINT, 130), (signal.SIGTERM, 130), (signal.SIGHUP, 129), ("in a thread", 130)],
)
def test_a_signal_ends_the_command(number, code):
    with begin() as process:
        if number != "in a thread":
            process.send_signal(number)
        asked = "now\n" if number == "in a thread" else None
        assert process.communicate(asked) == ("recorded\n", MESSAGE)
        assert process.returncode == code


def test_a_second_signal_does_not_wait_for_the_record():
    with begin(stays=True) as process:
        process.send_signal(signal.SIGTERM)
        assert process.stdout.readline() == "recorded\n"
        process.send_signal(signal.SIGTERM)
        assert process.communicate()[1] == MESSAGE
        assert process.returncode == 130


def test_a_closed_terminal_does_not_end_a_command_under_nohup():
    with begin("nohup") as process:
        process.send_signal(signal.SIGHUP)
        process.send_signal(signal.SIGTERM)
        process.communicate()
        assert process.returncode == 130


def test_a_closed_standard_error():
    with begin() as process:
        process.stderr.close()
        process.send_signal(signal.SIGHUP)
        process.stdout.read()
        assert process.wait() == 129


@pytest.mark.parametrize("soft", [64, 200])
def test_the_limit_on_open_files_is_raised_to_the_hard_limit(soft):
    code = "from common.process import *; raise_open_file_limit(); "
    code += "print(resource.getrlimit(resource.RLIMIT_NOFILE)[0])"
    done = subprocess.run(
        [sys.executable, "-c", code],
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (soft, 200)),
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "200\n"


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
        (OSError(errno.EMFILE, "x"), "Too many open files. This process can open up to {limit:,}:"),
        (raised(ValueError(), KeyError(), OSError(errno.EMFILE, "x")), "Too many open files. This"),
        (OSError(errno.ENFILE, "x"), "Too many open files in system. All programs"),
        (OSError(errno.ENOMEM, "x"), "Cannot allocate memory. There is not enough memory: free"),
        (MemoryError(), "Cannot allocate memory. There is not enough memory: free"),
        (OSError(errno.EIO, "x"), "Input/output error. A disk of this machine cannot be read"),
        (RuntimeError("can't start new thread"), "This process cannot start more threads: raise"),
    ],
)
def test_a_shortage_is_one_sentence_with_the_next_step(error, words):
    found = shortage(error)
    assert isinstance(found, ShortageError)
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    assert found.message.startswith(words.format(limit=limit))
    assert found.message.endswith("; the same command then continues where this one stopped.")


@pytest.mark.parametrize("error", [ValueError(), OSError("x"), OSError(errno.ENOENT, "x")])
def test_other_errors_are_no_shortage(error):
    assert shortage(error) is None


def test_pillows_plugins_are_loaded_before_the_first_image():
    """A plugin that is imported late may meet a process without free descriptors."""
    code = "import engine.decode, PIL.Image; print(PIL.Image._initialized)"
    command = [sys.executable, "-c", code]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == "2\n"
