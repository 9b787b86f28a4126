"""Signals end a command with one line and an exit code, also while its event loop waits."""

import contextlib
import signal
import subprocess
import sys

import pytest

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
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 130), (signal.SIGHUP, 129)]
)
def test_a_signal_ends_the_command(number, code):
    with begin() as process:
        process.send_signal(number)
        assert process.communicate() == ("recorded\n", MESSAGE)
        assert process.returncode == code


def test_a_signal_wakes_the_loop():
    with begin() as process:
        assert process.communicate("now\n") == ("recorded\n", MESSAGE)
        assert process.returncode == 130


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
