"""The command as a user runs it: over HTTP, against both generations of the server."""

import io
import json
import os
import re
import signal
import subprocess
import sys
import threading
import urllib.request
import uuid
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import ExifTags, Image

import gcs
import ingest
from common.terminal import size
from dataset.arrays import BYTES_PER_ROW, DIMENSIONS
from engine.loading import ModelLoader, ModelOptions
from testing.embedders import LoaderWithoutModels, embedding_of
from testing.photographs import picture
from tests.harness import Index, ended, pixels_of, run, start
from tests.stand_in import Answer, StandIn
from weights.resnet50 import resnet_shapes

ROOT = Path(__file__).parents[2]
EXPECTED = ROOT / "tests" / "reference" / "expected"
PHOTOGRAPHS = ROOT / "tests" / "reference" / "images"


def dataset(world, name=None):
    """What the server knows of the dataset, or None."""
    url = f"{world.server}/api/get_dataset_info_v2/{name or world.name}"
    try:
        with urllib.request.urlopen(url, timeout=30) as answer:
            return json.load(answer)
    except urllib.error.HTTPError as error:
        error.close()
        return None


@pytest.mark.parametrize("generation", ["A", "B"])
def test_every_object_of_the_index(world, servers, fast_models, generation):
    world.server = servers[generation]
    files = world.put("t/b.v1.jpg", "t/a.png", "t/x/c.jpeg", "v/0.jpg")
    result = world.run()
    assert result.exit_code == 0, result.output
    index = Index(world.objects())
    assert str(uuid.UUID(index.id, version=4)) == index.id
    assert index.labels == ["t/a.png", "t/b.v1.jpg", "t/x/c.jpeg", "v/0.jpg"]
    assert (index.train, index.val) == ({"a": 0, "b.v1": 1, "c": 2}, {"0": 3})
    pixels = [pixels_of(files[name]) for name in index.labels]
    for row in range(4):
        vectors, number = embedding_of(pixels[row])
        for name, vector in zip(DIMENSIONS, vectors, strict=True):
            assert (index.arrays[name][row] == vector).all()
        assert index.classes[index.labels[row].rpartition("/")[2]] == number
    assert np.allclose(np.linalg.norm(index.arrays["clip"], axis=1), 1)
    assert set(index.thumbnails) == {"a.jpg", "b.v1.jpg", "c.jpg", "0.jpg"}
    assert (
        len(index.names) == len(DIMENSIONS) + 5 + 4
    )  # arrays, lists with manifest and classes, thumbnails
    info = dataset(world)
    assert (info["index_id"], info["num_train"], info["num_val"]) == (index.id, 3, 1)


def test_thumbnails(world, fast_models):
    sizes = {"a": (300, 400), "b": (400, 300), "c": (20, 10), "d": (1000, 200), "e": (7, 1400)}
    world.put("v/v.jpg", **{f"t/{name}.jpg": picture(1, size) for name, size in sizes.items()})
    assert world.run().exit_code == 0
    thumbnails = Index(world.objects()).thumbnails
    found = {name: Image.open(io.BytesIO(thumbnails[f"{name}.jpg"])) for name in sizes}
    assert {(image.format, image.mode) for image in found.values()} == {("JPEG", "RGB")}
    expected = {"a": (150, 200), "b": (267, 200), "c": (20, 10), "d": (1000, 200), "e": (1, 200)}
    assert {name: image.size for name, image in found.items()} == expected


@pytest.mark.parametrize("generation", ["A", "B"])
def test_traps_beside_and_within_the_directories(world, servers, fast_models, generation):
    world.server = servers[generation]
    world.put("t/a.jpg", "t/deep/er/b.jpeg", "t/c.png", "v/d.jpg")
    world.put("t2/no.jpg", "t.jpg", "no.jpg", "v.png", "vv/no.jpg", "T/no.jpg")
    others = [
        "t/E.JPG",
        "t/f.Jpeg",
        "t/g.txt",
        "t/h.jpg.bak",
        "v/i.JPG",
        "t/deep/",
        "t/j",
        "v/k.webp",
    ]
    world.put(**dict.fromkeys(others, b"x"))
    result = world.run()
    assert result.exit_code == 0, result.output
    assert Index(world.objects()).labels == ["t/a.jpg", "t/c.png", "t/deep/er/b.jpeg", "v/d.jpg"]
    assert "Skipped 2 .JPG (such as t/E.JPG): the server takes lower-case names" in result.stderr
    assert "Under another name 3 of them would be images: --dry_run" in result.stderr
    assert "Skipped 1 .webp (such as v/k.webp): the server takes .jpg, .jpeg and" in result.stderr
    assert "Skipped 1 .txt (such as t/g.txt)." in result.stderr
    assert "Skipped 1 directory (such as t/deep/)." in result.stderr


@pytest.mark.parametrize("generation", ["A", "B"])
def test_odd_names_arrive_everywhere(world, servers, fast_models, generation):
    world.server = servers[generation]
    stems = [
        "a b",
        "#1",
        "who?",
        "50%25",
        "%",
        "été",
        "e\u0301",
        "😀",
        "<b>'\"&",
        "a+b",
        "x..",
        "..y",
        "\\n",
    ]
    world.put("v/v.jpg", *(f"t/{stem}.jpg" for stem in stems))
    result = world.run()
    assert result.exit_code == 0, result.output
    index = Index(world.objects())
    names = sorted(f"t/{stem}.jpg" for stem in stems)
    assert index.labels == [*names, "v/v.jpg"]
    assert set(index.train) == set(stems)
    assert set(index.thumbnails) == {f"{stem}.jpg" for stem in [*stems, "v"]}
    assert set(index.classes) == {f"{stem}.jpg" for stem in [*stems, "v"]}
    assert dataset(world)["num_train"] == len(stems)


@pytest.mark.parametrize("slashes", ["", "/", "//"])
def test_paths_are_registered_with_one_slash(world, fast_models, slashes):
    world.put("t/a.jpg", "t2/b.jpg", "v/c.jpg")
    paths = {"train": f"gs://{world.images}/t{slashes}", "val": f"gs://{world.images}/v{slashes}"}
    result = world.run(**paths)
    assert result.exit_code == 0, result.output
    info = dataset(world)
    assert (info["num_train"], info["num_val"]) == (1, 1)


def test_messages_and_tally(world, fast_models):
    world.put("t/a.jpg", "t/b.jpg", "v/c.jpg")
    result = world.run()
    assert [line.split()[0] for line in result.stdout.splitlines()[:7]] == [
        *("step", "checks", "loading", "embedding", "upload", "registration", "in")
    ]
    assert re.search(r"Listed 2 training and 1 validation images \(\d\.\d kB\)\.", result.stderr)
    assert "Embedded 3 images in" in result.stderr
    assert re.search(
        rf"Uploaded the index to gs://{world.index}/indexes/\S+/ and verified it: 4\d\.\d kB in",
        result.stderr,
    )
    assert f"Registered {world.name} with 2 training and 1 validation images in" in result.stderr
    last = result.stdout.splitlines()[-1]
    assert last.startswith(f"{world.name}: 3 images (2 training, 1 validation), 0 failed, ")
    assert last.endswith(f"Look at {world.server}/{world.name}")


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


def test_viewer_url(world, fast_models):
    world.put("t/a.jpg", "v/c.jpg")
    result = world.run("--viewer-url", "https://forager.example/")
    assert result.stdout.endswith(f"Look at https://forager.example/{world.name}\n")


def test_dry_run_leaves_nothing_behind(world, fast_models, tmp_path):
    world.put("t/a.jpg", "t/b.png", "v/c.jpg", **{"t/d.JPG": b"x"})
    result = world.run("--dry-run")
    assert result.exit_code == 0, result.output
    lines = [line.split() for line in result.stdout.splitlines()]
    assert lines[0] == ["objects", "number", "size"]
    assert lines[1][:2] == ["training", "2"]
    assert lines[2][:2] == ["validation", "1"]
    assert lines[3] == ["skipped:", ".JPG", "1", "-"]
    assert f"keep {size(3 * BYTES_PER_ROW)} on this disk, and upload about " in result.stdout
    assert f" to gs://{world.index}.\n" in result.stdout
    assert "Every check passed. This was a dry run: nothing was changed." in result.stdout
    assert world.objects() == {}
    assert dataset(world) is None
    assert list(tmp_path.iterdir()) == []


def test_dry_run_of_an_invalid_ingest_fails(world, fast_models, tmp_path):
    world.put("t/a.jpg")
    result = world.run("--dry_run")
    assert result.exit_code == 1
    assert "No validation images under" in result.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("generation", ["A", "B"])
def test_allow_empty_val(world, servers, fast_models, generation):
    world.server = servers[generation]
    world.put("t/a.jpg", "t/b.jpg")
    result = world.run("--allow_empty_val")
    assert result.exit_code == 0, result.output
    index = Index(world.objects())
    assert (index.labels, index.val) == (["t/a.jpg", "t/b.jpg"], {})
    assert dataset(world)["num_val"] == 0


def test_second_ingest_of_a_name_is_refused_with_its_counts(world, fast_models):
    world.put("t/a.jpg", "t/b.jpg", "v/c.jpg")
    assert world.run().exit_code == 0
    before = world.objects()
    result = world.run("--work_dir", "another")
    assert result.exit_code == 1
    assert (
        f"Error: The dataset {world.name} is already there, with 2 training and 1 validation "
        f"images (index {Index(before).id}): choose another name.\n"
    ) in result.stderr
    assert world.objects() == before


def test_the_same_command_after_success_says_that_it_is_finished(
    world, fast_models, emulator, monkeypatch
):
    world.put("t/a.jpg", "t/b.jpg", "v/c.jpg")
    assert world.run().exit_code == 0
    with StandIn(emulator) as storage:
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", storage.url)
        result = world.run()
        assert storage.asked == []
    assert result.exit_code == 0
    assert result.stdout == (
        f"This ingest is finished: {world.name} was registered with 2 training and 1 validation "
        f"images (index {Index(world.objects()).id}). Look at {world.server}/{world.name}\n"
    )


def test_a_finished_ingest_is_registered_on_another_server_too(world, servers, fast_models):
    world.put("t/a.jpg", "v/b.jpg")
    addresses = [servers["B"], servers["A"]]
    for world.server in addresses:
        result = world.run()
        assert result.exit_code == 0, result.output
        assert result.stdout.endswith(f"Look at {world.server}/{world.name}\n")
        assert dataset(world)["index_id"] == Index(world.objects()).id
    assert "Embedded" not in result.stderr
    for world.server in addresses:
        said = world.run().stdout
        assert said.startswith("This ingest is finished: ")
        assert said.endswith(f"Look at {world.server}/{world.name}\n")


def test_after_success_another_path_is_named(world, fast_models):
    world.put("t/a.jpg", "v/c.jpg", "w/d.jpg")
    assert world.run().exit_code == 0
    result = world.run(val=f"gs://{world.images}/w")
    assert result.exit_code == 1
    assert f"holds an ingest with another val_path (gs://{world.images}/v/, now" in result.stderr


def test_after_success_other_weights_are_named(world, fast_models):
    world.put("t/a.jpg", "v/c.jpg")
    assert world.run().exit_code == 0
    Path("other.pkl").write_bytes(b"other weights")
    result = world.run("--resnet_weights", "other.pkl")
    assert result.exit_code == 1
    assert "holds an ingest with another resnet_weights" in result.stderr


def test_failed_images_that_are_skipped_need_no_models(world, fast_models, monkeypatch):
    put_bad(world)
    assert world.run().exit_code == 1
    loads = []
    monkeypatch.setattr(LoaderWithoutModels, "start", lambda *_: loads.append("models"))
    result = world.run("--skip_bad_images")
    assert result.exit_code == 0, result.output
    assert loads == []


def test_work_directory_is_named_after_the_dataset(world, fast_models, tmp_path):
    world.put("t/a.jpg", "v/c.jpg")
    arguments = [text for text in world.arguments() if text not in ("--work_dir", "work")]
    assert world.invoke(arguments).exit_code == 0
    assert [path.name for path in tmp_path.iterdir()] == [world.name]


def put_bad(world):
    """Two bad images among five."""
    world.put("t/a.jpg", "t/c.jpg", "v/e.jpg", **{"t/b.jpg": b"no image", "v/d.png": b""})


def test_bad_images_stop_before_anything_is_registered(world, fast_models):
    put_bad(world)
    result = world.run()
    assert result.exit_code == 1
    assert "2 of 5 images cannot be embedded; nothing was registered." in result.stderr
    assert "\n  t/b.jpg: not an image" in result.stderr
    assert "\n  v/d.png: the file is empty" in result.stderr
    assert "--skip_bad_images" in result.stderr
    assert dataset(world) is None
    assert {name.split("/")[0] for name in world.objects()} == {"thumbnails"}
    failed = json.loads(Path("work/failed.json").read_text())
    assert [entry["object"] for entry in failed] == ["t/b.jpg", "v/d.png"]
    assert [sorted(entry) for entry in failed] == [["object", "reason"]] * 2


@pytest.mark.parametrize("options", [(), ("--max_bad", "2"), ("--max-bad", "40%")])
def test_skipped_bad_images_keep_their_rows_with_zeros(world, fast_models, options):
    put_bad(world)
    result = world.run("--skip_bad_images", *options)
    assert result.exit_code == 0, result.output
    index = Index(world.objects())
    assert index.labels == ["t/a.jpg", "t/b.jpg", "t/c.jpg", "v/d.png", "v/e.jpg"]
    for array in index.arrays.values():
        assert array.any(axis=1).tolist() == [True, False, True, False, True]
    assert set(index.thumbnails) == {"a.jpg", "c.jpg", "e.jpg"}
    assert set(index.classes) == {"a.jpg", "c.jpg", "e.jpg"}
    assert (dataset(world)["num_train"], dataset(world)["num_val"]) == (3, 2)
    assert "5 images (3 training, 2 validation), 2 failed, 3 embedded now" in result.stdout


@pytest.mark.parametrize(("limit", "allowed"), [("1", "1"), ("39%", "1"), ("0", "0")])
def test_more_bad_images_than_allowed_stop(world, fast_models, limit, allowed):
    put_bad(world)
    result = world.run("--skip_bad_images", "--max_bad", limit)
    assert result.exit_code == 1
    assert f"cannot be embedded, more than the {allowed} allowed" in result.stderr
    assert dataset(world) is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--max_bad", "1%"], "--max_bad goes with --skip_bad_images."),
        (["--ray_address", "auto"], "--ray_address goes with --engine ray."),
        (
            ["--skip_bad_images", "--max_bad", "many"],
            "'many' is neither a number (100) nor",
        ),
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
    ],
)
def test_wrong_options_are_refused_before_any_work(options, message):
    arguments = ["name", "gs://bucket/t", "gs://bucket/v", *options]
    result = CliRunner().invoke(ingest.main, arguments)
    assert result.exit_code == 2
    assert message in result.stderr
    assert "Usage: " in result.stderr


def run_process(world, *options, **environment):
    """The command in a process of its own, as a user types it."""
    server = {"SERVER_URL": world.server, "FORAGER_BUCKET": world.index}
    command = [sys.executable, str(ROOT / "ingest.py"), world.name]
    command += [f"gs://{world.images}/t/", f"gs://{world.images}/v", *options]
    return run(command, {**os.environ, **server, **environment}, timeout=240)


@pytest.fixture(scope="module")
def photographs():
    """(file name, bytes) of the reference photographs, in row order."""
    names = json.loads((EXPECTED / "names.json").read_text())
    return [(name, (PHOTOGRAPHS / name).read_bytes()) for name in names]


def weight_options(weights_dir):
    clip = weights_dir / "clip-vit-base-patch32"
    return ["--resnet-weights", str(weights_dir / "R-50.pkl"), "--clip-weights", str(clip)]


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
    result = run_process(world, *weight_options(weights_dir))
    assert result.returncode == 0, result.stderr
    assert_expected(Index(world.objects()), {name: row for row, name in enumerate(names)})
    assert (dataset(world)["num_train"], dataset(world)["num_val"]) == (8, 4)
    assert result.stdout.endswith(f"Look at {world.server}/{world.name}\n")
    assert "Warning" not in result.stderr


def test_numbers_depend_on_no_batch_size_and_no_order(world, weights_dir, photographs):
    order = np.random.default_rng(4).permutation([0, 2, 5, 6, 7, 8, 9, 10])
    files, rows = {"v/v.jpg": photographs[7][1]}, {"v/v.jpg": 7}
    for place, row in enumerate(order):
        name, data = photographs[row]
        for copy in range(2 if "640x480" in name else 1):  # enough of one size for a batch
            files[f"t/{place:02}-{copy}-{name}"] = data
            rows[f"t/{place:02}-{copy}-{name}"] = row
    world.put(**files)
    result = world.run(*weight_options(weights_dir), "--resnet_batch_size", "4")
    assert result.exit_code == 0, result.output
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
    command = [sys.executable, "-c", LOADING_CODE, str(ROOT / "ingest.py")]
    command += world.arguments(*weight_options(weights_dir))
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    result = run(command, environment)
    assert result.returncode == 1, result.stderr
    assert result.stderr.splitlines()[-1].startswith("Error: No validation images under gs://")


HELP_CODE = """
import os, runpy, sys
os._exit = sys.exit  # else nothing could be asked afterwards
sys.argv = [sys.argv[1], "--help"]
try:
    runpy.run_path(sys.argv[0], run_name="__main__")
finally:
    print("torch" in sys.modules, "google.cloud.storage" in sys.modules, file=sys.stderr)
"""


@pytest.mark.parametrize("command", ["ingest.py", "ingest_labels.py"])
def test_help_is_fast_and_has_an_example(command):
    code = [sys.executable, "-c", HELP_CODE, str(ROOT / command)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    result, *others = [run(code, environment) for _ in range(3)]
    assert result.returncode == 0
    assert f"SERVER_URL=http://host:8000 python {command} " in result.stdout
    assert result.stderr == "False False\n", result.stderr
    # Of the processor, which other programs may use too; the fastest run counts.
    assert min(done.cpu_s for done in (result, *others)) < 1


def test_closed_streams_change_no_exit_code():
    command = f'"{sys.executable}" ingest.py --help >&- 2>&-'
    assert subprocess.run(["sh", "-c", command], cwd=ROOT).exit_code == 0


@pytest.mark.parametrize(("options", "advised"), [([], True), (["--precision", "float32"], False)])
def test_a_faster_precision_is_named(world, fast_models, options, advised):
    fast_models.bfloat16_would_be_faster = True
    world.put("t/a.jpg", "v/b.jpg")
    result = world.run(*options)
    assert result.exit_code == 0, result.output
    assert ("--precision bfloat16" in result.stderr) is advised


def test_the_weights_that_were_checked_are_those_that_are_loaded(weights_dir, monkeypatch):
    """The arrays are read once, and given up once the models have them."""
    clip = weights_dir / "clip-vit-base-patch32"
    options = ModelOptions(
        weights_dir / "R-50.pkl", str(clip), "fused", "cpu", "float32", None, None
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


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_is_130_with_one_line(world, emulator, weights_dir, number):
    waiting, go_on = threading.Event(), threading.Event()

    def stall(asked):
        if "/o?" in asked.path:
            waiting.set()
            go_on.wait(300)

    with StandIn(emulator, stall) as storage:
        command = [sys.executable, str(ROOT / "ingest.py")]
        command += world.arguments(*weight_options(weights_dir))
        environment = {**os.environ, "STORAGE_EMULATOR_HOST": storage.url}
        process = start(command, environment)
        assert waiting.wait(100)
        process.send_signal(number)
        result = ended(process)
        go_on.set()
    assert (result.returncode, result.stdout) == (130, "")
    assert result.stderr == "Interrupted: the same command continues where this one stopped.\n"


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
    with StandIn(None, lambda asked: Answer(502)) as proxy:
        monkeypatch.setenv("http_proxy", proxy.url)
        monkeypatch.setenv("no_proxy", "localhost,127.0.0.1")
        result = world.run()
        assert result.exit_code == 0, result.output
        assert proxy.asked == []


def test_threads_that_cannot_be_started_are_one_sentence(world, fast_models, monkeypatch):
    start = threading.Thread.start

    def limited(thread):
        if thread.name.startswith("embed-"):
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", limited)
    world.put("t/a.jpg", "v/b.jpg")
    result = world.run()
    assert result.exit_code == 1
    assert "Error: This process cannot start more threads: raise the limit" in result.stderr
