"""A Ray cluster for an ingest: started on this machine, or joined; which embedders fit on it."""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import os
import platform
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import Future
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import gcs
from common.addresses import shown_address
from common.errors import ClusterError
from common.program import copy_program, program_digest

INSTALL = "pip install -r requirements-ray.txt"
CONNECT_TIMEOUT_S = 10
KEY_VARIABLE = "GOOGLE_APPLICATION_CREDENTIALS"
PACKAGES = ("ray", "torch", "numpy", "Pillow")  # whose versions numbers and protocols depend on
HEAD_PORT = 6379  # of a cluster's head node, if the address names none
# Rows per block, at most: with an actor that is killed, a few seconds of work are lost.
GPU_BLOCK_ROWS = 512
CPU_BLOCK_ROWS, ROWS_PER_CPU = 32, 4  # and more per CPU that the actor has
ENVIRONMENT = (  # variables that workers get
    gcs.EMULATOR,
    "FORAGER_RETRY_BASE_S",
    "GOOGLE_CLOUD_PROJECT",
    "SSL_CERT_FILE",
    "REQUESTS_CA_BUNDLE",
    *("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY"),
    *("http_proxy", "https_proxy", "all_proxy", "no_proxy"),
)
# Ray sends no usage statistics and prints no messages of its own.
QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_BACKEND_LOG_LEVEL": "fatal",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_ENABLE_AUTO_CONNECT": "0",  # else a call after the end would start a second cluster
}


def check(address: str | None) -> None:
    """Check that Ray is installed and, if an address is given, that a server listens there.

    Raises:
        ClusterError: what to do.
    """
    if importlib.util.find_spec("ray") is None or importlib.util.find_spec("pyarrow") is None:
        raise ClusterError(f"--engine ray needs Ray, which is not installed: run `{INSTALL}`.")
    if address in (None, "auto", "local"):
        return
    shown = shown_address(address)
    if "://" in address:
        raise ClusterError(
            f"--ray_address {shown} is not auto, HOST or HOST:PORT. Ray's client is not "
            "supported: run this command on a node of the cluster, such as the head node."
        )
    host, _, port = address.rpartition(":") if ":" in address else (address, "", str(HEAD_PORT))
    try:
        socket.create_connection((host, int(port)), CONNECT_TIMEOUT_S).close()
    except (OSError, ValueError, OverflowError) as error:
        # Other errors show the port as it was written, which may be a password.
        reason = (error.strerror or error) if isinstance(error, OSError) else "not HOST:PORT"
        raise ClusterError(
            f"No Ray cluster answers at {shown} ({reason}): use the address that `ray start` "
            "printed on the head node, or auto if this machine is a node of the cluster."
        ) from error


class Pool(NamedTuple):
    """The actors: how many there are, what each reserves, and how much work each gets."""

    size: int
    cpus: float
    gpus: int
    block_rows: int  # at most


class Cluster:
    """Ray, connected; a context manager.

    Workers find the modules of this program in a copy, beside which they run. Nothing else of this
    machine's files is copied.

    Raises:
        ClusterError: there is no cluster at the address.
    """

    def __init__(self, address: str | None, **local: Any) -> None:
        """`local` are settings of ray.init for a cluster on this machine."""
        self._address, self._local = address, local
        self.is_local = address in (None, "local")  # it is one of this machine, started here
        self.reader: Future[None] | None = None  # the reading of results that workers send

    def __enter__(self) -> Cluster:
        os.environ.update(QUIET)
        import ray
        from ray._private import ray_constants

        if self.is_local:
            # Listen on 127.0.0.1 only, as Ray does on macOS and Windows. With
            # `_node_ip_address="127.0.0.1"` it would use the address of the network instead.
            ray_constants.ENABLE_RAY_CLUSTER = False
            os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"  # for the processes it starts
            # Workers get as much of the processors as without Ray, not a niceness of 15.
            os.environ.setdefault("RAY_worker_niceness", "0")
        with tempfile.TemporaryDirectory() as program:
            copy_program(Path(program))
            variables = environment(to_others=not self.is_local)
            try:
                with _silent_stderr():  # Ray's core says there that it is quiet
                    ray.init(
                        address=self._address or "local",
                        runtime_env={"working_dir": program, "env_vars": variables},
                        log_to_driver=False,
                        logging_level=logging.CRITICAL,
                        include_dashboard=False if self.is_local else None,
                        **self._local,
                    )
            except (ConnectionError, ValueError, RuntimeError) as error:
                reason = str(error).split("\n")[0]
                raise ClusterError(
                    f"Ray cannot be reached at {self._address or 'this machine'} ({reason}): start "
                    "it with `ray start --head`, or leave out --ray_address to use this machine."
                ) from error
        logging.getLogger("ray.data").setLevel(logging.CRITICAL)
        return self

    def __exit__(self, *_: object) -> None:
        """Leave the cluster. One that was started here ends.

        Not while a thread reads results, as after Ctrl-C or on a full disk: Ray's core would end
        this process at once.
        """
        import ray

        if self.reader is None or self.reader.done():
            ray.shutdown()
        elif self.is_local:
            _end_children_with_this_process()

    def nodes(self) -> list[dict[str, Any]]:
        """The nodes that are alive, as Ray describes them."""
        import ray

        return [node for node in ray.nodes() if node["Alive"]]

    def pool(self, device: str) -> Pool:
        """The actors that fit: one per GPU, or one per node in a cluster without GPUs.

        Raises:
            ClusterError: this device cannot be used.
        """
        resources = [node["Resources"] for node in self.nodes()]
        gpus = int(sum(node.get("GPU", 0) for node in resources))
        if device not in ("auto", "cuda", "cpu"):
            raise ClusterError(
                f"--device {device!r} is one device: with --engine ray, use auto, cuda (all GPUs "
                "of the cluster) or cpu."
            )
        if device == "cuda" and not gpus:
            raise ClusterError(
                "--device cuda: no node of the Ray cluster has a GPU. Use --device auto."
            )
        if gpus and device != "cpu":
            return Pool(gpus, 0, 1, GPU_BLOCK_ROWS)
        cpus = [node["CPU"] for node in resources if node.get("CPU")]
        if not cpus:
            raise ClusterError(
                "No node of the Ray cluster has a CPU for tasks: start a node with --num-cpus."
            )
        share = min(cpus)
        return Pool(len(cpus), share, 0, int(CPU_BLOCK_ROWS + ROWS_PER_CPU * share))

    def check_versions(self, expected: dict[str, str] | None = None) -> None:
        """Check that every node has the versions of this machine: else numbers could differ.

        Raises:
            ClusterError: which node differs, and in what.
        """
        import ray
        from ray.exceptions import RayError
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        expected = expected or versions()
        task = ray.remote(num_cpus=0)(versions)
        answers = {}
        for node in self.nodes():
            here = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
            answers[node["NodeManagerAddress"]] = task.options(scheduling_strategy=here).remote()
        for host, answer in answers.items():
            try:
                found = ray.get(answer)
            except RayError as error:
                reason = getattr(error, "cause", None) or error
                raise ClusterError(
                    f"The Ray node {host} cannot run this program "
                    f"({type(reason).__name__}: {str(reason).strip().splitlines()[-1]}): run "
                    f"`{INSTALL}` there."
                ) from error
            different = [
                f"{what} {found.get(what)} (here {version})"
                for what, version in expected.items()
                if found.get(what) != version
            ]
            if different:
                raise ClusterError(
                    f"The Ray node {host} has {', '.join(different)}: install the same versions "
                    f"there with `{INSTALL}`."
                )


def versions() -> dict[str, str]:
    """The versions on this machine of everything that the numbers depend on.

    Raises:
        PackageNotFoundError: a package is not installed.
    """
    packages = {package: version(package) for package in PACKAGES}
    return {"Python": platform.python_version(), **packages, "this program": program_digest()}


def environment(*, to_others: bool) -> dict[str, str]:
    """The variables that workers get. Ray shows them in its lists of jobs.

    A key file is named to workers on this machine only: others have no such file.
    """
    variables = {**QUIET, **{name: os.environ[name] for name in ENVIRONMENT if name in os.environ}}
    if not to_others and (path := key_file()):
        variables[KEY_VARIABLE] = str(path)
    return variables


def key_file() -> Path | None:
    """The Google key file in use on this machine. None if there is none, as on a Google machine.

    A machine of Google Cloud has a service account of its own, and so has each of its workers.
    """
    if gcs.emulator_host():
        return None
    if named := os.environ.get(KEY_VARIABLE):
        return Path(named).absolute()
    from google.auth import _cloud_sdk

    default = Path(_cloud_sdk.get_application_default_credentials_path())
    return default if default.is_file() else None


def _end_children_with_this_process() -> None:
    """Let a shell wait until this process has ended, and then end what it started.

    Ray's processes notice that themselves, but its agents first try for 60 s to reach the head.
    """
    import psutil  # Ray brings it

    children = [str(child.pid) for child in psutil.Process().children(recursive=True)]
    closes_at_the_end, _ = os.pipe()
    subprocess.Popen(
        ["sh", "-c", 'read _; kill -9 "$@"', "sh", *children],
        stdin=closes_at_the_end,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,  # Ctrl-C again must not end it
    )
    os.close(closes_at_the_end)


@contextlib.contextmanager
def _silent_stderr() -> Iterator[None]:
    """Drop what this process writes to its standard error, C++ libraries included."""
    sys.stderr.flush()
    kept, nothing = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nothing, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nothing)
