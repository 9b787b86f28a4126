"""What takes minutes: `make soak`."""

import contextlib
import os
import random
import signal
import time

import numpy as np
import pytest
from pyarrow import parquet

from common.program import ROOT
from dataset import arrays
from dataset.manifest import manifest_path
from tests.harness import REAL, ended, feeders_of, pictures, wait_for, weight_options
from tests.stand_in import KINDS, StandIn

pytestmark = [pytest.mark.soak, pytest.mark.timeout(1800)]
KILLS = 50
IMAGES, SHARE = 1000, 0.1


@pytest.fixture
def ingested(make_world):
    """Makes a dataset of these objects and ingests it without stops."""

    def make(objects):
        made = make_world(objects, "undisturbed")
        assert ended(made.start(), 600).exit_code == 0
        return made

    return make


def test_fifty_kills_at_random_moments(ingested, tmp_path):
    """As often as it is killed, the same command ends with what an undisturbed run leaves."""
    moments = random.Random(0)
    undisturbed = ingested(pictures(45, 15))
    small = {"FAKE_CHECKPOINT_S": "0.1", "FAKE_WINDOW": "6"}
    kills, rounds, made = 0, 0, None
    while kills < KILLS:
        made = undisturbed.again(tmp_path / f"round-{rounds}")
        rounds += 1
        while kills < KILLS:
            process = made.start(**small, FAKE_DELAY_S="0.05")
            time.sleep(moments.uniform(0.4, 3.5))
            process.kill()
            code = ended(process).exit_code
            made.assert_done_is_done()
            if code == 0:
                break
            kills += 1
            if "registered" in made.options():
                break
        if "registered" not in made.options():
            made.ingest(**small)
        made.assert_same(undisturbed)
    print(f"{kills} kills in {rounds} ingests of 60 images")


def test_feeders_killed_at_random_moments(ingested, tmp_path):
    """The run ends with what an undisturbed run leaves: each image is tried twice."""
    moments = random.Random(0)
    undisturbed = ingested(pictures(270, 30))
    made = undisturbed.again(tmp_path / "made")
    options = "--decode_in", "processes", "--decode_workers", "3"
    kills = 0
    with open(tmp_path / "said", "w") as said:
        output = {"stdout": said, "stderr": said}
        process = made.start(*options, popen=output, FAKE_DELAY_S="0.05")
        while process.poll() is None:
            time.sleep(moments.uniform(0.5, 1.5))
            for feeder in feeders_of(process.pid)[:1]:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(feeder, signal.SIGKILL)
                    kills += 1
    assert process.returncode == 0, (tmp_path / "said").read_text()
    made.assert_same(undisturbed)
    print(f"{kills} feeders killed for {len(made.done())} images")


def test_a_thousand_images_through_faults(ingested, tmp_path):
    """With every tenth request failing in one of all ways, the result is the same to the byte."""
    undisturbed = ingested(pictures(IMAGES * 9 // 10, IMAGES // 10))
    made = undisturbed.again(tmp_path / "made")
    with (
        StandIn(made.storage.url, share=SHARE, kinds=KINDS, seed=1) as storage,
        StandIn(made.server, share=SHARE, kinds=KINDS, seed=2) as server,
    ):
        done = ended(made.start(storage=storage, server=server), 900)
        assert done.exit_code == 0, done.stderr[-2000:]
        failed = sum(storage.counts[kind] for kind in KINDS)
        assert failed > 0.07 * len(storage.asked) and all(storage.counts[kind] for kind in KINDS)
    made.assert_same(undisturbed)
    print(f"{failed} of {len(storage.asked)} requests failed: {dict(storage.counts)}")


def test_real_models_killed_in_the_middle_give_the_same_vectors(make_world, weights_dir, tmp_path):
    """Within 1e-6, although the second run meets the images in other batches."""
    photographs = sorted((ROOT / "tests" / "reference" / "images").iterdir())
    objects = {f"train/{path.name}": path.read_bytes() for path in photographs[:9]}
    objects |= {f"val/{path.name}": path.read_bytes() for path in photographs[9:]}
    undisturbed = make_world(objects)
    made = undisturbed.again(tmp_path / "again")

    def begin(made):
        return made.start(*weight_options(weights_dir), program=REAL)

    assert ended(begin(undisturbed), 300).exit_code == 0
    process = begin(made)
    wait_for(made.done, timeout=120)
    process.kill()
    ended(process)
    made.assert_done_is_done()
    assert 0 < len(made.done()) < len(objects)
    assert ended(begin(made), 300).exit_code == 0
    for name in arrays.DIMENSIONS:
        vectors = [
            np.fromfile(arrays.array_path(d.work, name), arrays.DTYPE) for d in (made, undisturbed)
        ]
        assert abs(vectors[0] - vectors[1]).max() <= 1e-6
    left = undisturbed.left_behind()
    different = {name for name, crc in made.left_behind().items() if left[name] != crc}
    with_vectors = "embeddings.npy", "manifest.parquet"  # which has their checksums
    assert not [name for name in different if not name.endswith(with_vectors)]
    one, other = (
        parquet.read_table(manifest_path(d.work)).drop_columns(["vectors_crc32c", "row_crc32c"])
        for d in (made, undisturbed)
    )
    assert one.equals(other)
    assert made.registered() == (made.index_id(), 9, 3)
