"""The command with --engine ray, on a Ray of its own on 127.0.0.1."""

import math
import os
import signal
import sys
import uuid
from pathlib import Path

import numpy as np
import pytest

from common.program import ROOT
from tests.engine.ray_ingest import write_weights
from tests.harness import Index, ended, run, start, wait_for
from tests.stand_in import Rule, StandIn

pytest.importorskip("ray", reason="Ray is not installed: pip install -r requirements-ray.txt")

import importlib.util  # noqa: E402

pytestmark = pytest.mark.ray
RAY_INGEST = [sys.executable, str(Path(__file__).with_name("ray_ingest.py"))]


def processes_with(marker):
    """The processes whose environment contains these bytes."""
    found = []
    for directory in Path("/proc").glob("[0-9]*"):
        try:
            if marker in (directory / "environ").read_bytes():
                found.append(int(directory.name))
        except OSError:
            continue
    return found


@pytest.mark.soak
def test_what_the_local_engine_began_ends_on_ray_with_the_same_index(world, weights_dir):
    """Both with the real models. Half of the images are empty files at first."""
    pictures = world.put(*[f"t/{i}.jpg" for i in range(3)], "t/a.png", "v/val.jpg")
    options = ["--resnet_weights", str(weights_dir / "R-50.pkl")]
    options += ["--clip_weights", str(weights_dir / "clip-vit-base-patch32")]
    undisturbed = world.run(*options, "--work_dir", "other", name=f"{world.name}-local")
    assert undisturbed.exit_code == 0, undisturbed.output
    expected = Index(world.objects())

    world.index = world.client.create_bucket(f"{world.index}-2").name
    empty = ("t/1.jpg", "t/a.png", "v/val.jpg")
    world.put(**dict.fromkeys(empty, b""))
    begun = world.run(*options)
    assert "3 of 5 images cannot be embedded" in begun.stderr
    world.put(**{name: pictures[name] for name in empty})
    command = [sys.executable, str(ROOT / "ingest.py")]
    done = run([*command, *world.arguments(*options, "--engine", "ray")], timeout=450)
    assert done.exit_code == 0, done.stderr
    said = [line.split()[0] for line in done.stderr.split("\n") if line and "%|" not in line]
    steps = "Listing Listed Since Continuing Embedding Embedded Uploaded Registered"
    assert said == steps.split(), done.stderr
    assert "5 images (4 training, 1 validation), 0 failed, 3 embedded now" in done.stdout

    index = Index(world.objects())
    assert (index.labels, index.train, index.val) == (expected.labels, expected.train, expected.val)
    assert (index.classes, index.thumbnails) == (expected.classes, expected.thumbnails)
    for name, array in expected.arrays.items():
        np.testing.assert_allclose(index.arrays[name], array, atol=1e-6, rtol=0)


def test_ctrl_c_ends_with_130_and_leaves_no_process(world, emulator, tmp_path):
    world.put(*[f"t/{i}.jpg" for i in range(8)], "v/val.jpg")
    marker = f"FORAGER_TEST={uuid.uuid4()}"
    options = [*write_weights(tmp_path / "weights"), "--engine", "ray"]
    with StandIn(emulator, Rule(r"GET /storage/.*alt=media", "hold")) as storage:
        environment = dict([*os.environ.items(), marker.split("=")])
        environment |= {"STORAGE_EMULATOR_HOST": storage.url, "FAKE_CHILD": "1"}
        command = [*RAY_INGEST, *world.arguments(*options)]
        process = start(command, environment, start_new_session=True)
        wait_for(lambda: storage.counts["hold"] or process.poll() is not None, math.inf)
        assert len(processes_with(marker.encode())) > 1
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does
        done = ended(process)
    assert done.exit_code == 130, done.stderr
    assert done.stderr.endswith("Interrupted: the same command continues where this one stopped.\n")
    wait_for(lambda: not processes_with(marker.encode()), math.inf)


@pytest.mark.parametrize(
    ("address", "words"),
    [
        (
            "127.0.0.1:1",
            "Error: No Ray cluster answers at 127.0.0.1:1 (Connection refused): use the address "
            "that `ray start` printed on the head node, or auto if this machine is a node of the "
            "cluster.\n",
        ),
        (
            "ray://127.0.0.1:10001",
            "Error: --ray_address ray://127.0.0.1:10001 is not auto, HOST or HOST:PORT. Ray's "
            "client is not supported: run this command on a node of the cluster, such as the head "
            "node.\n",
        ),
        (
            "127.0.0.1:notaport",
            "No Ray cluster answers at 127.0.0.1:... (not HOST:PORT)",
        ),
        (
            "user:secret@127.0.0.1",
            "No Ray cluster answers at 127.0.0.1 (not HOST:PORT)",
        ),
        ("user:secret@127.0.0.1:1", "No Ray cluster answers at 127.0.0.1:1 ("),
    ],
)
def test_wrong_address_is_one_sentence(world, fast_models, address, words):
    world.put("t/0.jpg", "v/val.jpg")
    result = world.run("--engine", "ray", "--ray_address", address)
    assert result.exit_code == 1
    assert words in result.stderr and "Traceback" not in result.output
    assert not Path("work/state.sqlite").exists()


def test_missing_ray_says_how_to_get_it(world, fast_models, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    world.put("t/0.jpg", "v/val.jpg")
    result = world.run("--engine", "ray")
    assert result.exit_code == 1
    assert result.stderr.endswith(
        "Error: --engine ray needs Ray, which is not installed: run `pip install -r "
        "requirements-ray.txt`.\n"
    )
