"""--reuse: what another index has already is copied, and only the rest is embedded."""

import io
import json
import re
import signal
import sqlite3
from contextlib import closing
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from dataset.arrays import DIMENSIONS, array_path
from dataset.state.rows import State
from tests.harness import Index, ended, has_only_a_report, picture, run_here, start
from tests.stand_in import KINDS, Rule, StandIn

IMAGE = r"GET /storage/.*o/(train|val).*alt=media"
QUICK = ("503", "reset", "flip")  # of the faults; the others are for the soak
COPY, RANGE = r"POST /batch/", r"GET /storage/.*embeddings.npy.*alt=media"


@pytest.fixture
def grown(world, fast_models):
    """A dataset "old" in the work directory old/, and one image more in the bucket."""
    world.put("t/a.jpg", "t/b.jpg", "v/c.png")
    world.old = f"old-{world.name}"
    result = world.run("--work_dir", "old", name=world.old)
    assert result.exit_code == 0, result.output
    world.old_id = Index(world.objects()).id
    world.put("t/new.jpg")
    fast_models.batches.clear()
    return world


def embedded(world):
    return sum(world.embedder.batches)


def new_index(world):
    """The objects of the index that is not the old one."""
    return {n: data for n, data in world.objects().items() if world.old_id not in n}


def fresh_index(world):
    """What an ingest without --reuse gives, in an index bucket of its own."""
    before, world.index = world.index, world.client.create_bucket(f"{world.index}-fresh").name
    result = world.run("--work_dir", "fresh", name=f"fresh-{world.name}")
    assert result.exit_code == 0, result.output
    objects, world.index = world.objects(), before
    return objects


def without_id(objects):
    """The objects by name without the index id; of the manifest its rows."""
    return {
        re.sub(r"/[-0-9a-f]{36}/", "/ID/", name): (
            pq.read_table(io.BytesIO(data)).to_pylist() if name.endswith(".parquet") else data
        )
        for name, data in objects.items()
    }


def test_only_new_images_are_embedded_and_the_index_is_the_same(grown):
    result = grown.run("--reuse", grown.old)
    assert result.exit_code == 0, result.output
    assert embedded(grown) == 1
    assert f"Reusing 3 images (3 from {grown.old}).\nEmbedding 1 image: 1 new." in result.stderr
    assert "0 failed, 3 reused, 1 embedded now" in result.stdout
    assert without_id(new_index(grown)) == without_id(fresh_index(grown))
    with closing(State.open_checked(Path("work/state.sqlite"))) as state:
        assert state.reused() == 3
    with closing(sqlite3.connect("work/state.sqlite")) as db:
        found = db.execute("SELECT object, source FROM rows ORDER BY row").fetchall()
    assert found == [
        ("t/a.jpg", f"{grown.old_id}/0"),
        ("t/b.jpg", f"{grown.old_id}/1"),
        ("t/new.jpg", None),
        ("v/c.png", f"{grown.old_id}/2"),
    ]
    assert not Path("work/reuse.sqlite").exists() and not Path("work/reuse.parquet").exists()


def test_a_dry_run_says_what_would_be_reused_and_why_not_the_others(grown):
    grown.put(**{"t/b.jpg": picture(99)})
    result = grown.run("--reuse", grown.old, "--dry_run")
    assert result.exit_code == 0, result.output
    assert f"Would reuse 2 images (2 from {grown.old}).\n" in result.stdout
    assert "Would embed 2 images: 1 new, 1 changed.\n" in result.stdout
    assert embedded(grown) == 0 and not Path("work").exists()


def test_the_same_bytes_under_other_names_are_reused(grown):
    content = grown.client.bucket(grown.images).blob("t/a.jpg").download_as_bytes()
    grown.put(**{"w/x/one.jpeg": content, "w/two.png": content})
    result = grown.run("--reuse", grown.old, train=f"gs://{grown.images}/w")
    assert result.exit_code == 0, result.output
    assert embedded(grown) == 0 and "3 reused, 0 embedded now" in result.stdout
    index = Index(new_index(grown))
    assert index.labels == ["w/two.png", "w/x/one.jpeg", "v/c.png"]
    assert (index.arrays["clip"][0] == index.arrays["clip"][1]).all()
    assert set(index.thumbnails) == {"one.jpg", "two.jpg", "c.jpg"}


def test_a_work_directory_that_was_never_registered_is_reused(world, fast_models):
    world.put("t/a.jpg", "v/c.jpg", **{"t/bad.jpg": b"no image"})
    stopped = world.run("--work_dir", "old", name=f"never-{world.name}")
    assert stopped.exit_code == 1 and "cannot be embedded" in stopped.stderr
    world.old_id = next(iter(world.objects())).split("/")[1]
    world.put("t/bad.jpg")
    fast_models.batches.clear()
    result = world.run("--reuse", "./old")
    assert result.exit_code == 0, result.output
    assert embedded(world) == 1
    assert "(2 from ./old).\nEmbedding 1 image: 1 changed." in result.stderr
    assert without_id(new_index(world)) == without_id(fresh_index(world))
    assert not Path("old/index/manifest.parquet").exists()


def test_several_sources_are_searched_in_order(grown):
    first = grown.run("--work_dir", "second", name=f"second-{grown.name}")
    assert first.exit_code == 0, first.output
    grown.put("t/newer.jpg")
    grown.embedder.batches.clear()
    result = grown.run("--reuse", "./old", "--reuse", f"second-{grown.name}")
    assert result.exit_code == 0, result.output
    assert f"(3 from ./old, 1 from second-{grown.name})" in result.stderr
    assert embedded(grown) == 1


def test_rows_that_failed_are_tried_again(world, fast_models):
    world.put("t/a.jpg", "v/c.jpg", **{"t/bad.jpg": b"no image"})
    old = f"old-{world.name}"
    assert world.run("--work_dir", "old", "--skip_bad_images", name=old).exit_code == 0
    result = world.run("--reuse", old)
    assert "Embedding 1 image: 1 failed there." in result.stderr
    assert result.exit_code == 1 and "1 of 3 images cannot be embedded" in result.stderr
    result = world.run("--reuse", old, "--skip_bad_images")
    assert result.exit_code == 0 and "1 failed, 2 reused, 0 embedded now" in result.stdout


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["--resnet_weights", "other"], "other ResNet-50 weights"),
        (["--clip_weights", "other"], "other CLIP weights"),
        (["--backend", "transformers"], "--backend fused"),
    ],
)
def test_vectors_that_were_computed_otherwise_are_not_taken(grown, options, reason):
    Path("other").write_bytes(b"other weights")
    result = grown.run("--reuse", grown.old, *options)
    assert result.exit_code == 0, result.output
    assert embedded(grown) == 4
    assert "Embedding 4 images: 1 new, 3 computed otherwise." in result.stderr
    assert f"Nothing is taken from {grown.old}: it was computed with {reason}." in result.stderr


def manifest_name(world):
    return f"indexes/{world.old_id}/manifest.parquet"


def rewrite(world, change):
    blob = world.client.bucket(world.index).blob(manifest_name(world))
    table = pq.read_table(io.BytesIO(blob.download_as_bytes()))
    file = io.BytesIO()
    pq.write_table(change(table), file)
    blob.upload_from_string(file.getvalue())


def with_metadata(**changes):
    def change(table):
        metadata = json.loads(table.schema.metadata[b"forager"]) | changes
        return table.replace_schema_metadata({b"forager": json.dumps(metadata).encode()})

    return change


def cut(world):
    blob = world.client.bucket(world.index).blob(manifest_name(world))
    blob.upload_from_string(blob.download_as_bytes()[:-9])


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (cut, "is no manifest of an index: restore it"),
        (
            lambda world: world.client.bucket(world.index).delete_blob(manifest_name(world)),
            "and a manifest tells which images and weights its vectors belong to",
        ),
        (lambda world: rewrite(world, lambda t: t.slice(0, 2)), "has 2 rows, the dataset 3 images"),
        (
            lambda world: rewrite(world, with_metadata(resnet_weights_sha256="x")),
            "its manifest has no digests of the weights",
        ),
        (
            lambda world: rewrite(world, with_metadata(index_id="other")),
            "its manifest is that of index other",
        ),
        (
            lambda world: rewrite(world, lambda t: t.drop_columns(["vectors_crc32c"])),
            "is damaged: restore it",
        ),
        (
            lambda world: (
                world.client.bucket(world.index)
                .blob(f"indexes/{world.old_id}/local/clip/embeddings.npy")
                .upload_from_string(b"12345678")
            ),
            "must have 6,144 bytes, and it has 8 bytes",
        ),
    ],
)
def test_a_manifest_that_is_gone_damaged_or_lies_stops_before_anything(grown, damage, words):
    damage(grown)
    result = grown.run("--reuse", grown.old)
    assert result.exit_code == 1, result.output
    assert words in result.stderr and result.stderr.count(f"--reuse {grown.old}") >= 1
    assert embedded(grown) == 0 and new_index(grown) == {} and has_only_a_report(Path("work"))


def test_sources_that_are_no_sources_are_one_sentence_each(grown):
    Path("thesis").mkdir()
    values = {
        grown.name: "names the dataset itself",
        "./thesis": "is neither a dataset name nor the work directory of an ingest",
        "./work": "is the work directory of this ingest",
    }
    options = [word for value in values for word in ("--reuse", value)]
    result = grown.run(*options)
    assert result.exit_code == 1
    for value, words in values.items():
        assert f"--reuse {value} {words}" in result.stderr
    result = grown.run("--reuse", "old")
    assert "the server has no dataset of this name" in result.stderr
    assert "For the work directory, write ./old." in result.stderr


def test_damaged_vectors_and_lost_thumbnails_are_embedded_again(grown):
    with open(array_path(Path("old"), "clip"), "r+b") as file:
        file.write(b"\1\2\3")
    bucket = grown.client.bucket(grown.index)
    bucket.delete_blob(f"thumbnails/{grown.old_id}/b.jpg")
    result = grown.run("--reuse", "./old")
    assert result.exit_code == 0, result.output
    assert "as their vectors are damaged there: 1." in result.stderr
    assert "as their thumbnails are gone there: 1." in result.stderr
    assert embedded(grown) == 3 and "1 reused, 3 embedded now" in result.stdout
    assert without_id(new_index(grown)) == without_id(fresh_index(grown))


def test_a_few_rows_are_read_in_ranges(grown, emulator, monkeypatch):
    grown.client.bucket(grown.images).delete_blob("t/a.jpg")
    with StandIn(emulator) as storage:
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", storage.url)
        result = grown.run("--reuse", grown.old)
        assert result.exit_code == 0, result.output
        assert len(storage.requests(RANGE)) == len(DIMENSIONS)
        assert len(storage.requests(COPY)) == 1
    assert embedded(grown) == 1 and "2 reused, 1 embedded now" in result.stdout


@pytest.fixture
def source(undisturbed, fresh, emulator_url, servers, tmp_path):
    """A dataset of the same images in the index bucket of `fresh`, and its index id."""
    made = undisturbed.again(tmp_path / "source")._replace(bucket=fresh.index)
    done = made.run()
    assert done.exit_code == 0, done.stderr
    return made, made.index_id()


def assert_same(fresh, source, undisturbed, server):
    """The index of `fresh` is the undisturbed one, and that of its source is as it was."""
    made, source_id = source
    for name in made.storage.contents(made.index):
        if source_id in name:
            made.storage.delete(made.index, name)
    fresh.assert_same(undisturbed, server)


@pytest.mark.parametrize(
    "kind",
    [kind if kind in QUICK else pytest.param(kind, marks=pytest.mark.soak) for kind in KINDS],
)
def test_faults_while_rows_are_copied_change_nothing(
    undisturbed, fresh, source, emulator_url, servers, kind
):
    rules = [Rule(COPY, kind, times=2, after=1), Rule(RANGE, kind, times=3, after=4)]
    with StandIn(emulator_url, *rules) as storage:
        env = {"storage": storage, "FAKE_CHUNK_ROWS": "4"}
        done = fresh.run("--reuse", source[0].name, **env)
        assert storage.counts[kind] == 5
        assert storage.requests(IMAGE) == []
    assert done.exit_code == 0, done.stderr
    assert "24 reused, 0 embedded now" in done.stdout
    assert_same(fresh, source, undisturbed, servers["B"])


@pytest.mark.parametrize(
    ("pattern", "after", "kind"),
    [
        (r"GET /storage/.*manifest.parquet", 1, "kill-before"),
        (RANGE, 7, "kill-before"),
        (COPY, 4, "kill-after"),
        pytest.param(COPY, 0, "kill-after", marks=pytest.mark.soak),
    ],
)
def test_kill_while_rows_are_copied(
    undisturbed, fresh, source, emulator_url, servers, pattern, after, kind
):
    with StandIn(emulator_url, Rule(pattern, kind, after=after)) as storage:
        command = fresh.command("--reuse", source[0].name)
        env = {"storage": storage, "FAKE_CHUNK_ROWS": "4", "FAKE_CHECKPOINT_S": "0.05"}
        storage.victim = start(command, env)
        assert ended(storage.victim).exit_code == -signal.SIGKILL
        storage.rules = []
        fresh.assert_done_is_done()
        done = run_here(command, env)
        assert storage.requests(IMAGE) == []
    assert done.exit_code == 0, done.stderr
    assert_same(fresh, source, undisturbed, servers["B"])


def test_a_run_without_reuse_continues_one_with_it(
    undisturbed, fresh, source, emulator_url, servers
):
    with StandIn(emulator_url, Rule(COPY, "403", after=2)) as storage:
        env = {"storage": storage, "FAKE_CHUNK_ROWS": "4"}
        stopped = fresh.run("--reuse", source[0].name, **env)
        assert stopped.exit_code == 1
        assert re.search(r"Copying from gs://\S+ to \S+: access is denied", stopped.stderr)
        done = fresh.run(**env)
    assert done.exit_code == 0, done.stderr
    assert_same(fresh, source, undisturbed, servers["B"])
