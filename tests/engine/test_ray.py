"""The second engine: the same index as the first, from a real Ray on 127.0.0.1."""

import asyncio
import contextlib
import io
import json
import os
import signal
import sys
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from common.program import ROOT
from testing import embedders
from testing.embedders import FakeEmbedder
from tests.fault_proxy import FaultProxy, Rule
from tests.harness import ended, run, start, wait_for
from tests.world import Index

ray = pytest.importorskip("ray", reason="Ray is not installed: pip install -r requirements-ray.txt")

import gcs  # noqa: E402
from common.program import program_files  # noqa: E402
from dataset.arrays import DIMENSIONS, Arrays, Embedding  # noqa: E402
from dataset.rows import Row, State  # noqa: E402
from engine.checkpoint import ImagesChanged, Recorder  # noqa: E402
from engine.decode import Prepared  # noqa: E402
from engine.ray import cluster as ray_cluster  # noqa: E402
from engine.ray import driver as ray_pipeline  # noqa: E402
from engine.ray import workers as ray_stages  # noqa: E402
from engine.stages import StageTime  # noqa: E402
from gcs import ListedObject  # noqa: E402

# Ray's own: sockets and files of processes it has already ended, and what it imports.
pytestmark = [
    pytest.mark.ray,
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.timeout(300),
]
NAMES = [f"t/{i}.jpg" for i in range(24)]
DOWNLOAD = r"GET /storage/.*alt=media"
POOL = ray_cluster.Pool(2, 0.4, 0, calls=2, pack_images=4, pack_bytes=4 << 20)


class FastModels(ray_cluster.ShippedModels):
    """In the place of the real models."""

    def load(self):
        return FakeEmbedder()


@pytest.fixture
def by_value():
    """What tests/ holds is pickled whole: the program alone is sent to workers."""
    for module in (embedders, sys.modules[__name__]):
        ray.cloudpickle.register_pickle_by_value(module)
    yield
    for module in (embedders, sys.modules[__name__]):
        ray.cloudpickle.unregister_pickle_by_value(module)


@pytest.fixture
def fast_ray(fast_models, by_value, monkeypatch):
    """Both engines with models that take no time."""
    monkeypatch.setattr(ray_pipeline, "_ship", lambda options, *_: FastModels(None, None, options))


@pytest.fixture
def storage(emulator, monkeypatch):
    """The emulator behind a proxy that can hold requests."""
    with FaultProxy(emulator) as proxy:
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", proxy.url)
        yield proxy


@pytest.fixture
def cluster(emulator, by_value):
    with ray_cluster.Cluster(None, num_cpus=2, object_store_memory=200 << 20) as running:
        yield running


def a_state(world, directory):
    """A state of all images in the bucket."""
    state = State.create(directory / "state.sqlite")
    state.add(0, listed_objects(world))
    state.number_rows()
    state.set_options({"index_id": str(uuid.uuid4())})
    return state


def a_pipeline(cluster, state, arrays, world, load=FakeEmbedder, pool=POOL):
    return ray_pipeline.RayPipeline(
        cluster,
        lambda: pool,
        state,
        arrays,
        load,
        image_bucket=world.bucket,
        index_bucket=world.index,
        max_pixels=10**7,
    )


def listed_objects(world):
    blobs = world.client.list_blobs(world.bucket)
    return [
        ListedObject(b.name, b.size, gcs.crc32c_of_listing(b.crc32c), int(b.generation))
        for b in blobs
    ]


def same_index(one, other):
    assert (one.labels, one.train, one.val) == (other.labels, other.train, other.val)
    assert one.classes == other.classes
    assert one.thumbnails == other.thumbnails
    for name, array in one.arrays.items():
        np.testing.assert_allclose(other.arrays[name], array, atol=1e-6, rtol=0)


def test_same_index_as_the_local_engine_with_the_real_models(world, weights_dir):
    world.put(*NAMES[:6], "t/a.png", "v/val.jpg")
    models = ["--resnet_weights", str(weights_dir / "R-50.pkl")]
    models += ["--clip_weights", str(weights_dir / "clip-vit-base-patch32")]
    result = world.run(*models)
    assert result.exit_code == 0, result.output
    index = Index(world.objects())
    world.index = world.client.create_bucket(world.index + "-2").name
    command = [sys.executable, str(ROOT / "ingest.py")]
    command += world.arguments(*models, "--engine", "ray", "--work_dir", "2", name="on-" + "ray")
    command[2] += f"-{world.name}"
    done = run(command, dict(os.environ), timeout=250)
    assert done.returncode == 0, done.stderr
    same_index(index, Index(world.objects()))
    said = [line for line in done.stderr.split("\n") if line and "%|" not in line]
    steps = ["Listed", "Embedding", "Embedded", "Uploaded", "Registered"]
    assert [line.split()[0] for line in said] == steps, done.stderr
    assert "8 images (7 training, 1 validation), 0 failed, 8 embedded now" in done.stdout


def test_what_the_local_engine_began_ends_on_ray(world, fast_ray, monkeypatch):
    world.put(*NAMES, "v/val.jpg")
    undisturbed = world.run("--work_dir", "other", name=world.name + "-u")
    assert undisturbed.exit_code == 0, undisturbed.output
    index, first_bucket = Index(world.objects()), world.index
    world.index = world.client.create_bucket(first_bucket + "-2").name

    def break_after_some(self, row, *rest):
        recorded.append(row)
        if len(recorded) > 9:
            raise RuntimeError("a broken machine")
        before(self, row, *rest)

    before, recorded = Recorder.done, []
    with monkeypatch.context() as patch, pytest.raises(RuntimeError, match="broken machine"):
        patch.setattr(Recorder, "done", break_after_some)
        world.run()
    done = State(Path("work/state.sqlite")).counts().done
    assert done == 9
    result = world.run("--engine", "ray")
    assert result.exit_code == 0, result.output
    assert f"{25 - done} embedded now" in result.stdout
    same_index(index, Index(world.objects()))


def test_bad_images_stop_it_as_they_stop_the_local_engine(world, fast_ray):
    world.put(*NAMES[:3], "v/val.jpg", **{"t/bad.jpg": b"no image", "t/empty.jpg": b""})
    local = world.run("--work_dir", "other")
    world.index = world.client.create_bucket(world.index + "-2").name
    on_ray = world.run("--engine", "ray")
    assert (local.exit_code, on_ray.exit_code) == (1, 1)
    failed = [json.loads(Path(d, "failed.json").read_text()) for d in ("other", "work")]
    assert failed[0] == failed[1] and len(failed[0]) == 2
    assert "2 of 6 images cannot be embedded" in on_ray.stderr
    skipped = world.run("--engine", "ray", "--skip_bad_images")
    assert skipped.exit_code == 0, skipped.output
    index = Index(world.objects())
    assert not index.arrays["clip"][index.labels.index("t/bad.jpg")].any()
    assert len(index.thumbnails) == 4


def processes(title):
    """The processes below this one whose title begins so."""
    found, parents = [], {}
    for directory in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            stat = (directory / "stat").read_text().rpartition(")")[2].split()
            parents[int(directory.name)] = int(stat[1])
            if (directory / "cmdline").read_text().startswith(title):
                found.append(int(directory.name))
    return [pid for pid in found if os.getpid() in _ancestors(pid, parents)]


def _ancestors(pid, parents):
    while pid := parents.get(pid, 0):
        yield pid


def test_killed_workers_cost_no_row_and_count_none_twice(world, storage, cluster, tmp_path):
    """A worker that embeds and one that fetches are killed while downloads are held."""
    world.put(*NAMES)
    storage.rules = [Rule(DOWNLOAD, "hold", after=16)]
    state = a_state(world, tmp_path)
    with Arrays(tmp_path, len(NAMES)) as arrays:
        pipeline = a_pipeline(cluster, state, arrays, world)
        recorded = []
        take = pipeline._recorder.done
        pipeline._recorder.done = lambda row, *rest: (recorded.append(row.row), take(row, *rest))

        def kill():
            wait_for(lambda: recorded and storage.counts["hold"])
            for title in ("ray::MapWorker(MapBatches(Embed))", "ray::ReadRange"):
                wait_for(lambda title=title: processes(title))
                os.kill(processes(title)[0], signal.SIGKILL)
            storage.release()

        with ThreadPoolExecutor(1) as threads:
            killed = threads.submit(kill)
            asyncio.run(pipeline.run())
            killed.result()
    assert sorted(recorded) == list(range(len(NAMES)))
    assert state.counts().done == len(NAMES)
    state.close()


def test_ctrl_c_ends_it_with_130(world, storage, weights_dir):
    world.put(*NAMES, "v/val.jpg")
    storage.rules = [Rule(DOWNLOAD, "hold")]
    command = [sys.executable, str(ROOT / "ingest.py"), *world.arguments("--engine", "ray")]
    command += ["--resnet_weights", str(weights_dir / "R-50.pkl")]
    command += ["--clip_weights", str(weights_dir / "clip-vit-base-patch32")]
    process = start(command, dict(os.environ), start_new_session=True)
    wait_for(lambda: storage.counts["hold"] or process.poll() is not None)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    done = ended(process)
    assert done.returncode == 130, done.stderr
    assert done.stderr.endswith("Interrupted: the same command continues where this one stopped.\n")


def test_slow_driver_fills_no_object_store(world, by_value, tmp_path):
    """405 MB of pixels pass through a store of 200 MB that may not spill to the disk."""
    colour = Image.new("RGB", (1500, 1500))
    for i in range(60):
        colour.putpixel((i, 0), (i, 1, 2))
        file = io.BytesIO()
        colour.save(file, "PNG")
        world.put(**{f"t/{i}.png": file.getvalue()})
    state = a_state(world, tmp_path)
    never_spill = {"automatic_object_spilling_enabled": False}
    settings = {"object_store_memory": 200 << 20, "_system_config": never_spill}
    with (
        ray_cluster.Cluster(None, num_cpus=2, **settings) as cluster,
        Arrays(tmp_path, 60) as arrays,
    ):
        pipeline = a_pipeline(cluster, state, arrays, world)
        take = pipeline._recorder.done
        pipeline._recorder.done = lambda *row: (time.sleep(0.1), take(*row))
        asyncio.run(pipeline.run())
    assert state.counts().done == 60
    state.close()


def test_each_gpu_of_a_machine_gets_an_embedder(world, by_value, tmp_path):
    world.put(*NAMES)
    state = a_state(world, tmp_path)
    with ray_cluster.Cluster(None, num_cpus=2, num_gpus=2) as cluster:
        pool = cluster.pool("auto")
        assert (pool.size, pool.gpus) == (2, 1)
        with pytest.raises(ray_cluster.ClusterError, match="names one device"):
            cluster.pool("cuda:1")
        with Arrays(tmp_path, len(NAMES)) as arrays:
            asyncio.run(a_pipeline(cluster, state, arrays, world, pool=pool).run())
    assert state.counts().done == len(NAMES)
    state.close()


@pytest.mark.soak
def test_lost_machine_costs_no_row(world, storage, by_value, tmp_path, monkeypatch):
    from ray.cluster_utils import Cluster

    world.put(*NAMES)
    storage.rules = [Rule(DOWNLOAD, "hold", after=16)]
    state = a_state(world, tmp_path)
    monkeypatch.setattr(ray_pipeline, "NO_PROGRESS_S", 20)
    machine = {"num_cpus": 2, "node_ip_address": "127.0.0.1"}
    machines = Cluster(initialize_head=True, head_node_args=machine | {"include_dashboard": False})
    second = machines.add_node(**machine)
    pools = []

    def lose_one():
        wait_for(lambda: recorded and storage.counts["hold"])
        machines.remove_node(second, allow_graceful=False)
        storage.release()

    with (
        ray_cluster.Cluster(machines.address) as cluster,
        Arrays(tmp_path, len(NAMES)) as arrays,
    ):
        pipeline = a_pipeline(cluster, state, arrays, world)
        pipeline._choose_pool = lambda: (pools.append(cluster.pool("auto")), pools[-1])[1]
        recorded = []
        take = pipeline._recorder.done
        pipeline._recorder.done = lambda row, *rest: (recorded.append(row.row), take(row, *rest))
        with ThreadPoolExecutor(1) as threads:
            lost = threads.submit(lose_one)
            asyncio.run(pipeline.run())
            lost.result()
    machines.shutdown()
    assert sorted(recorded) == list(range(len(NAMES)))
    assert [pool.size for pool in pools] in ([2], [2, 1])
    state.close()


@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("127.0.0.1:1", "No Ray cluster answers at 127.0.0.1:1"),
        ("ray://127.0.0.1:10001", "is none of auto, HOST and HOST:PORT"),
        ("127.0.0.1:notaport", "No Ray cluster answers at 127.0.0.1:notaport"),
    ],
)
def test_wrong_address_is_one_sentence(world, fast_models, address, words):
    world.put("t/0.jpg", "v/val.jpg")
    result = world.run("--engine", "ray", "--ray_address", address)
    assert result.exit_code == 1
    assert words in result.stderr and "Traceback" not in result.output
    assert not Path("work").exists()


def test_address_without_the_engine_is_refused(world):
    result = world.run("--ray_address", "auto")
    assert (result.exit_code, "goes with --engine ray" in result.stderr) == (2, True)


def test_missing_ray_says_how_to_get_it(world, fast_models, monkeypatch):
    monkeypatch.setattr(ray_cluster.importlib.util, "find_spec", lambda name: None)
    world.put("t/0.jpg", "v/val.jpg")
    result = world.run("--engine", "ray")
    assert result.exit_code == 1
    assert "pip install -r requirements-ray.txt" in result.stderr


def test_lost_access_stops_with_the_sentence_of_storage(world, cluster, tmp_path):
    world.put(*NAMES[:3])
    state = a_state(world, tmp_path)
    with Arrays(tmp_path, 3) as arrays:
        pipeline = a_pipeline(cluster, state, arrays, world)
        pipeline._job = pipeline._job._replace(index_bucket="no-such-bucket-here")
        with pytest.raises(gcs.StorageError, match="no such bucket or object"):
            asyncio.run(pipeline.run())
    state.close()


def test_an_object_that_changed_is_left_for_another_run(world, cluster, tmp_path):
    world.put(*NAMES[:5])
    state = a_state(world, tmp_path)
    world.put(**{NAMES[2]: b"another image"})
    stops = pytest.raises(ImagesChanged, match=f"{NAMES[2]}: it was replaced after it was listed")
    with Arrays(tmp_path, 5) as arrays, stops:
        asyncio.run(a_pipeline(cluster, state, arrays, world).run())
    assert state.pending_numbers(10).tolist() == [2]
    assert (state.counts().done, state.counts().failed) == (4, 0)
    state.close()


def test_nodes_with_other_versions_are_refused(cluster):
    cluster.check_versions()
    (node,) = cluster.nodes()
    assert node["NodeManagerAddress"] == "127.0.0.1"
    expected = {**ray_stages.versions(), "torch": "0.1"}
    with pytest.raises(ray_cluster.ClusterError, match=r"127.0.0.1 has torch .*\(here 0.1\)"):
        cluster.check_versions(expected)


def test_only_the_program_and_the_key_file_are_sent(tmp_path, monkeypatch):
    key = tmp_path / "key.json"
    key.write_text("{}")
    monkeypatch.delenv("STORAGE_EMULATOR_HOST", raising=False)
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(key))
    monkeypatch.setenv("HTTPS_PROXY", "http://proxy:3128")
    directory = tmp_path / "sent"
    directory.mkdir()
    environment = ray_cluster.runtime_env(directory)
    sent = {str(path.relative_to(directory)) for path in directory.rglob("*.*")}
    program = set(map(str, program_files()))
    assert {
        "gcs.py",
        "embeddings.py",
        "engine/ray/workers.py",
        "models/backends/fused.py",
    } < program
    assert sent == program | {"credentials.json"}
    assert environment["env_vars"]["HTTPS_PROXY"] == "http://proxy:3128"
    assert environment["env_vars"]["GOOGLE_APPLICATION_CREDENTIALS"] == "credentials.json"


def test_weights_arrive_where_the_file_is_missing_or_another(cluster, tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    path = tmp_path / "w.bin"
    path.write_bytes(b"the weights")
    (file,) = ray_cluster.ship([path], to_others=True)
    assert ray_cluster.on_this_node(file) == path
    path.write_bytes(b"others")
    arrived = ray_cluster.on_this_node(file)
    assert arrived != path and arrived.read_bytes() == b"the weights"
    assert ray_cluster.on_this_node(file) == arrived
    with pytest.raises(ray_cluster.ClusterError, match="has changed"):
        ray_cluster.on_this_node(file._replace(content=None, digest="0" * 64))


def test_packs_and_results_keep_every_number():
    pixels = np.random.default_rng(0).integers(0, 256, (5, 7, 3), np.uint8)
    clip = np.random.default_rng(1).integers(0, 256, (224, 224, 3), np.uint8)
    rows = [Row(i, ListedObject(f"t/{i}.jpg", 10 + i, 0, 0)) for i in (4, 9)]
    times = [StageTime(name, 1, 0.5) for name in ("fetch", "decode", "thumbnails")]
    broken = ray_stages.NotEmbedded("broken", changed=True)
    pack = ray_stages.packed([(rows[0], broken), (rows[1], Prepared(pixels, clip, b""))], times)
    described = pack["rows"][0].as_py()
    nothing, image = ray_stages._unpacked(
        described, pack["pixels"][0].values, pack["clip_inputs"][0].values
    )
    assert nothing is None
    assert (image.pixels == pixels).all() and (image.clip_input == clip).all()
    embedding = Embedding([np.full(d, d, np.float32) for d in DIMENSIONS.values()], 7)
    table = ray_stages.results(described, [None, embedding], [0.0] * 8)
    (failed, found_broken), (done, found) = ray_stages.read_results(table)
    assert (failed.row, found_broken) == (4, broken)
    assert (done.row, done.listed.name, done.listed.size) == (9, "t/9.jpg", 19)
    assert [vector[0] for vector in found.vectors] == list(DIMENSIONS.values())
    assert found.imagenet_class == 7


def test_one_embedder_a_gpu_or_a_node():
    assert ray_cluster.gpu_pool(8)[:3] == (8, 0.5, 1)
    assert ray_cluster.cpu_pool([16, 32])[:3] == (2, 13.9, 0)
    for cpus in (1, 2, 3, 4, 64):
        share = ray_cluster.cpu_pool([cpus]).cpus
        assert share != ray_pipeline.PREPARE_CPUS  # else Ray Data joins the stages
        assert share + ray_pipeline.PREPARE_CPUS <= cpus
