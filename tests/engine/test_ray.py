"""The engine on Ray: one real cluster on 127.0.0.1 for all tests, with two pretended GPUs."""

import asyncio
import io
import json
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pytest
from PIL import Image

from common.errors import ClusterError, ImagesChanged, StorageError
from testing import embedders
from testing.embedders import FakeEmbedder
from tests.dataset.states import state_of
from tests.harness import wait_for
from tests.listeners import below, listeners
from tests.stand_in import Rule, StandIn

ray = pytest.importorskip("ray", reason="Ray is not installed: pip install -r requirements-ray.txt")

import psutil  # noqa: E402  Ray brings it

import gcs  # noqa: E402
from dataset.arrays import DIMENSIONS, Arrays, array_path  # noqa: E402
from engine.checkpoint import Recorder  # noqa: E402
from engine.pipeline import Pipeline  # noqa: E402
from engine.ray.cluster import Cluster, Pool, versions  # noqa: E402
from engine.ray.driver import RayPipeline  # noqa: E402
from engine.ray.worker import WeightFiles, probe  # noqa: E402
from engine.threads import Job  # noqa: E402

pytestmark = [
    pytest.mark.ray,
    # Ray leaves sockets and files of ended processes open, and imports what is deprecated.
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]
NAMES = [f"t/{i:02}.jpg" for i in range(24)]
POOL = Pool(2, 0.4, 0, block_rows=4)
STORE_BYTES = 100 << 20
INDEX_ID = "00000000-0000-4000-8000-000000000000"


class OnGpu(FakeEmbedder):
    """Waits for a batch of the other GPU. Classes are its number, + 10 if inputs are given."""

    device = "cuda"  # so feeders decode

    def __init__(self, directory):
        super().__init__(makes_clip_inputs=True)
        self._directory, self._gpu = directory, os.environ.get("CUDA_VISIBLE_DEVICES")

    def start(self, images, clip_inputs):
        (self._directory / self._gpu).touch()
        assert psutil.Process().children()  # feeders
        while len(list(self._directory.iterdir())) < 2:
            time.sleep(0.02)
        embeddings = super().start(images, clip_inputs)()
        return lambda: [
            embedding._replace(imagenet_class=int(self._gpu) + 10 * (given is not None))
            for embedding, given in zip(embeddings, clip_inputs, strict=True)
        ]


class WatchedRecorder(Recorder):
    """Notes the numbers of the rows that it records."""

    def __init__(self, state, arrays):
        super().__init__(state, arrays)
        self.rows = []

    def record(self, row, result):
        self.rows.append(row.row)
        super().record(row, result)


@pytest.fixture(scope="module")
def storage(emulator_url):
    """The emulator behind a proxy that can hold requests."""
    with StandIn(emulator_url) as proxy:
        yield proxy


@pytest.fixture(scope="module")
def cluster(storage):
    """Two CPUs, two GPUs that are not there, a small object store that may not use the disk."""
    modules = embedders, sys.modules[__name__]
    for module in modules:  # else pickled by name, and workers have the program alone
        ray.cloudpickle.register_pickle_by_value(module)
    settings = {
        "num_cpus": 2,
        "num_gpus": 2,
        "object_store_memory": STORE_BYTES,
        "_system_config": {"automatic_object_spilling_enabled": False},
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("STORAGE_EMULATOR_HOST", storage.url)
        with Cluster(None, **settings) as running:
            yield running
    for module in modules:
        ray.cloudpickle.unregister_pickle_by_value(module)


@pytest.fixture
def make_state(world, tmp_path):
    """Makes states of all images in the bucket, each in a directory of its own."""
    states = []

    def make(name="state"):
        directory = tmp_path / name
        directory.mkdir()
        listed = [gcs.listed_object(b._properties) for b in world.client.list_blobs(world.images)]
        state = state_of(directory, listed)
        state.set_options({"index_id": INDEX_ID})
        states.append(state)
        return state

    yield make
    for state in states:
        state.close()


def job(state, world, embedder):
    return Job(
        image_bucket=world.images,
        index_bucket=world.index,
        index_id=state.index_id,
        max_pixels=embedder.max_pixels,
        with_clip_inputs=not embedder.makes_clip_inputs,
    )


def run_on_ray(cluster, state, world, *, load=FakeEmbedder, pool=POOL, watch=lambda recorder: None):
    """Embed all rows of a state; the recorder that did it. `watch` gets the recorder first."""
    with Arrays(state.directory, state.counts().images) as arrays:
        recorder = WatchedRecorder(state, arrays)
        what = job(state, world, probe(load))
        pipeline = RayPipeline(
            cluster=cluster,
            choose_pool=lambda: pool,
            state=state,
            recorder=recorder,
            load=load,
            job=what,
        )
        watch(recorder)
        asyncio.run(pipeline.run())
    return recorder


def run_here(state, world):
    """The same by the engine of one machine."""

    async def embed():
        embedder = FakeEmbedder()
        recorder = Recorder(state, arrays)
        pipeline = Pipeline(
            job(state, world, embedder),
            embedder,
            recorder.record,
            decode_workers=2,
            in_processes=False,
        )
        async with pipeline:
            await recorder.during(pipeline.run(state.pending(), state.counts().images))

    with Arrays(state.directory, state.counts().images) as arrays:
        asyncio.run(embed())


def png(width, height, seed=0):
    file = io.BytesIO()
    image = Image.new("RGB", (width, height))
    image.putpixel((seed, 0), (seed, 1, 2))
    image.save(file, "PNG")
    return file.getvalue()


def test_rows_failures_and_changes_are_those_of_the_local_engine(world, cluster, make_state):
    world.put(*NAMES[:7], "t/a.png", **{"t/bad.jpg": b"no image", "t/empty.jpg": b""})
    here, on_ray = make_state("here"), make_state("on_ray")
    world.put(**{"t/a.png": png(30, 40)})
    with pytest.raises(ImagesChanged, match="t/a.png: it was replaced after it was listed"):
        run_here(here, world)
    thumbnails = world.objects()
    world.index = world.client.create_bucket(f"{world.index}-2").name
    with pytest.raises(ImagesChanged, match="t/a.png: it was replaced after it was listed"):
        run_on_ray(cluster, on_ray, world)
    assert on_ray.counts() == here.counts()
    assert on_ray.pending_numbers(10).tolist() == here.pending_numbers(10).tolist() == [7]
    assert on_ray.failed() == here.failed() and len(here.failed()) == 2
    assert list(on_ray.manifest_rows()) == list(here.manifest_rows())
    for name in DIMENSIONS:
        assert (
            array_path(on_ray.directory, name).read_bytes()
            == array_path(here.directory, name).read_bytes()
        )
    assert world.objects() == thumbnails


def test_each_gpu_gets_an_embedder_which_makes_the_clip_inputs(
    world, cluster, make_state, tmp_path
):
    world.put(*NAMES, **{"t/tall.png": png(10, 60)})  # Pillow scales tall images the other way
    state = make_state()
    pool = cluster.pool("auto")
    assert (pool.size, pool.gpus) == (2, 1)
    loaded = tmp_path / "loaded"
    loaded.mkdir()
    run_on_ray(cluster, state, world, load=partial(OnGpu, loaded), pool=pool)
    *classes, tall = [number for _, number in state.imagenet_classes()]
    assert set(classes) == {0, 1}
    assert tall in (10, 11)


def test_killed_worker_costs_no_row_and_counts_none_twice(world, storage, cluster, make_state):
    """It is killed while downloads are held."""
    world.put(*NAMES)
    storage.rules = [Rule(r"GET /storage/.*alt=media", "hold", after=16)]
    state = make_state()

    def kill(recorder):
        wait_for(lambda: recorder.rows and storage.counts["hold"])
        os.kill(below(os.getpid(), "ray::MapWorker(MapBatches(EmbedBlocks))")[0], signal.SIGKILL)
        storage.release()

    with ThreadPoolExecutor(1) as threads:
        killed = []
        recorder = run_on_ray(
            cluster, state, world, watch=lambda it: killed.append(threads.submit(kill, it))
        )
        killed[0].result()
    storage.rules = []
    assert sorted(recorder.rows) == list(range(len(NAMES)))
    assert state.counts().done == len(NAMES)


def test_lost_access_stops_with_the_sentence_of_storage(world, cluster, make_state):
    world.put(*NAMES[:3])
    world.index = "no-such-bucket-here"
    with pytest.raises(StorageError, match="no such bucket or object"):
        run_on_ray(cluster, make_state(), world)


def test_models_that_cannot_be_loaded_in_an_actor_stop_with_their_sentence(
    world, cluster, make_state, tmp_path
):
    """Although the worker that was asked first could load them."""
    world.put(*NAMES[:3])
    loaded = tmp_path / "loaded"

    def load():
        if loaded.exists():
            raise ClusterError("The weights are damaged.")
        loaded.touch()
        return FakeEmbedder()

    with pytest.raises(ClusterError) as error:
        run_on_ray(cluster, make_state(), world, load=load)
    assert error.value.message == "The weights are damaged."


def test_nodes_with_other_versions_are_refused(cluster):
    cluster.check_versions()
    expected = {**versions(), "torch": "0.1"}
    with pytest.raises(ClusterError, match=r"127.0.0.1 has torch .*\(here 0.1\)"):
        cluster.check_versions(expected)


def test_workers_import_the_program_and_nothing_else_of_the_checkout(cluster):
    def found():
        import importlib.util
        import pkgutil

        imported = Path(importlib.util.find_spec("engine.ray.worker").origin)
        return imported, {module.name for module in pkgutil.iter_modules()}

    origin, modules = ray.get(ray.remote(num_cpus=0)(found).remote())
    assert not origin.is_relative_to(Path(__file__).parents[2])
    assert {"gcs", "embeddings", "models", "engine"} <= modules
    assert not modules & {"ingest", "ingest_labels", "demo", "tests", "testing", "bench", "labels"}


def test_nothing_listens_beyond_loopback(cluster):
    found = listeners(below(os.getpid()))
    assert len(found) > 5
    assert [listener for listener in found if not listener.is_loopback] == []


def test_weights_arrive_where_a_file_is_missing_or_another(cluster, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "machine"))
    directory = tmp_path / "weights"
    for folder in (directory, tmp_path / "machine"):
        folder.mkdir()
    paths = [directory / name for name in ("config.json", "model.safetensors")]
    for path in paths:
        path.write_bytes(path.name.encode())
    sent = WeightFiles.send(paths, to_others=True)
    assert sent.on_this_machine() == directory
    paths[1].write_bytes(b"others")
    arrived = sent.on_this_machine()
    assert arrived.is_relative_to(tmp_path / "machine")
    assert [(arrived / path.name).read_bytes() for path in paths] == [
        b"config.json",
        b"model.safetensors",
    ]
    assert sent.on_this_machine() == arrived
    other = {"digests": {**sent.digests, "config.json": "0" * 64}}
    for damaged in (sent._replace(contents={}), sent._replace(**other)):
        with pytest.raises(ClusterError, match="are damaged, or have changed"):
            damaged.on_this_machine()


def test_workers_and_their_feeders_use_a_key_that_is_in_memory_only(cluster):
    fields = {"type": "authorized_user", "client_secret": "s", "refresh_token": "r"}
    key = json.dumps({**fields, "client_id": "c"}).encode()

    def account():
        from engine.ray.worker import use_key

        use_key(key)
        code = "import google.auth; print(google.auth.default()[0].client_id)"
        client = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        return client.stdout, os.readlink(os.environ["GOOGLE_APPLICATION_CREDENTIALS"])

    client, path = ray.get(ray.remote(num_cpus=0)(account).remote())
    assert client == "c\n"
    assert path.startswith("/memfd:")
