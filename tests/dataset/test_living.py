"""A bucket that lives, against a fresh state: any changes, listings, copies, kills and failures."""

import itertools
import os
import shutil
import tempfile
from contextlib import suppress
from pathlib import Path
from unittest import mock

import numpy as np
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from common.names import identifier
from dataset.arrays import DIMENSIONS, DTYPE, ZEROS, Arrays, array_path, put_in_order, verify_arrays
from dataset.listing import Split
from dataset.matches import Matches
from dataset.state import Outcome, State
from tests.dataset.states import listed, take

IDENTIFIERS = st.sampled_from("abc")
DIRECTORIES = st.sampled_from(["t", "v"])  # of which v is for validation
CONTENTS = st.integers(0, 2)  # so that several images have the same bytes
MEMORY = "/dev/shm" if Path("/dev/shm").is_dir() else None  # a disk takes ten times as long
BROKEN = 0  # the content that is no image
VECTORS = [[np.full(d, content, DTYPE) for d in DIMENSIONS.values()] for content in range(3)]


class Bucket(dict):
    """What is in it now: identifier -> (directory, content)."""

    def splits(self):
        """The training images, and the validation images."""
        images = [listed(f"{d}/{i}.jpg", crc32c=c) for i, (d, c) in self.items()]
        is_train = [image.name.startswith("t/") for image in images]
        return (
            list(itertools.compress(images, is_train)),
            [image for image, train in zip(images, is_train, strict=True) if not train],
        )


class Ingest:
    """The steps of ingest.py as far as they concern the state, the arrays and the thumbnails."""

    def __init__(self):
        self.directory = Path(tempfile.mkdtemp(dir=MEMORY))
        self.state = State.create(self.directory / "state.sqlite")
        self.thumbnails = {}  # in the index bucket: identifier -> content

    def begin(self, bucket):
        """Continue with what is in the bucket today."""
        if self.state.ordered_arrays() is not None:
            put_in_order(self.state)
        take(self.state, *bucket.splits())

    def embed(self, most=1000):
        with Arrays(self.directory, self.state.slots()) as arrays:
            for slot, image in list(itertools.islice(self.state.pending(), most)):
                if image.crc32c == BROKEN:
                    outcome = Outcome(slot, None, "broken", arrays.write(slot, ZEROS))
                else:
                    self.thumbnails[identifier(image.name)] = image.crc32c
                    written = arrays.write(slot, VECTORS[image.crc32c])
                    outcome = Outcome(slot, image.crc32c, None, written, 4, 3)
                self.state.record([outcome])

    def copy(self):
        """What pending images need and others have; without a thumbnail it stays pending."""
        if not self.state.has_copies():
            return
        matches = Matches(self.directory / "copies.sqlite")
        matches.add(self.state.found(), usable=True)
        matches.match(self.state.path)
        paths = [array_path(self.directory, name) for name in DIMENSIONS]
        with Arrays(self.directory, self.state.slots()) as arrays:
            for m in list(matches):
                vectors = [
                    np.fromfile(path, DTYPE).reshape(-1, d)[m.source_row]
                    for path, d in zip(paths, DIMENSIONS.values(), strict=True)
                ]
                if (content := self.thumbnails.get(identifier(m.source_object))) is None:
                    continue
                self.thumbnails[m.identifier] = content
                assert arrays.write(m.slot, vectors) == m.vectors_crc32c
                self.state.record(
                    [Outcome(m.slot, m.imagenet_class, None, m.vectors_crc32c, m.width, m.height)]
                )
        matches.close()

    def verify_thumbnails(self):
        """Whether one is missing; those of no image are deleted."""
        missing, unused = self.state.compare_thumbnails([list(self.thumbnails)])
        self.state.reopen(missing)
        for name in unused:
            del self.thumbnails[name]
        return bool(missing)

    def finish(self):
        """The rest of a run that nothing stops."""
        while self.state.has_pending() or self.verify_thumbnails():
            self.copy()
            self.embed()
        put_in_order(self.state)

    def reopen(self):
        """Go on after a kill: with the files as they are, without a close."""
        copy = Path(tempfile.mkdtemp(dir=MEMORY))
        shutil.copytree(self.directory, copy, dirs_exist_ok=True)
        self.remove()
        self.directory, self.state = copy, State.open_checked(copy / "state.sqlite")

    def remove(self):
        self.state.close()
        shutil.rmtree(self.directory)

    def left_behind(self):
        state, checksums = self.state, list(self.state.vector_checksums())
        assert verify_arrays(self.directory, len(checksums), iter(checksums)).damaged == []
        return {
            "arrays": [array_path(self.directory, name).read_bytes() for name in DIMENSIONS],
            "thumbnails": self.thumbnails,
            "checksums": checksums,
            "counts": [state.counts(), *map(state.counts, Split), state.progress()],
            "objects": list(state.objects()),
            "identifiers": [list(state.identifiers(split)) for split in Split],
            "classes": list(state.imagenet_classes()),
            "failed": state.failed(),
            "manifest": list(state.manifest_rows()),
        }


def killed_after(renames, replace=os.replace):
    left = iter(range(renames))

    def replaced(*paths):
        if next(left, None) is None:
            raise KeyboardInterrupt
        replace(*paths)

    return replaced


class Living(RuleBasedStateMachine):
    """Whatever happened, at the end the index is that of a fresh ingest of today's bucket."""

    @initialize()
    def begin(self):
        self.ingest, self.bucket = Ingest(), Bucket()

    @rule(name=IDENTIFIERS, directory=DIRECTORIES, content=CONTENTS)
    def an_image_appears_or_is_replaced(self, name, directory, content):
        self.bucket[name] = directory, content

    @rule(
        kind=st.sampled_from(["moved", "renamed", "exchanged", "vanishes"]),
        name=IDENTIFIERS,
        other=IDENTIFIERS,
        directory=DIRECTORIES,
    )
    def an_image_is_changed(self, kind, name, other, directory):
        if name not in self.bucket:
            return
        image, instead = self.bucket.pop(name), self.bucket.get(other)
        if kind == "moved":
            self.bucket[name] = directory, image[1]
        elif kind != "vanishes":
            self.bucket[other] = image
        if kind == "exchanged" and instead:
            self.bucket[name] = instead

    @rule(most=st.integers(1, 3))
    def embed(self, most):
        self.ingest.begin(self.bucket)
        self.ingest.copy()
        self.ingest.embed(most)

    @rule()
    def try_the_failed_again(self):
        self.ingest.state.retry_failed()

    @rule()
    def be_killed(self):
        self.ingest.reopen()

    @precondition(lambda self: not self.ingest.state.has_pending())
    @rule(renames=st.integers(0, 2))
    def be_killed_while_the_arrays_are_put_in_order(self, renames):
        if not self.ingest.verify_thumbnails():
            with mock.patch("os.replace", killed_after(renames)), suppress(KeyboardInterrupt):
                put_in_order(self.ingest.state)
            self.ingest.reopen()

    def teardown(self):
        fresh = Ingest()
        for ingest in (self.ingest, fresh):
            ingest.begin(self.bucket)
            ingest.finish()
        assert self.ingest.left_behind() == fresh.left_behind()
        self.ingest.remove()
        fresh.remove()


Living.TestCase.settings = settings(max_examples=80, stateful_step_count=20, deadline=None)
test_a_bucket_that_lives = Living.TestCase


def test_vectors_whose_thumbnail_was_replaced_are_not_copied():
    """As the thumbnail of another image would be copied with them."""
    living = Living()
    living.begin()
    for name, content in (("a", 1), ("a", 2), ("b", 1)):
        living.an_image_appears_or_is_replaced(name, "t", content)
        living.embed(1)
    living.teardown()
