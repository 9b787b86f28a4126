"""What each command does before it imports anything else. Python 3.8 can read this file.

It ends the command with one sentence on a Python that is too old, and where the packages are not
installed. Ctrl-C while libraries are imported ends it with one line.
"""

from __future__ import annotations

# These are quick; the functions import what takes longer, once Ctrl-C has its handler.
import os
import signal
import sys

OLDEST = (3, 10)  # the first Python that runs the rest
NEWEST_MINOR = 20  # of the Pythons that are looked for
INTERRUPTED = 130  # the exit code that a shell gives after Ctrl-C
PACKAGES = ("click", "tqdm", "aiohttp", "numpy", "google_crc32c", "torch")  # of requirements.txt
DEMO_PACKAGES = (*PACKAGES, "gcp_storage_emulator", "skimage")


def guard(packages: tuple[str, ...] = PACKAGES, install: str | None = None) -> None:
    """End the process unless this Python is new enough and has these packages.

    `install` is a command that does all that helps. Call this only where the command is the
    process.
    """
    _open_standard_streams()
    if signal.getsignal(signal.SIGINT) == signal.default_int_handler:
        signal.signal(signal.SIGINT, _leave_interrupted)
    if problem := _problem(packages):
        then = "" if install else ", then the same command"
        sys.stderr.write(f"Error: {problem}: run `{_advice(install)}`{then}.\n")
        sys.exit(1)


def imports_are_done() -> None:
    """Let Ctrl-C raise KeyboardInterrupt again."""
    if signal.getsignal(signal.SIGINT) is _leave_interrupted:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _problem(packages: tuple[str, ...]) -> str | None:
    import importlib.util

    if sys.version_info < OLDEST:
        needed, found = (".".join(map(str, v[:2])) for v in (OLDEST, sys.version_info))
        return f"Python {needed} or newer is needed, and this is Python {found}"
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    return f"{sys.executable} does not have the package {missing[0]}" if missing else None


def _advice(install: str | None) -> str:
    """The command that helps; by default it makes a virtual environment, or activates it."""
    import shlex
    import shutil
    from pathlib import Path

    from common.program import ROOT

    venv = ROOT / ".venv"
    inside = "" if Path.cwd() == ROOT else f"cd {shlex.quote(str(ROOT))} && "
    if install:
        return inside + install
    if Path(sys.prefix) == venv:
        return f"{inside}pip install -r requirements.txt"
    if os.path.exists(venv / "bin" / "python"):  # False where it may not be read
        return f". {shlex.quote(os.path.relpath(venv))}/bin/activate"
    python = "python3"
    if sys.version_info < OLDEST:
        names = [f"python3.{minor}" for minor in range(NEWEST_MINOR, OLDEST[1] - 1, -1)]
        python = next(filter(shutil.which, names), "python3.10")
    make = f"{python} -m venv .venv && . .venv/bin/activate"
    return f"{inside}{make} && pip install -r requirements.txt"


def _open_standard_streams() -> None:
    """Open the null device for each standard stream that was closed, as by `>&-`.

    The next file that is opened would otherwise get its number, and what is printed.
    """
    for number, (name, mode) in enumerate((("stdin", "r"), ("stdout", "w"), ("stderr", "w"))):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest free number, which is this one
            setattr(sys, name, open(number, mode, closefd=False))  # noqa: SIM115


def _leave_interrupted(number: int, frame: object) -> None:
    os.write(2, b"Interrupted: nothing was begun.\n")
    os._exit(INTERRUPTED)
