"""Commands that end when the process that started them ends, even by kill -9.

    subprocess.Popen(**guarded(command), env=environment)

The command has the process id that Popen returns, and gets its signals itself. Beside it runs a
small watcher. It holds the reading end of a pipe whose writing end only the starter holds: when the
starter ends, the system closes the pipe, and the watcher kills the command.
"""

import functools
import os
import select
import signal
import sys
from collections.abc import Sequence
from typing import Any


def guarded(command: Sequence[str]) -> dict[str, Any]:
    """Arguments of subprocess.Popen and subprocess.run: the command ends with this process."""
    lifeline, _ = _pipe()
    launcher = [sys.executable, "-I", "-S", os.path.abspath(__file__), str(lifeline)]
    return {"args": [*launcher, *command], "pass_fds": (lifeline,)}


@functools.cache
def _pipe() -> tuple[int, int]:
    """The pipe of this process; it stays open until the process ends."""
    return os.pipe()


def main(lifeline: int, command: list[str]) -> None:
    """Start the watcher and become the command."""
    pid = os.getpid()
    running, open_while_running = os.pipe()
    if os.fork() == 0:
        os.close(open_while_running)
        _watch(pid, lifeline, running)
        os._exit(0)
    os.close(running)
    os.close(lifeline)
    os.set_inheritable(open_while_running, True)
    os.execvp(command[0], command)


def _watch(pid: int, lifeline: int, running: int) -> None:
    """Wait until the command or its starter ends; in the second case kill the command."""
    os.setsid()  # a Ctrl-C in the terminal is not for the watcher
    for stream in (0, 1, 2):  # whoever reads the command's output waits for the command alone
        os.close(stream)
    ended, _, _ = select.select([lifeline, running], [], [])
    if running not in ended:
        os.kill(pid, signal.SIGKILL)


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2:])
