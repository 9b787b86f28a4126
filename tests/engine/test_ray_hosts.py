"""A Ray cluster of three hosts: a head, which runs the command, and two workers.

The workers have no weights, no key file and no checkout. Nothing here waits for a time: on a busy
machine a cluster takes minutes to start, and the timeout of pytest is the only one.
"""

import importlib.metadata
import io
import json
import math
import os
import re
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace

import aiohttp
import numpy as np
import pytest
from PIL import Image

pytest.importorskip("ray", reason="Ray is not installed: pip install -r requirements-ray.txt")

from dataset.arrays import DIMENSIONS
from testing.embedders import embedding_of
from testing.servers.processes import local_forager, storage_emulator
from tests.engine.hosts import BRIDGE, PYTHON, Hosts, reason_to_skip
from tests.engine.ray_ingest import write_weights
from tests.harness import Emulated, World, clean_environment, ended, pictures, start, wait_for
from tests.listeners import listeners

pytestmark = [
    pytest.mark.ray,
    pytest.mark.skipif(bool(reason_to_skip()), reason=str(reason_to_skip())),
]

SECRET = "a-refresh-token-that-no-disk-may-hold"
HEAD_PORT = 6379
WEIGHTS = {"R-50.pkl", "config.json", "model.safetensors"}
# Commands that may listen beyond loopback. docs/scaling.md lists them with their ports.
MAY_LISTEN = ("gcs_server", "raylet", "ray::", "ray_ingest.py")
OFTEN = {  # how a head learns within seconds that a node is gone
    "RAY_health_check_initial_delay_ms": "0",
    "RAY_health_check_period_ms": "500",
    "RAY_health_check_timeout_ms": "500",
    "RAY_health_check_failure_threshold": "4",
}


class Lab:
    """The three hosts with their cluster, a storage emulator and a local Forager at the bridge."""

    def __init__(self, hosts, directory, services, settings):
        self.hosts, self.disk, self._services = hosts, hosts.disk, services
        self.env = clean_environment() | {"HOME": str(self.disk), "TMPDIR": str(self.disk)}
        self.env |= {"RAY_USAGE_STATS_ENABLED": "0", "RAY_worker_niceness": "0", **settings}
        at_bridge = hosts.enter("net", "mnt", "pid")
        emulator = storage_emulator(directory / "emulator.log", host=BRIDGE, enter=at_bridge)
        self.storage = Emulated(services.enter_context(emulator).url)
        self.env["STORAGE_EMULATOR_HOST"] = self.storage.url
        forager = local_forager(
            directory / "forager",
            directory / "forager.log",
            *("--host", BRIDGE),
            environment=self.env,
            enter=at_bridge,
        )
        self.server = services.enter_context(forager).url
        self.env["SERVER_URL"] = self.server
        self.head, *self.workers = (hosts.host(number) for number in range(3))
        self.weights_directory = self.disk / f"forager-weights-{os.getuid()}"
        self.weights = write_weights(self.head.path(self.disk / "weights"))
        self.weights = [option.replace(str(self.head.path("")), "") for option in self.weights]
        for worker in self.workers:
            worker.hide_program()
        options = ("--head", f"--port={HEAD_PORT}", f"--temp-dir={self.disk}/ray")
        self.ray_start(self.head, *options, "--include-dashboard=false")
        with ThreadPoolExecutor() as threads:
            list(threads.map(self.join_cluster, self.workers))

    @property
    def address(self):
        return f"{self.head.address}:{HEAD_PORT}"

    def ray_start(self, host, *options):
        options += ("--num-cpus=1", "--object-store-memory=100000000", "--disable-usage-stats")
        start = (PYTHON, "-m", "ray.scripts.scripts", "start", *options)
        host.run(*start, f"--node-ip-address={host.address}", env=self.env)

    def join_cluster(self, host):
        self.ray_start(host, f"--address={self.address}")

    def dataset(self, directory, train, val):
        """A dataset; its directory is on this machine's disk, which only the head uses."""
        return self.hosts.call(self._dataset, directory, pictures(train, val))

    def _dataset(self, directory, objects):
        made = World(self.storage.url, self.server, directory)
        made.put(**objects)
        return made

    def sent_weights(self):
        """The names of the weights files that each worker has."""
        directories = [worker.path(self.weights_directory) for worker in self.workers]
        return [{path.name for path in directory.rglob("*.*")} for directory in directories]

    def start(self, data: World, **settings):
        """The command on the head."""
        script = str(Path(__file__).with_name("ray_ingest.py"))
        paths = [f"gs://{data.images}/train", f"gs://{data.images}/val"]
        places = ["--bucket", data.index, "--work_dir", str(data.work)]
        engine = ["--engine", "ray", "--ray_address", self.address]
        command = [PYTHON, script, data.name, *paths, *self.weights, *places, *engine]
        process = start(self.head.command(*command), {**self.env, **settings})
        self._services.enter_context(process)
        self._services.callback(process.kill)
        return process

    def files_with(self, secret):
        """The files on the disks of all hosts that contain these bytes."""
        disks = [host.path(self.disk) for host in (self.head, *self.workers)]
        files = [path for disk in disks for path in disk.rglob("*") if path.is_file()]
        assert len(files) > 20
        return [path for path in files if secret in path.read_bytes()]

    def assert_whole(self, data):
        """Every image has the vectors of its own pixels, and the dataset is registered."""
        get = lambda name: self.hosts.call(self.storage.get, data.index, name)  # noqa: E731
        index_id, *counts = self.hosts.call(data.registered, self.server)
        labels = json.loads(get(f"indexes/{index_id}/labels.json"))
        assert sum(counts) == len(labels)
        arrays = [
            np.frombuffer(
                get(f"indexes/{index_id}/local/{name}/embeddings.npy"), np.float32
            ).reshape(len(labels), dimension)
            for name, dimension in DIMENSIONS.items()
        ]
        for row, name in enumerate(labels):
            file = io.BytesIO(self.hosts.call(self.storage.get, data.images, name))
            expected = embedding_of(np.asarray(Image.open(file).convert("RGB")))
            for array, vector in zip(arrays, expected.vectors, strict=True):
                assert (array[row] == vector).all(), name


@pytest.fixture(scope="module")
def make_lab(tmp_path_factory):
    with ExitStack() as stack:

        def make(**settings):
            hosts = stack.enter_context(Hosts())
            return Lab(hosts, tmp_path_factory.mktemp("lab"), stack, settings)

        yield make


@pytest.fixture(scope="module")
def lab(make_lab):
    return make_lab()


@pytest.fixture(scope="module")
def ingested(lab, tmp_path_factory):
    """An ingest from a slow host. In the middle of it, a worker is cut off for three seconds."""
    directory = tmp_path_factory.mktemp("ingest")
    key = lab.disk / "key.json"
    content = {"type": "authorized_user", "client_id": "ours", "client_secret": "s"}
    lab.head.path(key).write_text(json.dumps({**content, "refresh_token": SECRET}))
    lab.head.slow()
    data = lab.dataset(directory, 40, 4)
    gate = directory / "gate"
    process = lab.start(data, FAKE_KEY=str(key), FAKE_GATE=str(gate), FAKE_ROW_S="0.02")
    # No embedder passes the gate, so the head leaves work for a worker that begins late.
    wait_for(
        lambda: process.poll() is not None or (data.done() and WEIGHTS in lab.sent_weights()),
        math.inf,
    )
    listening = listeners(lab.hosts.processes())
    with_secret = lab.files_with(SECRET.encode())
    lab.workers[0].cut()
    gate.touch()
    time.sleep(3)
    lab.workers[0].join()
    done = ended(process, None)
    assert done.exit_code == 0, done.stderr
    with_secret += lab.files_with(SECRET.encode())
    assert with_secret == [lab.head.path(key)] * 2
    return SimpleNamespace(data=data, listening=listening, done=done)


def test_whole_ingest_with_a_slow_head_and_a_host_that_is_cut_off_for_seconds(lab, ingested):
    assert "Embedding on 3 x cpu in float32, by Ray on 3 machines." in ingested.done.stderr
    assert (
        "44 images (40 training, 4 validation), 0 failed, 44 embedded now" in ingested.done.stdout
    )
    lab.assert_whole(ingested.data)


def test_weights_are_sent_to_a_host_without_them(lab, ingested):
    assert not lab.head.path(lab.weights_directory).exists()
    # The last embedder to start may find that all work is done.
    assert WEIGHTS in lab.sent_weights()


def test_only_the_driver_and_ray_listen_beyond_loopback(lab, ingested):
    beyond = [it for it in ingested.listening if not it.is_loopback and it.address != BRIDGE]
    assert [it for it in beyond if not re.search("|".join(MAY_LISTEN), it.command)] == []
    assert sum("ray_ingest.py" in it.command for it in beyond) == 1
    assert sum(it.port == HEAD_PORT for it in beyond) == 1


@pytest.mark.soak
@pytest.mark.parametrize("differs", ["version", "package"])
def test_host_with_another_version_or_without_a_package_is_named(lab, tmp_path, differs):
    host = lab.workers[1]
    if differs == "version":
        place = next(Path(importlib.metadata.distribution("Pillow")._path).glob("METADATA"))
        text = re.sub("(?m)^Version: .*", "Version: 0.1", place.read_text())
        host.path(lab.disk / "METADATA").write_text(text)
        host.run("mount", "--bind", str(lab.disk / "METADATA"), str(place))
    else:
        place = Path(aiohttp.__file__).parent
        host.run("mount", "-t", "tmpfs", "none", str(place))
    try:
        done = ended(lab.start(lab.dataset(tmp_path, 1, 1)), None)
    finally:
        host.run("umount", str(place))
    assert done.exit_code == 1
    says = {"version": "has Pillow 0.1 (here ", "package": "cannot run this program ("}
    assert f"The Ray node {host.address} {says[differs]}" in done.stderr
    assert "`pip install -r requirements-ray.txt`" in done.stderr


@pytest.mark.soak
@pytest.mark.parametrize("comes_back", [True, False])
def test_host_that_ray_gave_up_costs_no_row(make_lab, tmp_path, comes_back):
    """Its tasks wait for a new node. If none joins, the next pass uses the hosts that are left."""
    lab = make_lab(**OFTEN)
    data = lab.dataset(tmp_path, 40, 4)
    gate = tmp_path / "gate"
    process = lab.start(data, FAKE_GATE=str(gate), FAKE_NO_PROGRESS_S="30")
    wait_for(lambda: process.poll() is not None or data.done(), math.inf)
    lost = lab.workers[0]
    lost.cut()
    wait_for(lambda: alive(lab) == 2, math.inf)
    gate.touch()
    if comes_back:
        lost.join()
        lab.join_cluster(lost)
        assert alive(lab) == 3
    done = ended(process, None)
    assert done.exit_code == 0, done.stderr
    lab.assert_whole(data)


def alive(lab):
    """The nodes that the head counts as alive."""
    nodes = "sum(node['Alive'] for node in ray.nodes())"
    code = f"import ray; ray.init(address='auto'); print('alive', {nodes})"
    return int(re.findall(r"alive (\d+)", lab.head.run(PYTHON, "-c", code, env=lab.env))[-1])
