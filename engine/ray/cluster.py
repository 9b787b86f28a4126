"""A Ray cluster for an ingest: started on this machine, or joined; what its workers are given.

Workers get this program, the environment and the credentials by Ray's runtime environment. Weights
go through the object store, and only to those that have no file of the same digest in its place:
a cluster is rarely made with R-50.pkl in its image, and a shared file system saves the transfer.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import shutil
import socket
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import click

import gcs
from common.program import ROOT, program_files
from engine.loading import ModelLoader, ModelOptions
from weights import files

if TYPE_CHECKING:
    from embeddings import Embedder

INSTALL = "pip install -r requirements-ray.txt"
CREDENTIALS = "credentials.json"  # beside the program in the runtime environment
CONNECT_TIMEOUT_S = 10
GCS_PORT = 6379  # of a cluster's head node, if none is named
PASSED_ON = (  # of the environment
    gcs.EMULATOR,
    "FORAGER_RETRY_BASE_S",
    "GOOGLE_CLOUD_PROJECT",
    "SSL_CERT_FILE",
    "REQUESTS_CA_BUNDLE",
    *("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY"),
    *("http_proxy", "https_proxy", "all_proxy", "no_proxy"),
)
# Nothing is reported to Ray's makers, and nothing but this program's messages is printed.
QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_BACKEND_LOG_LEVEL": "fatal",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_ENABLE_AUTO_CONNECT": "0",  # a late call after the end would start a second cluster
}


class ClusterError(click.ClickException):
    """Why there is no cluster to run on, in one sentence."""


def check(address: str | None) -> None:
    """That Ray is installed and, if an address is given, that something listens there.

    Raises:
        ClusterError: what to do.
    """
    if importlib.util.find_spec("ray") is None or importlib.util.find_spec("pyarrow") is None:
        raise ClusterError(f"--engine ray needs Ray Data, which is not installed: {INSTALL}")
    if address in (None, "auto", "local"):
        return
    if "://" in address:
        raise ClusterError(
            f"--ray_address {address!r} is none of auto, HOST and HOST:PORT: run this command on a "
            "node of the cluster, such as its head, not through Ray's client."
        )
    host, _, port = address.rpartition(":") if ":" in address else (address, "", str(GCS_PORT))
    try:
        socket.create_connection((host, int(port)), CONNECT_TIMEOUT_S).close()
    except (OSError, ValueError, OverflowError) as error:
        raise ClusterError(
            f"No Ray cluster answers at {address} ({error}): give the address that `ray start` "
            "printed on the head node, or auto on a node of the cluster."
        ) from error


class Pool(NamedTuple):
    """The embedders: how many, what each takes, and how much each is given at once."""

    size: int
    cpus: float
    gpus: int
    calls: int  # packs in one embedder at once
    pack_images: int
    pack_bytes: int


def cpu_pool(nodes: list[float]) -> Pool:
    """An embedder on each node, given its CPUs: it computes an image on each of them.

    An eighth of the CPUs, one at least, is left to fetching and decoding, which take some 3% of
    the time. Packs are small: what is in a pack when a run is stopped is computed again.
    """
    cpus = min(nodes)
    # Not a whole number: Ray Data joins two stages that take the same into one.
    share = max(0.0, cpus - max(1, cpus // 8) - 0.1)
    return Pool(len(nodes), share, 0, max(2, int(cpus)), pack_images=4, pack_bytes=4 << 20)


def gpu_pool(gpus: int) -> Pool:
    """An embedder for each GPU, with 512 images of 640 by 480: enough of each size for batches."""
    return Pool(gpus, 0.5, 1, calls=16, pack_images=32, pack_bytes=32 << 20)


class Cluster:
    """Ray, connected; a context manager.

    Raises:
        ClusterError: no cluster at the address.
    """

    def __init__(self, address: str | None, **local: Any) -> None:
        """`local` are settings of ray.init for a cluster of our own, for tests and benchmarks."""
        self._address, self._local = address, local
        self.reading: threading.Thread | None = None  # that takes what workers send

    def __enter__(self) -> Cluster:
        os.environ.update(QUIET)
        import logging

        import ray

        with contextlib.ExitStack() as stack:
            self._directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            settings: dict[str, Any] = {
                "runtime_env": runtime_env(self._directory),
                "log_to_driver": False,
                "logging_level": logging.CRITICAL,
            }
            if self.is_local:
                _stay_on_loopback()
                settings |= {"include_dashboard": False, "address": "local", **self._local}
            else:
                settings["address"] = self._address
            try:
                with _silent_stderr():  # Ray's core says that it says nothing
                    ray.init(**settings)
            except (ConnectionError, ValueError, RuntimeError) as error:
                reason = str(error).split("\n")[0]
                raise ClusterError(
                    f"Ray cannot be reached at {self._address or 'this machine'} ({reason}): start "
                    "it with `ray start --head`, or leave --ray_address away to use this machine."
                ) from error
            stack.callback(self._shut_down)
            logging.getLogger("ray.data").setLevel(logging.CRITICAL)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _shut_down(self) -> None:
        """Leave the cluster, and end one of our own.

        Not while a thread waits for results, as after Ctrl-C or on a full disk: Ray's core would
        end the process there and then. Ray ends by itself what such a process leaves.
        """
        import ray

        if self.reading is None or not self.reading.is_alive():
            ray.shutdown()

    @property
    def is_local(self) -> bool:
        return self._address in (None, "local")

    def nodes(self) -> list[dict[str, Any]]:
        """The nodes that are alive, as Ray describes them."""
        import ray

        return [node for node in ray.nodes() if node["Alive"]]

    def pool(self, device: str) -> Pool:
        """The embedders that fit: one a GPU, or one a node where there is none.

        Raises:
            ClusterError: not with this device.
        """
        resources = [node["Resources"] for node in self.nodes()]
        gpus = int(sum(node.get("GPU", 0) for node in resources))
        if device not in ("auto", "cuda", "cpu"):
            raise ClusterError(
                f"--device {device!r} names one device: with --engine ray take auto, cuda (all "
                "GPUs of the cluster) or cpu."
            )
        if device == "cuda" and not gpus:
            raise ClusterError("--device cuda: no node of the Ray cluster has a GPU.")
        if gpus and device != "cpu":
            return gpu_pool(gpus)
        cpus = [node["CPU"] for node in resources if node.get("CPU")]
        if not cpus:
            raise ClusterError("No node of the Ray cluster has a CPU for tasks.")
        return cpu_pool(cpus)

    def cpus(self) -> float:
        """Of all nodes, now."""
        return sum(node["Resources"].get("CPU", 0.0) for node in self.nodes())

    def check_versions(self, expected: dict[str, str] | None = None) -> None:
        """That every node runs what this machine runs: else numbers could differ between rows.

        Raises:
            ClusterError: which node differs, and in what.
        """
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        from engine.ray import workers as ray_stages

        expected = expected or ray_stages.versions()
        task = ray.remote(num_cpus=0)(ray_stages.versions)
        nodes = self.nodes()
        answers = ray.get(
            [
                task.options(
                    scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
                ).remote()
                for node in nodes
            ]
        )
        for node, found in zip(nodes, answers, strict=True):
            different = [
                f"{what} {found.get(what)} (here {version})"
                for what, version in expected.items()
                if found.get(what) != version
            ]
            if different:
                raise ClusterError(
                    f"The Ray node {node['NodeManagerAddress']} has {', '.join(different)}: "
                    "install the same there, with requirements.txt and requirements-ray.txt."
                )


def _stay_on_loopback() -> None:
    """Let a cluster of our own listen on 127.0.0.1 only, as Ray does on macOS and Windows.

    Told `_node_ip_address="127.0.0.1"`, Ray takes the address of the network instead.
    """
    from ray._private import ray_constants

    ray_constants.ENABLE_RAY_CLUSTER = False
    os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"  # the same for the processes it starts


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


def runtime_env(directory: Path) -> dict[str, Any]:
    """Ray's runtime environment: this program's modules, and credentials, copied to `directory`.

    Nothing else of the checkout travels: no weights, no tests, no .git. Credentials travel as a
    file, never in a variable that Ray would show in its lists of jobs.
    """
    for path in program_files():
        (directory / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / path, directory / path)
    env_vars = {name: os.environ[name] for name in PASSED_ON if name in os.environ}
    if (key_file := _credentials_file()) is not None:
        shutil.copy(key_file, directory / CREDENTIALS)
        env_vars["GOOGLE_APPLICATION_CREDENTIALS"] = CREDENTIALS  # workers run beside it
    return {"working_dir": str(directory), "env_vars": {**QUIET, **env_vars}}


def _credentials_file() -> Path | None:
    """The key file in use here, if it is one: on a GCP machine each node has its own account."""
    if gcs.emulator_host():
        return None
    named = os.environ.get("GOOGLE_APPLICATION_CREDENTIALS")
    if named:
        return Path(named)
    from google.auth import _cloud_sdk

    default = Path(_cloud_sdk.get_application_default_credentials_path())
    return default if default.is_file() else None


class WeightFile(NamedTuple):
    """A weights file: where it lies on the driver, its SHA-256, and its content for the others."""

    path: Path
    digest: str
    content: Any  # a Ray object, or None where all workers have the driver's files


def ship(paths: list[Path], *, to_others: bool) -> list[WeightFile]:
    """Make files available to workers; through the object store if these are other machines."""
    import numpy as np
    import ray

    return [
        WeightFile(
            path.absolute(),
            files.digest(path),
            ray.put(np.fromfile(path, np.uint8)) if to_others else None,
        )
        for path in paths
    ]


def on_this_node(file: WeightFile) -> Path:
    """The weights file on the machine of a worker, written there if it is not yet.

    Raises:
        ClusterError: it did not arrive as it was sent.
    """
    if file.path.is_file() and files.digest(file.path) == file.digest:
        return file.path
    import ray

    directory = Path(tempfile.gettempdir(), f"forager-weights-{os.getuid()}", file.digest)
    path = directory / file.path.name
    if path.is_file() and files.digest(path) == file.digest:
        return path
    if file.content is None:
        raise ClusterError(f"{file.path} has changed since the ingest began: start it again.")
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=directory, delete=False) as temporary:
        temporary.write(memoryview(ray.get(file.content)))
    if files.digest(Path(temporary.name)) != file.digest:
        raise ClusterError(f"{path} is damaged on the way to {socket.gethostname()}.")
    os.replace(temporary.name, path)
    return path


class ShippedModels(NamedTuple):
    """What a worker needs to load the models."""

    resnet: WeightFile
    clip: list[WeightFile]  # the files of its directory
    options: ModelOptions

    def load(self) -> Embedder:
        """Load the models on a worker. Raises what Embedder raises."""
        # Ray sets it to the CPUs reserved; the count of the machine is as right as without Ray.
        os.environ.pop("OMP_NUM_THREADS", None)
        resnet = on_this_node(self.resnet)
        clip = _in_one_directory([on_this_node(file) for file in self.clip])
        options = self.options._replace(resnet_weights=resnet, clip_weights=str(clip))
        return ModelLoader(options).load(options.precision)


def _in_one_directory(files: list[Path]) -> Path:
    """A directory that holds these files: that of the first, or one of links to them all."""
    if len({file.parent for file in files}) == 1:
        return files[0].parent
    directory = Path(tempfile.mkdtemp(prefix="forager-clip-"))
    for file in files:
        (directory / file.name).symlink_to(file)
    return directory
