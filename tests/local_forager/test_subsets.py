"""Diverse and typical subsets: what holds for any vectors, and for clusters that are known."""

import tempfile
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.page.subsets import covering_radius
from local_forager.analysis import subsets
from local_forager.indexes import vectors as vectors_module
from testing import synthetic
from tests.local_forager.page_server import ignore, made_vectors

LEAST = 0.02
NONE = np.zeros(0, np.int64)
TOLERANCE = 1e-5  # of float32


@contextmanager
def opened(array):
    with tempfile.TemporaryDirectory() as directory:
        yield made_vectors(Path(directory), array)


def unit(array):
    return (array / np.linalg.norm(array, axis=1, keepdims=True)).astype(np.float32)


@st.composite
def collections(draw):
    """Vectors with near duplicates, copies and failed images; candidates, and given images."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    rows = draw(st.integers(1, 80))
    centres = rng.standard_normal((draw(st.integers(1, 6)), 6))
    spread = draw(st.sampled_from([0.001, 0.1, 1]))
    kinds = rng.integers(0, len(centres), rows)
    array = unit(centres[kinds] + spread * rng.standard_normal((rows, 6)))
    copies = rng.integers(0, rows, (2, rows // 4))
    array[copies[0]] = array[copies[1]]
    failed = rng.random(rows) < 0.1
    array[failed] = rng.choice([0, np.nan, np.inf])
    candidates = ~failed & (rng.random(rows) < draw(st.sampled_from([0.5, 1])))
    chosen = rng.choice(rows, draw(st.integers(0, 5)))
    return array, candidates, np.unique(chosen[~failed[chosen]])


def chosen_of(kind, array, candidates, count, given=NONE, pool=4_096, block_bytes=1 << 20):
    with (
        opened(array) as vectors,
        mock.patch.object(subsets, "POOL_ROWS", pool),
        mock.patch.object(vectors_module, "BLOCK_BYTES", block_bytes),
    ):
        return subsets.choose(kind, vectors, candidates, count, given, LEAST, ignore)


def distances_between(array, rows, others):
    """float64 (n,): the distance of each row from the nearest of the others."""
    cosine = array[rows].astype(float) @ array[others].astype(float).T
    return 1 - cosine.max(axis=1, initial=-np.inf)


@pytest.mark.parametrize("kind", subsets.KINDS)
@given(collections(), st.integers(1, 30))
def test_any_subset(kind, collection, count):
    """Candidates only, none twice, none given, no near duplicates; as many as wanted, if left."""
    array, candidates, earlier = collection
    rows = chosen_of(kind, array, candidates, count, earlier)
    assert candidates[rows].all() and len(set(rows)) == len(rows) <= count
    assert not set(rows) & set(earlier)
    for place in range(len(rows)):
        before = np.append(earlier, rows[:place])
        assert distances_between(array, rows[place : place + 1], before) > LEAST - TOLERANCE
    if len(rows) < count:  # everything else is a near duplicate of what is chosen
        others = np.flatnonzero(candidates)
        left = distances_between(array, others, np.append(earlier, rows))
        assert (left <= LEAST + TOLERANCE).all()


@given(st.integers(0, 2**32), st.integers(1, 60), st.integers(0, 3))
def test_equal_distances_are_in_row_order_whatever_the_blocks(seed, count, earlier):
    """With vectors of four halves, every product is exact, and many distances are equal."""
    rng = np.random.default_rng(seed)
    array = np.zeros((60, 12))
    for row in array:
        row[rng.choice(12, 4, replace=False)] = rng.choice([-0.5, 0.5], 4)
    array[rng.choice(60, 10)] = array[rng.choice(60, 10)]
    asked = "diverse", array, np.ones(60, bool), count, np.arange(earlier)
    rows = chosen_of(*asked)
    assert rows.tolist() == chosen_of(*asked, pool=3, block_bytes=48 * 7).tolist()
    for place in range(len(rows) if earlier else 0):
        distances = distances_between(array, np.arange(60), [*range(earlier), *rows[:place]])
        assert rows[place] == distances.argmax()


@pytest.mark.parametrize("kind", subsets.KINDS)
@given(st.integers(0, 2**32))
def test_the_first_of_identical_images_is_chosen(kind, seed):
    """Though in a matrix product, their distances differ by rounding."""
    array = np.tile(unit(np.random.default_rng(seed).standard_normal((21, 67))), (3, 1))
    assert (chosen_of(kind, array, np.ones(63, bool), 15) < 21).all()


@given(st.integers(0, 2**32), st.integers(1, 30))
def test_diverse_is_the_farthest_image_each_time(seed, count):
    array = unit(np.random.default_rng(seed).standard_normal((60, 8)))
    expected = [int((array.astype(float) @ array.astype(float).mean(axis=0)).argmax())]
    while len(expected) < count:
        expected.append(int(distances_between(array, np.arange(60), expected).argmax()))
    assert chosen_of("diverse", array, np.ones(60, bool), count, pool=7).tolist() == expected


@given(st.integers(0, 2**32), st.integers(10, 40))
def test_diverse_covers_better_than_random_choice(seed, count):
    array = np.concatenate(list(synthetic.embeddings(200, 16, seed)))
    every, rng = np.ones(len(array), bool), np.random.default_rng(seed)
    rows = chosen_of("diverse", array, every, count)
    with opened(array) as vectors:
        random = [rng.choice(len(array), count, replace=False) for _ in range(5)]
        radii = [covering_radius(vectors, one) for one in random]
        assert covering_radius(vectors, rows) <= np.mean(radii)


@given(st.integers(0, 2**32), st.integers(1, 9))
def test_typical_is_one_of_each_cluster_the_largest_first(seed, clusters):
    rng = np.random.default_rng(seed)
    kinds = rng.permutation(np.repeat(np.arange(clusters), 4 + np.arange(clusters)))
    array = unit(np.eye(16)[kinds] + 0.02 * rng.standard_normal((len(kinds), 16)))
    asked = "typical", array, np.ones(len(array), bool), clusters
    rows = chosen_of(*asked)
    assert rows.tolist() == chosen_of(*asked, block_bytes=64 * 5).tolist()
    assert kinds[rows].tolist() == list(range(clusters))[::-1]
    for row, kind in zip(rows, kinds[rows], strict=True):
        of_kind = np.flatnonzero(kinds == kind)
        mean = array[of_kind].mean(axis=0)
        assert row == of_kind[(array[of_kind] @ mean).argmax()]


def test_typical_stands_for_what_the_given_images_do_not():
    rng = np.random.default_rng(0)
    kinds = np.repeat(np.arange(5), [30, 20, 10, 9, 8])
    array = unit(np.eye(16)[kinds] + 0.1 * rng.standard_normal((len(kinds), 16)))
    rows = chosen_of("typical", array, np.ones(len(kinds), bool), 3, np.array([3, 35]))
    assert kinds[rows].tolist() == [2, 3, 4]


@pytest.mark.parametrize("kind", subsets.KINDS)
def test_a_subset_of_images_that_are_all_alike(kind):
    array = unit(np.ones((50, 8)))
    assert chosen_of(kind, array, np.ones(50, bool), 10).tolist() == [0]
    assert not len(chosen_of(kind, array, np.ones(50, bool), 10, np.array([7])))
    assert not len(chosen_of(kind, array, np.zeros(50, bool), 10))


@pytest.mark.parametrize("kind", subsets.KINDS)
def test_no_image_is_chosen_twice_if_vectors_have_no_length(kind):
    rows = chosen_of(kind, np.zeros((6, 8), np.float32), np.ones(6, bool), 9, pool=2)
    assert len(set(rows)) == len(rows)
