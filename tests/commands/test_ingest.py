"""The command as a user runs it: over HTTP, against both generations of the server."""

import io
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import threading
import uuid
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import ExifTags, Image

import gcs
import ingest
from common.program import ROOT
from common.terminal import size
from dataset.arrays import BYTES_PER_ROW, DIMENSIONS
from engine.loading import ModelLoader, ModelOptions
from testing.embedders import LoaderWithoutModels, embedding_of
from tests.harness import REAL, Index, ended, run, wait_for, weight_options
from tests.local_forager.page_server import ask
from tests.stand_in import Rule, StandIn
from weights.resnet50 import resnet_shapes

EXPECTED = ROOT / "tests" / "reference" / "expected"
PHOTOGRAPHS = ROOT / "tests" / "reference" / "images"


@pytest.mark.parametrize("generation", ["A", "B"])
def test_every_object_of_the_index(world, servers, fast_models, generation):
    world.server = servers[generation]
    files = world.put("t/b.v1.jpg", "t/a.png", "t/x/c.jpeg", "v/0.jpg")
    world.ingest()
    index = Index(world.objects())
    assert str(uuid.UUID(index.id, version=4)) == index.id
    assert index.labels == ["t/a.png", "t/b.v1.jpg", "t/x/c.jpeg", "v/0.jpg"]
    assert (index.train, index.val) == ({"a": 0, "b.v1": 1, "c": 2}, {"0": 3})
    images = [Image.open(io.BytesIO(files[name])).convert("RGB") for name in index.labels]
    for row in range(4):
        vectors, number = embedding_of(np.asarray(images[row]))
        for name, vector in zip(DIMENSIONS, vectors, strict=True):
            assert (index.arrays[name][row] == vector).all()
        assert index.classes[index.labels[row].rpartition("/")[2]] == number
    assert np.allclose(np.linalg.norm(index.arrays["clip"], axis=1), 1)
    assert set(index.thumbnails) == {"a.jpg", "b.v1.jpg", "c.jpg", "0.jpg"}
    thumbnail = Image.open(io.BytesIO(index.thumbnails["a.jpg"]))
    assert (thumbnail.format, thumbnail.mode, thumbnail.size) == ("JPEG", "RGB", images[0].size)
    lists, thumbnails = 5, 4  # of which are the manifest and the classes
    assert len(index.names) == len(DIMENSIONS) + lists + thumbnails
    assert world.registered() == (index.id, 3, 1)


@pytest.mark.parametrize("generation", ["A", "B"])
def test_traps_beside_and_within_the_directories(world, servers, fast_models, generation):
    world.server = servers[generation]
    world.put("t/a.jpg", "t/deep/er/b.jpeg", "t/c.png", "v/d.jpg")
    world.put("t2/no.jpg", "t.jpg", "no.jpg", "v.png", "vv/no.jpg", "T/no.jpg")
    others = "t/E.JPG t/f.Jpeg t/g.txt t/h.jpg.bak v/i.JPG t/deep/ t/j v/k.webp"
    world.put(**dict.fromkeys(others.split(), b"x"))
    result = world.ingest()
    assert Index(world.objects()).labels == ["t/a.jpg", "t/c.png", "t/deep/er/b.jpeg", "v/d.jpg"]
    for kind, *example in ((".JPG", ", such as t/E.JPG"), (".webp",), (".txt",), ("directory",)):
        assert f"({kind}{''.join(example)}" in result.stderr


def test_images_with_an_exif_rotation_are_counted(world, fast_models):
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    file = io.BytesIO()
    Image.new("RGB", (40, 30)).save(file, "JPEG", exif=exif)
    world.put("t/a.jpg", "v/b.jpg", **{"t/turned.jpg": file.getvalue()})
    assert (
        "EXIF rotations in 1 image of those embedded now are not applied: vectors and thumbnails "
        "are of the pixels as stored.\n"
    ) in world.run().stderr


def test_dry_run_leaves_nothing_behind(world, fast_models, tmp_path):
    world.put("t/a.jpg")
    world.run("--dry_run").failed("No validation images under")
    world.put("v/c.jpg")
    done = world.ingest("--dry-run")
    assert f"keep {size(2 * BYTES_PER_ROW)} on this disk" in done.stdout
    assert world.objects() == {} and world.registered() is None and list(tmp_path.iterdir()) == []


def test_viewer_url(world, fast_models):
    world.put("t/a.jpg", "v/c.jpg")
    result = world.run("--viewer-url", "https://forager.example/")
    assert result.stdout.endswith(f"Look at https://forager.example/{world.name}\n")


@pytest.mark.parametrize("generation", ["A", "B"])
def test_allow_empty_val(world, servers, fast_models, generation):
    world.server = servers[generation]
    world.put("t/a.jpg", "t/b.jpg")
    world.ingest("--allow_empty_val")
    index = Index(world.objects())
    assert (index.labels, index.val) == (["t/a.jpg", "t/b.jpg"], {})
    assert world.registered()[2] == 0


def test_the_same_command_after_success_says_that_it_is_finished(world, fast_models):
    """And another ingest is refused."""
    world.put("t/a.jpg", "t/b.jpg", "v/c.jpg")
    world.ingest()
    Path("other.pkl").write_bytes(b"other weights")
    before = world.objects()
    for options in ([], ["--dry_run"]):
        with StandIn(world.storage.url) as storage:
            result = world.ingest(*options, storage=storage)
            assert {asked.method for asked in storage.asked} == {"GET"}
            assert not [asked for asked in storage.asked if "/o?" not in asked.path]
        assert result.stdout.startswith(f"This ingest is finished: {world.name} was registered")
        assert result.stdout.count("\n") == 1
    for options, words in (
        (["--work_dir", "another"], "is already there, with 2 training and 1 validation images ("),
        (["--resnet_weights", "other.pkl"], "holds an ingest with another resnet_weights"),
    ):
        world.run(*options).failed(words)
    assert world.objects() == before


def test_a_finished_ingest_whose_bucket_changed(world, fast_models):
    """It says what changed, and gives a command that works."""
    world.put("t/a.jpg", "t/b.jpg", "v/c.jpg")
    world.ingest()
    world.storage.delete(world.images, "t/b.jpg")
    world.put("t/new.jpg", "v/new2.jpg")
    said = world.run().succeeded("  2 appeared: t/new.jpg, v/new2.jpg\n  1 vanished: t/b.jpg\n")
    command = shlex.split(said.stdout.splitlines()[-1])
    assert command[:4] == [f"SERVER_URL={world.server}", "python", "ingest.py", f"{world.name}-2"]
    grown = world.invoke(command[3:], SERVER_URL=world.server)
    assert grown.exit_code == 0 and " 2 reused, 2 embedded now" in grown.stdout
    down = world.run(storage="http://127.0.0.1:9").succeeded("This ingest is finished: ")
    assert "Whether the bucket has changed since then is not known: Listing" in down.stderr


def test_without_val_path_all_images_are_for_training(world, fast_models, monkeypatch):
    world.put("t/a.jpg", "t/b.jpg")
    arguments = [word for word in world.arguments() if not word.endswith("/v")]
    refused = world.invoke(arguments)
    assert refused.exit_code == 2
    assert "VAL_PATH is missing: name the directory of the validation" in refused.stderr
    done = world.invoke([*arguments, "--allow_empty_val"])
    assert done.exit_code == 0 and world.registered()[1:] == (2, 0)
    again = world.invoke(arguments)
    assert again.stdout.startswith("This ingest is finished: ")


def test_a_finished_ingest_is_registered_on_another_server_too(world, servers, fast_models):
    world.put("t/a.jpg", "v/b.jpg")
    addresses = [servers["B"], servers["A"]]
    for world.server in addresses:
        result = world.ingest()
        assert result.stdout.endswith(f"Look at {world.server}/{world.name}\n")
        assert world.registered()[0] == Index(world.objects()).id
    assert "Embedded" not in result.stderr
    for world.server in addresses:
        said = world.run().stdout
        assert said.startswith("This ingest is finished: ")
        assert said.endswith(f"Look at {world.server}/{world.name}\n")


def test_a_dataset_that_was_deleted_is_registered_again(world, fast_models):
    world.put("t/a.jpg", "v/b.jpg")
    world.ingest()
    index_id = world.registered()[0]
    assert ask(f"{world.server}/page/deletion?name={world.name}", b"")[0] == 200
    assert world.registered() is None
    assert "Embedded" not in world.ingest().stderr
    assert world.registered()[0] == index_id


def test_work_directory_is_named_after_the_dataset(world, fast_models, tmp_path):
    world.put("t/a.jpg", "v/c.jpg")
    arguments = [text for text in world.arguments() if text not in ("--work_dir", "work")]
    assert world.invoke(arguments).exit_code == 0
    assert [path.name for path in tmp_path.iterdir()] == [world.name]


@pytest.fixture
def with_bad(world, fast_models):
    """Two bad images among five."""
    world.put("t/a.jpg", "t/c.jpg", "v/e.jpg", **{"t/b.jpg": b"no image", "v/d.png": b""})
    return world


def test_bad_images_are_skipped_without_loading_the_models_again(with_bad, monkeypatch):
    """The zoo in test_bad_images.py has the rest."""
    assert with_bad.run().exit_code == 1 and with_bad.registered() is None
    loads = []
    monkeypatch.setattr(LoaderWithoutModels, "start", lambda *_: loads.append("models"))
    result = with_bad.ingest("--skip_bad_images")
    assert loads == [] and "2 failed, 0 embedded now" in result.stdout
    index = Index(with_bad.objects())
    assert set(index.thumbnails) == set(index.classes) == {"a.jpg", "c.jpg", "e.jpg"}


@pytest.mark.parametrize(
    ("limit", "allowed"), [("2", None), ("40%", None), ("1", "1"), ("39%", "1"), ("0", "0")]
)
def test_more_bad_images_than_allowed_stop(with_bad, limit, allowed):
    result = with_bad.run("--skip_bad_images", "--max-bad", limit)
    assert result.exit_code == (0 if allowed is None else 1)
    if allowed is not None:
        assert f"cannot be embedded, more than the {allowed} allowed" in result.error
    assert (with_bad.registered() is None) == (allowed is not None)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--max_bad", "1%"], "--max_bad goes with --skip_bad_images."),
        (["--ray_address", "auto"], "--ray_address goes with --engine ray."),
        (["--skip_bad_images", "--max_bad", "many"], "'many' is neither a number (100)"),
        (["--skip_bad_images", "--max_bad", "101%"], "'101%' is out of range"),
        (["--skip_bad_images", "--max_bad", "-1"], "'-1' is out of range"),
        (["--skip_bad_images", "--max_bad", "nan"], "'nan' is "),
        (["--resnet_batch_size", "0"], "'0' is neither auto nor a positive number"),
        (["--clip_batch_size", "some"], "'some' is neither auto nor a positive number"),
        (["--backend", "other"], "'other' is not one of"),
        (["--decode_workers", "0"], "0 is not in the range"),
        (["--bucket", "gs://foragerml"], "'gs://foragerml' is no bucket name: write foragerml."),
        (["--bucket", "My Bucket"], "'My Bucket' is no bucket name: bucket names are 3 to 222"),
        (["--no_such_option"], "No such option"),
        (["--verbose"], "Error: No such option '--verbose'.\n"),
        (["--relis"], "Error: No such option '--relis'.\n"),  # nor one that is gone
        (["--skip_bad"], "No such option '--skip_bad'. Did you mean '--skip_bad_images'?"),
        (["--viewer_url", "x.org:4000"], "'x.org:4000' is no address of a web page: write it as"),
        (["--viewer_url", "http://x?key=1"], "'http://x?...' is no address of a web page"),
        (["--resnet_weights", "https://u:secret@h/R-50.pkl"], "https://... is an address, not a"),
        (["--clip_weights", "https://u:secret@h/clip"], "https://... is an address, not a"),
        (["--relist"], "--relist is gone: the same command takes today's listing by itself"),
        (["--reuse", "https://u:secret@h/birds"], "https://... is an address, not a path"),
        (["--reuse", "./" + "x" * 300], "xxx' is too long for the name of a file."),
        (["--work_dir", "x" * 300], "xxx' is too long for the name of a file."),
    ],
)
def test_wrong_options_are_refused_before_any_work(options, message):
    arguments = ["name", "gs://bucket/t", "gs://bucket/v", *options]
    result = CliRunner().invoke(ingest.main, arguments)
    assert result.exit_code == 2
    assert message in result.stderr and "secret" not in result.output
    assert "Usage: " in result.stderr


@pytest.fixture(scope="module")
def photographs():
    """(file name, bytes) of the reference photographs, in row order."""
    names = json.loads((EXPECTED / "names.json").read_text())
    return [(name, (PHOTOGRAPHS / name).read_bytes()) for name in names]


def assert_expected(index, rows):
    """`rows`: object name -> row in expected/."""
    assert index.labels == sorted(rows)
    order = [rows[name] for name in index.labels]
    for name, array in index.arrays.items():
        assert np.abs(array - np.load(EXPECTED / f"{name}.npy")[order]).max() < 1e-5


def test_reference_photographs_as_a_user_runs_it(world, weights_dir, photographs):
    """With both real models, in a process of its own."""
    names = [f"{'ttv'[row % 3]}/{name}" for row, (name, _) in enumerate(photographs)]
    world.put(**dict(zip(names, (data for _, data in photographs), strict=True)))
    server = {"SERVER_URL": world.server, "FORAGER_BUCKET": world.index}
    command = [*REAL, world.name]
    command += [f"gs://{world.images}/t/", f"gs://{world.images}/v", *weight_options(weights_dir)]
    result = run(command, {**os.environ, **server}).succeeded()
    assert_expected(Index(world.objects()), {name: row for row, name in enumerate(names)})
    assert world.registered()[1:] == (8, 4)
    assert result.stdout.endswith(f"Look at {world.server}/{world.name}\n")
    assert "Warning" not in result.stderr


@pytest.mark.soak  # tests/models has the same of the models
def test_numbers_depend_on_no_batch_size_and_no_order(world, weights_dir, photographs):
    order = np.random.default_rng(4).permutation([0, 2, 5, 6, 7, 8, 9, 10])
    files, rows = {"v/v.jpg": photographs[7][1]}, {"v/v.jpg": 7}
    for place, row in enumerate(order):
        name, data = photographs[row]
        for copy in range(2 if "640x480" in name else 1):  # enough of one size for a batch
            files[f"t/{place:02}-{copy}-{name}"] = data
            rows[f"t/{place:02}-{copy}-{name}"] = row
    world.put(**files)
    world.ingest(*weight_options(weights_dir), "--resnet_batch_size", "4")
    assert_expected(Index(world.objects()), rows)


LOADING_CODE = """
import runpy, sys
from engine.loading import ModelLoader

def load_for_ever(self, precision):
    import torch
    image, weight = torch.ones(1, 64, 64, 64), torch.ones(64, 64, 3, 3)
    while True:
        torch.nn.functional.conv2d(image, weight)

ModelLoader.load = load_for_ever
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def test_a_refusal_while_the_models_load_ends_at_once(world, weights_dir):
    """Torch aborts a process that ends in the ordinary way while a thread is in it."""
    world.put("t/a.jpg")
    program = [sys.executable, "-c", LOADING_CODE, REAL[-1]]
    options = weight_options(weights_dir)
    result = ended(world.start(*options, program=program, PYTHONPATH=str(ROOT))).failed()
    assert result.stderr.splitlines()[-1].startswith("Error: No validation images under gs://")


HELP_CODE = """
import os, runpy, sys
os._exit = sys.exit  # else nothing could be asked afterwards
sys.argv = [sys.argv[1], "--help"]
try:
    runpy.run_path(sys.argv[0], run_name="__main__")
finally:
    print(*sys.modules, file=sys.stderr)
"""


@pytest.mark.parametrize(
    ("command", "libraries"),
    [
        ("ingest.py", {"torch", "google.cloud.storage"}),
        ("ingest_labels.py", {"torch", "google.cloud", "aiohttp", "numpy"}),
    ],
)
def test_help_has_an_example_and_loads_no_large_library(command, libraries):
    """google-cloud-storage alone takes half a second; bench.start measures the whole."""
    code = [sys.executable, "-c", HELP_CODE, str(ROOT / command)]
    result = run(code, {**os.environ, "PYTHONPATH": str(ROOT)})
    result.succeeded(f"SERVER_URL=http://host:8000 python {command} ")
    assert not libraries & set(result.stderr.split())


def test_closed_streams_change_no_exit_code():
    command = f'"{sys.executable}" ingest.py --help >&- 2>&-'
    assert subprocess.run(["sh", "-c", command], cwd=ROOT).returncode == 0


@pytest.mark.parametrize(("options", "advised"), [([], True), (["--precision", "float32"], False)])
def test_a_faster_precision_is_named(world, fast_models, options, advised):
    fast_models.bfloat16_would_be_faster = True
    world.put("t/a.jpg", "v/b.jpg")
    result = world.ingest(*options)
    assert ("--precision bfloat16" in result.stderr) is advised


def test_the_weights_that_were_checked_are_those_that_are_loaded(weights_dir, monkeypatch):
    """The arrays are read once, and given up once the models have them."""
    clip = weights_dir / "clip-vit-base-patch32"
    options = ModelOptions(
        resnet_weights=weights_dir / "R-50.pkl",
        clip_weights=str(clip),
        backend="fused",
        device="cpu",
        precision="float32",
        resnet_batch_size=None,
        clip_batch_size=None,
    )
    given = []
    monkeypatch.setattr("embeddings.Embedder", lambda *_, **named: given.append(named))
    loader = ModelLoader(options)
    assert loader.find_clip() == clip
    loader.read_resnet()
    loader.load("float32")
    loader.load("float32")
    assert len(given[0]["resnet_arrays"]) == len(resnet_shapes())
    assert given[1]["resnet_arrays"] is None


def test_interrupted_is_130_with_one_line(world, weights_dir):
    """While the real models load."""
    with StandIn(world.storage.url, Rule(r"/o\?", "hold")) as storage:
        process = world.start(*weight_options(weights_dir), storage=storage, program=REAL)
        wait_for(lambda: storage.counts["hold"])
        process.send_signal(signal.SIGINT)
        result = ended(process)
    assert (result.exit_code, result.stdout) == (130, "")
    listing, *said = result.stderr.splitlines()
    assert listing.startswith("Listing gs://")
    assert said == ["Interrupted: the same command continues where this one stopped."]


def test_a_proxy_from_the_environment_sees_every_request(world, fast_models, monkeypatch):
    world.put("t/a.jpg", "v/b.jpg")
    with StandIn() as proxy:
        for name in ("http_proxy", "HTTP_PROXY"):
            monkeypatch.setenv(name, proxy.url)
        monkeypatch.delenv("no_proxy", raising=False)
        monkeypatch.delenv("NO_PROXY", raising=False)
        result = world.run()
        paths = [asked.path for asked in proxy.asked]
    assert result.exit_code == 0, result.output
    storage = gcs.emulator_host()
    assert {path.split("/")[2] for path in paths} == {
        host.removeprefix("http://") for host in (storage, world.server)
    }
    for part in ("/o?prefix", "/t%2Fa.jpg?alt=media", "/upload/", "testPermissions"):
        assert any(path.startswith(storage) and part in path for path in paths), part
    assert any("create_dataset_v2" in path for path in paths)
    # Only what was asked for: google-cloud-storage would ask for the buckets' metadata too.
    assert not [path for path in paths if re.search(r"/b/[^/]+(\?|$)", path)]


def test_no_proxy_is_respected(world, fast_models, monkeypatch):
    world.put("t/a.jpg", "v/b.jpg")
    with StandIn() as proxy:
        monkeypatch.setenv("http_proxy", proxy.url)
        monkeypatch.setenv("no_proxy", "localhost,127.0.0.1")
        world.ingest()
        assert proxy.asked == []


def test_threads_that_cannot_be_started_are_one_sentence(world, fast_models, monkeypatch):
    start = threading.Thread.start

    def limited(thread):
        if thread.name.startswith("embed-"):
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", limited)
    world.put("t/a.jpg", "v/b.jpg")
    world.run().failed("This process cannot start more threads: raise the limit")
