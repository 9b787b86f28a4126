"""--reuse: what another index has already is copied, and only the rest is embedded."""

import io
import json
import re
import signal
import sqlite3
from contextlib import closing
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dataset.arrays import array_path
from dataset.quality import Quality
from tests.harness import Index, ended, has_only_a_report, picture
from tests.stand_in import KINDS, Rule, StandIn

IMAGE = r"GET /storage/.*o/(train|val).*alt=media"
QUICK = ("503", "reset", "flip")  # of the faults; the others are for the soak
COPY, RANGE = r"POST /batch/", r"GET /storage/.*embeddings.npy.*alt=media"


@pytest.fixture
def grown(world, fast_models):
    """A dataset "old" in the work directory old/, and one image more in the bucket."""
    world.put("t/a.jpg", "t/b.jpg", "v/c.png")
    world.old = f"old-{world.name}"
    world.ingest("--work_dir", "old", name=world.old)
    world.old_id = Index(world.objects()).id
    world.put("t/new.jpg")
    fast_models.batches.clear()
    return world


def embedded(world):
    return sum(world.embedder.batches)


def new_index(world):
    """The objects of the index that is not the old one."""
    return {n: data for n, data in world.objects().items() if world.old_id not in n}


def assert_as_without_reuse(world):
    """The new index is what an ingest of the same images in an index bucket of its own gives."""
    other = world.again(Path("fresh"))
    other.embedder = world.embedder
    other.ingest()
    assert world.left_behind(but=world.old_id) == other.left_behind()


def test_only_new_images_are_embedded_and_the_index_is_the_same(grown):
    result = grown.ingest("--reuse", grown.old)
    assert embedded(grown) == 1
    assert f"Reusing 3 images (3 from {grown.old}).\nEmbedding 1 image: 1 new." in result.stderr
    assert "0 failed, 3 reused, 1 embedded now" in result.stdout
    assert_as_without_reuse(grown)
    with closing(sqlite3.connect("work/state.sqlite")) as db:
        found = db.execute("SELECT object, source FROM images ORDER BY slot").fetchall()
    assert found == [
        ("t/a.jpg", f"{grown.old_id}/0"),
        ("t/b.jpg", f"{grown.old_id}/1"),
        ("t/new.jpg", None),
        ("v/c.png", f"{grown.old_id}/2"),
    ]
    assert not Path("work/reuse.sqlite").exists() and not Path("work/reuse.parquet").exists()


def test_a_dry_run_says_what_would_be_reused_and_why_not_the_others(grown):
    grown.put(**{"t/b.jpg": picture(99)})
    result = grown.ingest("--reuse", grown.old, "--dry_run")
    assert f"Would reuse 2 images (2 from {grown.old}).\n" in result.stdout
    assert "Would embed 2 images: 1 new, 1 changed.\n" in result.stdout
    assert embedded(grown) == 0 and not Path("work").exists()


def test_the_same_bytes_under_other_names_are_reused(grown):
    content = grown.storage.get(grown.images, "t/a.jpg")
    grown.put(**{"w/x/one.jpeg": content, "w/two.png": content})
    result = grown.ingest("--reuse", grown.old, train=f"gs://{grown.images}/w")
    assert embedded(grown) == 0 and "3 reused, 0 embedded now" in result.stdout
    index = Index(new_index(grown))
    assert index.labels == ["w/two.png", "w/x/one.jpeg", "v/c.png"]
    assert (index.arrays["clip"][0] == index.arrays["clip"][1]).all()
    assert set(index.thumbnails) == {"one.jpg", "two.jpg", "c.jpg"}


def test_a_work_directory_that_was_never_registered_is_reused(world, fast_models):
    world.put("t/a.jpg", "v/c.jpg", **{"t/bad.jpg": b"no image"})
    world.run("--work_dir", "old", name=f"never-{world.name}").failed("cannot be embedded")
    world.old_id = next(iter(world.objects())).split("/")[1]
    world.put("t/bad.jpg")
    fast_models.batches.clear()
    result = world.ingest("--reuse", "./old")
    assert embedded(world) == 1
    assert "(2 from ./old).\nEmbedding 1 image: 1 changed." in result.stderr
    assert_as_without_reuse(world)
    assert not Path("old/index/manifest.parquet").exists()


def test_several_sources_are_searched_in_order(grown):
    grown.ingest("--work_dir", "second", name=f"second-{grown.name}")
    grown.put("t/newer.jpg")
    grown.embedder.batches.clear()
    result = grown.ingest("--reuse", "./old", "--reuse", f"second-{grown.name}")
    assert f"(3 from ./old, 1 from second-{grown.name})" in result.stderr
    assert embedded(grown) == 1


def test_rows_that_failed_are_tried_again(world, fast_models):
    world.put("t/a.jpg", "v/c.jpg", **{"t/bad.jpg": b"no image"})
    old = f"old-{world.name}"
    world.ingest("--work_dir", "old", "--skip_bad_images", name=old)
    result = world.run("--reuse", old).failed("1 of 3 images cannot be embedded")
    assert "Embedding 1 image: 1 failed there." in result.stderr
    result = world.ingest("--reuse", old, "--skip_bad_images")
    assert "1 failed, 2 reused, 0 embedded now" in result.stdout


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["--resnet_weights", "other"], "other ResNet-50 weights"),
        (["--clip_weights", "other"], "other CLIP weights"),
        (["--backend", "original"], "--backend fused"),
    ],
)
def test_vectors_that_were_computed_otherwise_are_not_taken(grown, options, reason):
    Path("other").write_bytes(b"other weights")
    result = grown.ingest("--reuse", grown.old, *options)
    assert embedded(grown) == 4
    assert "Embedding 4 images: 3 computed differently, 1 new." in result.stderr
    assert f"Nothing is taken from {grown.old}: it was computed with {reason}." in result.stderr


def of_index(change, name="manifest.parquet"):
    """Damage of a file of the old index: what `change` makes of its bytes, or nothing."""

    def damage(world):
        path = f"indexes/{world.old_id}/{name}"
        if data := change(world.storage.get(world.index, path)):
            world.storage.put(world.index, path, data)
        else:
            world.storage.delete(world.index, path)

    return damage


def rewritten(change):
    """Damage of the manifest as a table."""

    def rewrite(data):
        file = io.BytesIO()
        pq.write_table(change(pq.read_table(io.BytesIO(data))), file)
        return file.getvalue()

    return of_index(rewrite)


def with_metadata(**changes):
    def change(table):
        metadata = json.loads(table.schema.metadata[b"forager"]) | changes
        return table.replace_schema_metadata({b"forager": json.dumps(metadata).encode()})

    return rewritten(change)


CLIP = "local/clip/embeddings.npy"


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (of_index(lambda data: data[:-9]), "is no manifest of an index. It cannot be used"),
        (of_index(lambda data: None), "and a manifest tells which images and weights its vectors"),
        (rewritten(lambda table: table.slice(0, 2)), "has 2 rows, and the dataset 3 images"),
        (with_metadata(resnet_weights_sha256="x"), "has no digests of the weights"),
        (with_metadata(index_id="other"), "is that of index other"),
        (
            rewritten(lambda t: t.drop_columns(["vectors_crc32c"])),
            "has other columns than the manifest of an index",
        ),
        (
            rewritten(lambda t: t.set_column(8, "imagenet_class", pa.array([0, 0, 0], pa.int32()))),
            "has a row, 0, that its checksum does not match. It cannot be used",
        ),
        (of_index(lambda _: b"12345678", CLIP), "has rows for 6,144 bytes of gs://"),
    ],
)
def test_a_manifest_that_is_gone_damaged_or_lies_stops_before_anything(grown, damage, words):
    damage(grown)
    result = grown.run("--reuse", grown.old).failed()
    assert words in result.stderr and result.stderr.count(f"--reuse {grown.old}") >= 1
    assert embedded(grown) == 0 and new_index(grown) == {} and has_only_a_report(Path("work"))


def test_an_index_of_an_earlier_version_is_reused_without_quality(grown):
    lacking = [*Quality._fields, "row_crc32c"]
    rewritten(lambda table: table.drop_columns(lacking))(grown)
    grown.ingest("--reuse", grown.old)
    rows = pq.read_table("work/index/manifest.parquet").to_pylist()
    assert not [row for row in rows if None in (row["imagenet_class"], row["row_crc32c"])]
    known = [row["object"] for row in rows if None not in map(row.get, Quality._fields)]
    assert known == ["t/new.jpg"]


def test_sources_that_are_no_sources_are_one_sentence_each(grown):
    Path("thesis").mkdir()
    values = {
        grown.name: "names the dataset itself",
        "./thesis": "is neither a dataset name nor the work directory of an ingest",
        "./work": "is the work directory of this ingest",
    }
    options = [word for value in values for word in ("--reuse", value)]
    grown.run(*options).failed(*(f"--reuse {value} {words}" for value, words in values.items()))
    grown.run("--reuse", "old").failed(
        "the server has no dataset of this name", "For the work directory, write ./old."
    )


def test_damaged_vectors_and_lost_thumbnails_are_embedded_again(grown):
    with open(array_path(Path("old"), "clip"), "r+b") as file:
        file.write(b"\1\2\3")
    grown.storage.delete(grown.index, f"thumbnails/{grown.old_id}/b.jpg")
    result = grown.ingest("--reuse", "./old")
    assert "as their vectors are damaged there: 1." in result.stderr
    assert "as their thumbnails are gone there: 1." in result.stderr
    assert embedded(grown) == 3 and "1 reused, 3 embedded now" in result.stdout
    assert_as_without_reuse(grown)


@pytest.fixture
def source(undisturbed, fresh, tmp_path):
    """A dataset of the same images in the index bucket of `fresh`."""
    made = undisturbed.again(tmp_path / "source").changed(index=fresh.index)
    made.ingest()
    made.old_id = made.index_id()
    return made


def assert_same(fresh, source, undisturbed):
    """The index of `fresh` is the undisturbed one, beside that of its source."""
    for name in source.storage.contents(source.index):
        if source.old_id in name:
            source.storage.delete(source.index, name)
    fresh.assert_same(undisturbed)


@pytest.mark.parametrize(
    "kind",
    [kind if kind in QUICK else pytest.param(kind, marks=pytest.mark.soak) for kind in KINDS],
)
def test_faults_while_rows_are_copied_change_nothing(undisturbed, fresh, source, kind):
    ranges = 1 if kind == "flip" else 3  # a row is embedded if its vectors are wrong twice
    rules = [Rule(COPY, kind, times=2, after=1), Rule(RANGE, kind, times=ranges, after=4)]
    with StandIn(fresh.storage.url, *rules) as storage:
        done = fresh.ingest("--reuse", source.name, storage=storage, FAKE_CHUNK_ROWS="4")
        assert storage.counts[kind] == 2 + ranges
        assert storage.requests(IMAGE) == []
    assert "24 reused, 0 embedded now" in done.stdout
    assert_same(fresh, source, undisturbed)


@pytest.mark.parametrize(
    ("pattern", "after", "kind"),
    [
        (r"GET /storage/.*manifest.parquet", 1, "kill-before"),
        (RANGE, 7, "kill-before"),
        (COPY, 4, "kill-after"),
    ],
)
def test_kill_while_rows_are_copied(undisturbed, fresh, source, pattern, after, kind):
    small = {"FAKE_CHUNK_ROWS": "4", "FAKE_CHECKPOINT_S": "0.05"}
    with StandIn(fresh.storage.url, Rule(pattern, kind, after=after)) as storage:
        storage.victim = fresh.start("--reuse", source.name, storage=storage, **small)
        assert ended(storage.victim).exit_code == -signal.SIGKILL
        storage.rules = []
        fresh.assert_done_is_done()
        fresh.ingest("--reuse", source.name, storage=storage, **small)
        assert storage.requests(IMAGE) == []
    assert_same(fresh, source, undisturbed)


def test_a_run_without_reuse_continues_one_with_it(undisturbed, fresh, source):
    rule = Rule(COPY, "403", after=2)
    stopped = fresh.stop_at(rule, "--reuse", source.name, FAKE_CHUNK_ROWS="4")
    assert re.search(r"Copying from gs://\S+ to \S+: access is denied", stopped.error)
    fresh.ingest(FAKE_CHUNK_ROWS="4")
    assert_same(fresh, source, undisturbed)
