"""Hosts on this machine: each has a network of its own, a disk of its own, and processes.

Everything is in namespaces below one process. When that process ends, as with the run of the tests
at the latest, the kernel ends all processes in them and removes the networks and the disks.
"""

import ctypes
import math
import os
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from common.program import MODULES, ROOT, program_files
from testing.servers.guarded import guarded
from tests.harness import wait_for
from tests.listeners import below

NETWORK = "192.0.2"  # set aside for documentation, by RFC 5737
BRIDGE = f"{NETWORK}.1"
CLONE_NEWNET = 0x40000000
INIT = "sleep infinity & wait"  # ends what its children leave behind, as the first process must


def reason_to_skip():
    """Why hosts cannot be made here, or None."""
    missing = [tool for tool in ("ip", "tc", "unshare", "nsenter") if not shutil.which(tool)]
    if missing:
        return f"{' and '.join(missing)} missing: install iproute2 and util-linux"
    tried = subprocess.run(
        ["unshare", "--net", "--mount", "--pid", "--fork", "ip", "link", "add", "type", "bridge"],
        capture_output=True,
        text=True,
    )
    return f"no network namespaces here ({tried.stderr.strip()})" if tried.returncode else None


class Host:
    """A process in namespaces of its own; commands run beside it."""

    def __init__(self, hosts, number):
        self.address = f"{NETWORK}.{10 + number}"
        self._hosts, self._link = hosts, f"host{number}"
        command = [*hosts.enter("net", "mnt"), "unshare", "--net", "--mount", "sleep", "infinity"]
        self._process = subprocess.Popen(**guarded(command))
        hosts.started.append(self._process)
        wait_for(lambda: self._command() == "sleep infinity", math.inf)
        ends = f"{self._link} type veth peer name eth0 netns {self._process.pid}"
        hosts.run("ip", "link", "add", *ends.split())
        hosts.run("ip", "link", "set", self._link, "master", "bridge", "up")
        self.run("ip", "link", "set", "lo", "up")
        self.run("ip", "address", "add", f"{self.address}/24", "dev", "eth0")
        self.run("ip", "link", "set", "eth0", "up")
        self.run("ip", "route", "add", "default", "via", BRIDGE)  # Ray looks up its address so
        self.run("mount", "-t", "tmpfs", "none", str(hosts.disk))

    def _command(self):
        cmdline = Path(f"/proc/{self._process.pid}/cmdline").read_bytes()
        return cmdline.replace(b"\0", b" ").decode().strip()

    def command(self, *command):
        """The command that runs a command on this host."""
        own = f"/proc/{self._process.pid}/ns"
        enter = [f"--net={own}/net", f"--mount={own}/mnt", f"--pid={self._hosts.namespace('pid')}"]
        return ["nsenter", *enter, "--", *command]

    def run(self, *command, env=None):
        """Run a command to its end; it must succeed."""
        return _run(self.command(*command), env)

    def path(self, path):
        """A file of this host, as this process can open it."""
        return Path(f"/proc/{self._process.pid}/root{path}")

    def cut(self):
        """Take the cable out."""
        self._hosts.run("ip", "link", "set", self._link, "down")

    def join(self):
        """Plug the cable in again."""
        self._hosts.run("ip", "link", "set", self._link, "up")

    def slow(self):
        """Delay what this host sends; where the kernel cannot, limit its rate."""
        add = ["tc", "qdisc", "add", "dev", "eth0", "root"]
        tried = subprocess.run(self.command(*add, "netem", "delay", "20ms"), capture_output=True)
        if tried.returncode:
            self.run(*add, *["tbf", "rate", "20mbit", "burst", "64kb", "latency", "400ms"])

    def hide_program(self):
        """Let no module of the checkout be importable on this host."""
        for folder in {path.parts[0] for path in program_files()} - set(MODULES):
            self.run("mount", "-t", "tmpfs", "none", str(ROOT / folder))
        for module in MODULES:
            self.run("mount", "--bind", "/dev/null", str(ROOT / module))


class Hosts:
    """A bridge between hosts; a context manager. `disk` is a directory that differs on each."""

    def __enter__(self):
        self.disk = Path(tempfile.mkdtemp(prefix="host-", dir="/tmp"))  # for sockets: short
        unshare = ["unshare", "--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]
        self._outer = subprocess.Popen(**guarded([*unshare, "sh", "-c", INIT]))
        wait_for(lambda: below(self._outer.pid, "sh -c"), math.inf)
        (self._pid,) = below(self._outer.pid, "sh -c")
        self.started = [self._outer]
        self._threads = ThreadPoolExecutor(1, initializer=self._enter_network)
        self.run("ip", "link", "set", "lo", "up")
        self.run("ip", "link", "add", "bridge", "type", "bridge")
        self.run("ip", "address", "add", f"{BRIDGE}/24", "dev", "bridge")
        self.run("ip", "link", "set", "bridge", "up")
        return self

    def __exit__(self, *_):
        self._threads.shutdown()
        for process in reversed(self.started):
            process.kill()  # the last of these ends all others
            process.wait()
        wait_for(lambda: not Path(f"/proc/{self._pid}").exists(), math.inf)
        shutil.rmtree(self.disk)

    def host(self, number):
        """A new host, connected to the bridge."""
        return Host(self, number)

    def namespace(self, kind):
        return f"/proc/{self._pid}/ns/{kind}"

    def enter(self, *kinds):
        names = {"net": "--net", "mnt": "--mount", "pid": "--pid"}
        options = (f"{names[kind]}={self.namespace(kind)}" for kind in kinds)
        return ["nsenter", *options, f"--wd={ROOT}", "--"]

    def run(self, *command):
        """Run a command beside the bridge; it must succeed."""
        return _run([*self.enter("net"), *command], None)

    def call(self, function, *args):
        """What a function returns in a thread whose connections begin at the bridge."""
        return self._threads.submit(function, *args).result()

    def processes(self):
        """All processes on all hosts, as this process numbers them."""
        namespace = os.readlink(self.namespace("pid"))
        found = []
        for directory in Path("/proc").glob("[0-9]*"):
            try:
                if os.readlink(directory / "ns" / "pid") == namespace:
                    found.append(int(directory.name))
            except OSError:
                continue
        return found

    def _enter_network(self):
        with open(self.namespace("net")) as file:
            libc = ctypes.CDLL(None, use_errno=True)
            if libc.setns(file.fileno(), CLONE_NEWNET):
                raise OSError(ctypes.get_errno(), "setns")


def _run(command, env):
    done = subprocess.run(command, capture_output=True, text=True, env=env)
    assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
    return done.stdout


PYTHON = sys.executable
