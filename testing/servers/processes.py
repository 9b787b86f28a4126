"""Servers in processes of their own: the storage emulator and the local Forager.

They end with the process that started them.
"""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from common.program import ROOT
from testing.servers.guarded import guarded

LONGEST_S = 200  # the longest wait for anything; on a loaded machine everything is slow
STOP_TIMEOUT_S = 10
ADDRESS = re.compile(r"http://[\d.]+:\d+")


class Service:
    """A server in a process of its own; a context manager.

    The command prints the address that it listens on; everything it prints goes to the log file.

    Raises:
        RuntimeError: it ended, or printed no address within LONGEST_S.
    """

    def __init__(
        self, command: Sequence[str], log: Path, environment: dict[str, str] | None = None
    ) -> None:
        self.command = command
        with open(log, "w") as output:
            self.process = subprocess.Popen(
                **guarded(command),
                stdout=output,
                stderr=subprocess.STDOUT,
                cwd=ROOT,
                env=environment,
            )
        try:
            self.url = self._address(log)
        except BaseException:
            self.stop()
            raise

    def _address(self, log: Path) -> str:
        deadline = time.monotonic() + LONGEST_S
        while time.monotonic() < deadline and self.process.poll() is None:
            if found := ADDRESS.search(log.read_text()):
                return found[0]
            time.sleep(0.02)
        raise RuntimeError(f"{shlex.join(self.command)} did not start:\n{log.read_text()}")

    def stop(self) -> None:
        """End the process and wait for it."""
        self.process.terminate()
        try:
            self.process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def __enter__(self) -> Service:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


def storage_emulator(
    log: Path, port: int = 0, *, host: str = "127.0.0.1", enter: Sequence[str] = ()
) -> Service:
    """An empty gcp-storage-emulator in memory; port 0 takes a free one.

    `enter` is a command that runs another one, such as nsenter.
    """
    return Service([*enter, sys.executable, "-m", "testing.servers.emulator", str(port), host], log)


def local_forager(
    data_dir: Path,
    log: Path,
    *options: str,
    port: int = 0,
    environment: dict[str, str] | None = None,
    enter: Sequence[str] = (),
) -> Service:
    """A local Forager; `environment` has STORAGE_EMULATOR_HOST, or this process's has."""
    command = [*enter, sys.executable, "-m", "local_forager", "--port", str(port)]
    return Service([*command, "--data_dir", str(data_dir), *options], log, environment)
