"""Which processes run below one, and on which addresses they listen, from Linux's /proc."""

import contextlib
import ipaddress
import os
import re
from pathlib import Path
from typing import NamedTuple

LISTEN = "0A"


class Listener(NamedTuple):
    """A process that accepts TCP connections."""

    address: str
    port: int
    command: str

    @property
    def is_loopback(self) -> bool:
        address = ipaddress.ip_address(self.address)
        return (getattr(address, "ipv4_mapped", None) or address).is_loopback


def below(pid: int, title: str = "") -> list[int]:
    """The processes that descend from one, or those of them whose command begins with `title`."""
    parents, titles = {}, {}
    for directory in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            stat = (directory / "stat").read_text().rpartition(")")[2].split()
            parents[int(directory.name)] = int(stat[1])
            titles[int(directory.name)] = command_of(int(directory.name))
    found = []
    for process, command in titles.items():
        ancestor = parents[process]
        while ancestor not in (0, pid):
            ancestor = parents.get(ancestor, 0)
        if ancestor == pid and command.startswith(title):
            found.append(process)
    return found


def listeners(pids: list[int]) -> list[Listener]:
    """Where these processes listen. They may be in other network namespaces."""
    found = set()
    for pid in pids:
        directory = Path(f"/proc/{pid}")
        sockets = _open_files(directory)
        with contextlib.suppress(OSError):
            for name in ("tcp", "tcp6"):
                for line in (directory / "net" / name).read_text().splitlines()[1:]:
                    fields = line.split()
                    if fields[3] == LISTEN and f"socket:[{fields[9]}]" in sockets:
                        address, port = _address(fields[1])
                        found.add(Listener(address, port, command_of(pid)))
    return sorted(found)


def _open_files(directory: Path) -> set[str]:
    """What the file descriptors of a process refer to; some close while they are read."""
    found = set()
    with contextlib.suppress(OSError):
        for link in (directory / "fd").iterdir():
            with contextlib.suppress(OSError):
                found.add(os.readlink(link))
    return found


def _address(text: str) -> tuple[str, int]:
    """An address as the kernel prints it: words of four bytes in the byte order of the machine."""
    digits, port = text.split(":")
    words = [int(word, 16).to_bytes(4, "little") for word in re.findall(".{8}", digits)]
    return str(ipaddress.ip_address(b"".join(words))), int(port, 16)


def command_of(pid: int) -> str:
    """The words of a process's command; "" if it has ended."""
    with contextlib.suppress(OSError):
        words = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ")
        return words.decode(errors="replace").strip()
    return ""
