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
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule

from common.names import identifier
from dataset.arrays import DIMENSIONS, DTYPE, ZEROS, Arrays, array_path, put_in_order, verify_arrays
from dataset.listing import Split
from dataset.matches import Matches
from dataset.state import Outcome, State
from tests.dataset.states import listed, take

IDENTIFIERS = st.sampled_from("abcd")
# Directory and content; few of them, so that several images have the same bytes.
IMAGES = st.tuples(st.sampled_from("tv"), st.integers(0, 2))
MEMORY = "/dev/shm" if Path("/dev/shm").is_dir() else None  # a disk takes ten times as long
BROKEN = 0  # the content that is no image
VECTORS = [[np.full(d, content, DTYPE) for d in DIMENSIONS.values()] for content in range(3)]


class Ingest:
    """The steps of ingest.py as far as they concern the state, the arrays and the thumbnails."""

    def __init__(self):
        self.directory = Path(tempfile.mkdtemp(dir=MEMORY))
        self.state = State.create(self.directory / "state.sqlite")
        self.thumbnails = {}  # in the index bucket: identifier -> content

    def begin(self, bucket):
        """Continue with what is in the bucket today: identifier -> (directory, content)."""
        if self.state.ordered_arrays() is not None:
            put_in_order(self.state)
        images = [(d, listed(f"{d}/{i}.jpg", crc32c=c)) for i, (d, c) in bucket.items()]
        take(self.state, *([image for d, image in images if d == split] for split in "tv"))

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
        paths = {array_path(self.directory, name): d for name, d in DIMENSIONS.items()}
        with Arrays(self.directory, self.state.slots()) as arrays:
            for match in list(matches):
                at, content = match.image.row, self.thumbnails.get(match.image.object[2:-4])
                if content is not None:
                    self.thumbnails[match.identifier] = content
                    vectors = [
                        np.fromfile(path, DTYPE).reshape(-1, d)[at] for path, d in paths.items()
                    ]
                    assert arrays.write(match.slot, vectors) == match.image.vectors_crc32c
                    outcome = match.image.imagenet_class, None, match.image.vectors_crc32c, 4, 3
                    self.state.record([Outcome(match.slot, *outcome)])
        matches.close()

    def verify_thumbnails(self):
        """Whether one is missing; those of no image are deleted."""
        missing, unused = self.state.compare_thumbnails([list(self.thumbnails)])
        self.state.reopen(missing)
        for name in unused:
            del self.thumbnails[name]
        return bool(missing)

    def finish(self, bucket):
        """A run that nothing stops before the arrays are in row order."""
        self.begin(bucket)
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
        checksums = list(self.state.vector_checksums())
        assert verify_arrays(self.directory, len(checksums), iter(checksums)).damaged == []
        return {
            "arrays": [array_path(self.directory, name).read_bytes() for name in DIMENSIONS],
            "thumbnails": self.thumbnails,
            "identifiers": [list(self.state.identifiers(split)) for split in Split],
            "manifest": list(self.state.manifest_rows()),
        }


def killed_at(stop, replace=os.replace):
    """os.replace with a kill before or after one of its calls."""
    left = iter(range(stop))

    def replaced(*paths):
        if next(left, None) is None:
            raise KeyboardInterrupt
        replace(*paths)
        if next(left, None) is None:
            raise KeyboardInterrupt

    return replaced


class Living(RuleBasedStateMachine):
    """Whatever happened, at the end the index is that of a fresh ingest of today's bucket."""

    @initialize()
    def begin(self):
        self.ingest, self.bucket = Ingest(), {}

    @rule(images=st.dictionaries(IDENTIFIERS, IMAGES, min_size=1))
    def images_appear_or_are_replaced_or_moved(self, images):
        self.bucket.update(images)

    @rule(kind=st.sampled_from(["renamed", "exchanged", "vanishes"]), names=st.permutations("abcd"))
    def an_image_is_changed(self, kind, names):
        name, other, *_ = names
        if name in self.bucket:
            image, instead = self.bucket.pop(name), self.bucket.get(other)
            if kind != "vanishes":
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

    @rule(stop=st.integers(0, 5))
    def be_killed_while_the_arrays_are_put_in_order(self, stop):
        with mock.patch("os.replace", killed_at(stop)), suppress(KeyboardInterrupt):
            self.ingest.finish(self.bucket)
        self.ingest.reopen()

    def teardown(self):
        fresh = Ingest()
        try:
            for ingest in (self.ingest, fresh):
                ingest.finish(self.bucket)
            assert self.ingest.left_behind() == fresh.left_behind()
        finally:
            self.ingest.remove()
            fresh.remove()


Living.TestCase.settings = settings(max_examples=50, stateful_step_count=20, deadline=None)
test_a_bucket_that_lives = Living.TestCase


def test_vectors_whose_thumbnail_was_replaced_are_not_copied():
    """As the thumbnail of another image would be copied with them."""
    living = Living()
    living.begin()
    for name, content in (("a", 1), ("a", 2), ("b", 1)):
        living.images_appear_or_are_replaced_or_moved({name: ("t", content)})
        living.embed(1)
    living.teardown()
