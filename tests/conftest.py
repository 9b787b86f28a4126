"""Real parts for the tests: an emulated bucket, a local Forager, weights in the real formats."""

from __future__ import annotations

import collections
import os
import signal
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

os.environ["FORAGER_RETRY_BASE_S"] = "0.01"  # short waits

from testing.embedders import FakeEmbedder
from testing.servers.processes import storage_emulator
from testing.weights import seeded_weights
from tests.harness import CLEAN, TRAIN, VAL, World, foragers, pictures
from tests.stand_in import StandIn

MAX_WORKERS = 4  # of `make test`

for variable in CLEAN:  # of whoever runs the tests
    os.environ.pop(variable, None)

# The same examples every time: a run of CI fails for the change it tests. `make soak` tries others.
settings.register_profile("repeatable", derandomize=True, deadline=None, max_examples=50)
settings.register_profile("others", deadline=None)
settings.load_profile("repeatable")


# A shell starts what runs in the background with SIGINT ignored, and nohup does so with SIGHUP.
# Commands that the tests interrupt would inherit that, but not a handler.
signal.signal(signal.SIGINT, signal.default_int_handler)
if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN:
    signal.signal(signal.SIGHUP, lambda *_: None)


@pytest.hookimpl(tryfirst=True)  # before pytest reads -m
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Mark the tests of the page, and leave the slow tests out unless -m names them.

    Tests of Ray come first: they mostly wait, so one worker runs them beside all the others.
    """
    for item in items:
        if "browser" in getattr(item, "fixturenames", ()):
            item.add_marker("page")
    items.sort(key=lambda item: item.get_closest_marker("ray") is None)
    if "soak" not in config.option.markexpr:
        config.hook.pytest_deselected(items=[item for item in items if _is_slow(item)])
        items[:] = [item for item in items if not _is_slow(item)]


def _is_slow(item: pytest.Item) -> bool:
    return item.get_closest_marker("soak") is not None


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """Workers of `-n auto`: each has servers of its own, and many tests wait more than compute.

    On 2 cores, three workers took 8:23 where two took 9:09.
    """
    return min(MAX_WORKERS, (os.cpu_count() or 1) + 1)


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """Say what was left out, and how to get it."""
    reports = terminalreporter.stats.get("skipped", ())
    reasons = collections.Counter(
        report.longrepr[2].removeprefix("Skipped: ") for report in reports
    )
    lines = [f"{count} skipped: {reason}" for reason, count in sorted(reasons.items())]
    if "soak" not in config.option.markexpr:
        lines.append("The slow tests (marked soak) were left out: run `make soak`.")
    if lines:
        terminalreporter.section("left out")
        terminalreporter.write("\n".join(lines) + "\n")


@pytest.fixture(scope="session")
def emulator_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with storage_emulator(tmp_path_factory.mktemp("emulator") / "log") as service:
        yield service.url


@pytest.fixture
def emulator(emulator_url: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """The storage emulator, selected by STORAGE_EMULATOR_HOST as a user would."""
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", emulator_url)
    return emulator_url


@pytest.fixture
def storage(emulator_url: str) -> Iterator[StandIn]:
    """The emulator behind a stand-in, which counts, holds and fails requests."""
    with StandIn(emulator_url) as stand_in:
        yield stand_in


@pytest.fixture
def make_bucket(emulator: str) -> Callable[[], str]:
    """Makes a fresh bucket and returns its name."""
    import gcs

    def make() -> str:
        return gcs.make_client().create_bucket(f"bucket-{uuid.uuid4().hex[:12]}").name

    return make


@pytest.fixture(scope="session")
def weights_dir() -> Path:
    """R-50.pkl and clip-vit-base-patch32/ with seeded numbers, made once for a checkout."""
    return seeded_weights()


@pytest.fixture(scope="session")
def server_directories(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The data directories of `servers`."""
    return {generation: tmp_path_factory.mktemp(f"forager-{generation}") for generation in "AB"}


@pytest.fixture(scope="session")
def servers(emulator_url: str, server_directories: dict[str, Path]) -> Iterator[dict[str, str]]:
    """A local Forager of each generation, for tests that need none of their own: its address."""
    with foragers(server_directories, emulator_url) as addresses:
        yield addresses


@pytest.fixture
def world(
    emulator: str, servers: dict[str, str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> World:
    """Empty buckets and a server of generation B, in an empty directory; images in t/ and v/."""
    monkeypatch.chdir(tmp_path)
    return World(emulator, servers["B"], Path(), splits=("t", "v"), fake=False)


@pytest.fixture
def fast_models(world: World) -> FakeEmbedder:
    """Models that take no time, in the place of the real ones."""
    world.embedder = FakeEmbedder()
    return world.embedder


@pytest.fixture
def make_world(emulator: str, servers: dict[str, str], tmp_path: Path) -> Callable[..., World]:
    """Makes a dataset of these objects, in train/ and val/, to be ingested with fake models."""

    def make(objects: dict[str, bytes], directory: str = "made") -> World:
        made = World(emulator, servers["B"], tmp_path / directory)
        made.put(**objects)
        return made

    return make


@pytest.fixture(scope="session")
def undisturbed(
    emulator_url: str, servers: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> World:
    """A dataset of TRAIN and VAL pictures that was ingested without stops and faults."""
    made = World(emulator_url, servers["B"], tmp_path_factory.mktemp("undisturbed"))
    made.put(**pictures(TRAIN, VAL))
    made.ingest(storage=emulator_url)
    return made


@pytest.fixture
def fresh(undisturbed: World, emulator: str, tmp_path: Path) -> World:
    """The same images, to be ingested again."""
    return undisturbed.again(tmp_path / "fresh")
