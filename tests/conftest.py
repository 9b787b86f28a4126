"""Real parts for the tests: an emulated bucket, a local Forager, weights in the real formats."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import settings

os.environ["FORAGER_RETRY_BASE_S"] = "0.01"  # before retries.py is imported: short waits

import demo
from tests.harness import TRAIN, VAL, Dataset, Emulated, dataset, environment, pictures, run_here
from tests.world import FastEmbedder, World, use_fast_models

# The same examples every time: a run of CI fails for the change it tests. `make soak` tries others.
settings.register_profile("repeatable", derandomize=True)
settings.load_profile("repeatable")

ROOT = Path(__file__).parent.parent
START_TIMEOUT_S = 30


class Service:
    """A server in a process of its own, on a free port of 127.0.0.1; its output goes to a file."""

    def __init__(self, command: list[str], log: Path, address: re.Pattern[str]) -> None:
        self.log = log
        with open(log, "w") as output:
            self.process = subprocess.Popen(
                command, stdout=output, stderr=subprocess.STDOUT, cwd=ROOT
            )
        ended = threading.Event()
        for _ in range(START_TIMEOUT_S * 20):
            if found := address.search(log.read_text()):
                self.url = found[0]
                return
            if self.process.poll() is not None:
                break
            ended.wait(0.05)
        self.stop()
        raise RuntimeError(f"{command} did not start:\n{log.read_text()}")

    def stop(self) -> None:
        self.process.terminate()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


EMULATOR = """
import logging, time
from http.server import HTTPServer
from gcp_storage_emulator.server import APIThread, create_server
logging.disable()
HTTPServer.request_queue_size = 128  # of 5, a burst of connections loses some
server = create_server("127.0.0.1", 0, in_memory=True)
server.start()
print("http://127.0.0.1:%d" % server._api._httpd.server_address[1], flush=True)
while True:
    time.sleep(60)
"""


@pytest.fixture(scope="session")
def emulator_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    log = tmp_path_factory.mktemp("emulator") / "log"
    service = Service([sys.executable, "-c", EMULATOR], log, re.compile(r"http://127\S+"))
    yield service.url
    service.stop()


@pytest.fixture
def emulator(emulator_url: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """The storage emulator, selected by STORAGE_EMULATOR_HOST as a user would."""
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", emulator_url)
    for name in ("SERVER_URL", "FORAGER_BUCKET", "http_proxy", "https_proxy", "HTTP_PROXY"):
        monkeypatch.delenv(name, raising=False)
    return emulator_url


@pytest.fixture
def make_bucket(emulator: str) -> Callable[[], str]:
    """Makes a fresh bucket and returns its name."""
    import gcs

    def make() -> str:
        return gcs.make_client().create_bucket(f"bucket-{uuid.uuid4().hex[:12]}").name

    return make


@pytest.fixture
def forager(emulator: str, tmp_path: Path) -> Iterator[Callable[..., str]]:
    """Starts a local Forager of a generation over an index bucket; returns its address."""
    services: list[Service] = []

    def start(generation: str = "B", bucket: str = "foragerml") -> str:
        number = len(services)
        data_dir = tmp_path / f"forager-{number}"
        command = [sys.executable, "-m", "local_forager", "--port", "0"]
        command += ["--data_dir", str(data_dir), "--generation", generation, "--bucket", bucket]
        log = tmp_path / f"forager-{number}.log"
        services.append(Service(command, log, re.compile(r"http://127\.0\.0\.1:\d+")))
        return services[-1].url

    yield start
    for service in services:
        service.stop()


@pytest.fixture(scope="session")
def weights_dir() -> Path:
    """R-50.pkl and clip-vit-base-patch32/ with seeded numbers, made once for a checkout."""
    return demo.seeded_weights()


@pytest.fixture(scope="session")
def servers(
    emulator_url: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, str]]:
    """A local Forager of each generation, for tests that need none of their own: its address."""
    services = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("STORAGE_EMULATOR_HOST", emulator_url)
        for generation in "AB":
            directory = tmp_path_factory.mktemp(f"forager-{generation}")
            command = [sys.executable, "-m", "local_forager", "--port", "0"]
            command += ["--data_dir", str(directory), "--generation", generation]
            address = re.compile(r"http://127\.0\.0\.1:\d+")
            services[generation] = Service(command, directory / "log", address)
    yield {generation: service.url for generation, service in services.items()}
    for service in services.values():
        service.stop()


@pytest.fixture
def world(
    make_bucket: Callable[[], str],
    servers: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> World:
    """Two empty buckets and a server of generation B, in an empty directory."""
    monkeypatch.chdir(tmp_path)
    return World(make_bucket(), make_bucket(), servers["B"])


@pytest.fixture
def fast_models(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> FastEmbedder:
    """Models that take no time."""
    return use_fast_models(monkeypatch, tmp_path)


@pytest.fixture(scope="session")
def undisturbed(
    emulator_url: str, servers: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> Dataset:
    """A dataset of TRAIN and VAL pictures that was ingested without stops and faults."""
    directory = tmp_path_factory.mktemp("undisturbed")
    made = dataset(Emulated(emulator_url), directory, pictures(TRAIN, VAL))
    done = run_here(made.command(), environment(emulator_url, servers["B"]))
    assert done.returncode == 0, done.stderr
    return made


@pytest.fixture
def fresh(undisturbed: Dataset, tmp_path: Path) -> Dataset:
    """The same images, to be ingested again."""
    return undisturbed.again(tmp_path / "fresh")
