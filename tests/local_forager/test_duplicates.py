"""Groups of duplicates: the rule, which image is kept, the limit of pairs, and leaks."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from local_forager.analysis import duplicates
from testing import synthetic
from tests.local_forager.page_server import ignore, made_fields, made_index, made_vectors

SLACK = 1e-6  # of distances in float32


def index_of(directory, vectors, num_train=0, **more):
    names = more.pop("names", [f"{row:05}.jpg" for row in range(len(vectors))])
    failed = ~np.asarray(vectors).any(axis=1)
    embeddings = {"clip": made_vectors(directory, vectors)}
    return made_index(names, num_train, failed=failed, embeddings=embeddings, **more)


def pairs_of(index, wanted=None):
    return duplicates.near_pairs(index, "clip", ignore, wanted)


def on_circle(*degrees):
    """Unit vectors at these angles."""
    angles = np.deg2rad(degrees)
    return np.stack([np.cos(angles), np.sin(angles)], axis=1)


def apart(degrees):
    """The distance of two vectors with this angle between them."""
    return float(1 - np.cos(np.deg2rad(degrees)))


def sizes_of(*pixels):
    return made_fields(width=pixels, height=[1] * len(pixels))


def test_exact_and_near_duplicates(tmp_path):
    vectors = np.concatenate(list(synthetic.vectors(500, 64)))
    vectors[20] = vectors[3]
    vectors[450] = vectors[3] + 0.01 * vectors[4]
    vectors[450] /= np.linalg.norm(vectors[450])
    vectors[8:10] = 0
    index = index_of(tmp_path, vectors)
    assert duplicates.exact_duplicates(index, "clip", ignore) == [[3, 20]]
    pairs = pairs_of(index)
    assert duplicates.near_groups(pairs, pairs.default) == [[3, 20, 450]]
    assert duplicates.near_groups(pairs, 0.0) == [[3, 20]]


def test_a_chain_of_small_steps_is_several_groups(tmp_path):
    """From a sunrise to a cat in steps of 2 degrees, where 5 degrees count as near."""
    pairs = pairs_of(index_of(tmp_path, on_circle(*range(0, 90, 2))), wanted=apart(5))
    groups = duplicates.near_groups(pairs, apart(5))
    assert groups == [[row, row + 1, row + 2] for row in range(0, 45, 3)]


@pytest.mark.parametrize(
    ("pixels", "names", "kept"),
    [
        ((100, 300, 200), "abc", 1),
        ((100, 100, 100), "cab", 1),
        ((-1, -1, 1), "abc", 2),
        ((-1, -1, -1), "bca", 2),
        (None, "bac", 1),
    ],
)
def test_kept_has_the_most_pixels_then_the_first_name(tmp_path, pixels, names, kept):
    sizes = sizes_of(*pixels) if pixels else {}
    index = index_of(tmp_path, on_circle(0, 1, 2), names=list(names), fields=sizes)
    (group,) = duplicates.near_groups(pairs_of(index, apart(5)), apart(3))
    assert group[0] == kept


def test_of_equal_pixels_the_sharpest_is_kept(tmp_path):
    fields = sizes_of(9, 9, 9, 9) | made_fields(sharpness=[5.0, -1, 7.0, 7.0])
    index = index_of(tmp_path, on_circle(0, 1, 2, 3), fields=fields)
    assert duplicates.best_first(index, np.arange(4)).tolist() == [2, 3, 0, 1]


@given(
    rows=st.integers(1, 120),
    copies=st.lists(st.tuples(st.integers(0, 119), st.integers(0, 119)), max_size=20),
    pixels=st.lists(st.integers(-1, 5), min_size=120, max_size=120),
    distance=st.floats(0, 0.6),
    num_train=st.integers(0, 120),
    seed=st.integers(0, 99),
)
def test_groups_are_around_their_kept_images(
    tmp_path_factory, rows, copies, pixels, distance, num_train, seed
):
    vectors = np.random.default_rng(seed).standard_normal((rows, 3))
    vectors = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype("<f4")
    for row, other in copies:
        vectors[row % rows] = vectors[other % rows]
    sizes = sizes_of(*pixels[:rows])
    index = index_of(tmp_path_factory.mktemp("index"), vectors, num_train, fields=sizes)
    pairs = pairs_of(index, wanted=0.6)
    apart = 1 - vectors.astype(float) @ vectors.T.astype(float)
    groups = duplicates.near_groups(pairs, distance)
    grouped = [row for group in groups for row in group]
    assert len(grouped) == len(set(grouped))
    dropped = [row for _, *others in groups for row in others]
    for kept, *others in groups:
        assert others and (apart[kept, others] <= distance + SLACK).all()
        width = np.nan_to_num(index.measure("width"), nan=-1)
        assert width[kept] == width[[kept, *others]].max()
    left = np.setdiff1d(np.arange(rows), dropped)
    between = apart[np.ix_(left, left)] + 2 * np.eye(len(left))
    assert (between > distance - SLACK).all()

    is_val = np.arange(rows) >= num_train
    across = apart + 2 * (is_val[:, None] == is_val)
    leaks = duplicates.leaks(pairs, distance, num_train)
    leaking = [row for group in leaks for row in group]
    assert len(leaking) == len(set(leaking))
    assert all(0 < is_val[group].sum() < len(group) for group in leaks)
    assert (across[leaking].min(axis=1, initial=2) <= distance + SLACK).all()
    others = np.setdiff1d(np.arange(rows), leaking)
    assert (across[others] > distance - SLACK).all()


def test_an_image_whose_twin_is_in_another_group_leaks_too(tmp_path):
    """The first training image takes the one of validation, to which the second one is near too."""
    pairs = pairs_of(index_of(tmp_path, on_circle(0, 8, 4), num_train=2), wanted=apart(5))
    assert duplicates.near_groups(pairs, apart(5)) == [[0, 2]]
    assert duplicates.leaks(pairs, apart(5), 2) == [[0, 1, 2]]


@pytest.mark.parametrize("block", [50, 2048])
def test_pairs_agree_with_a_plain_comparison(tmp_path, monkeypatch, block):
    monkeypatch.setattr(duplicates, "BLOCK_ROWS", block)
    rng = np.random.default_rng(3)
    vectors = rng.standard_normal((300, 4)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    pairs = pairs_of(index_of(tmp_path, vectors))
    assert not pairs.is_cut and pairs.exact
    assert pairs.default == pytest.approx(0.1 * pairs.limit)
    expected = np.argwhere(np.triu(1 - vectors @ vectors.T <= pairs.limit, 1))
    found = np.sort(np.stack([pairs.rows[pairs.one], pairs.rows[pairs.other]], axis=1))
    assert sorted(found.tolist()) == expected.tolist() != []
    assert (np.diff(pairs.distances) >= 0).all()


def test_the_nearest_pairs_are_kept_where_there_are_too_many(tmp_path, monkeypatch):
    monkeypatch.setattr(duplicates, "BLOCK_ROWS", 50)
    monkeypatch.setattr(duplicates, "PAIR_LIMIT", 1_000)
    rng = np.random.default_rng(3)
    vectors = rng.standard_normal((300, 4)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    pairs = pairs_of(index_of(tmp_path, vectors), wanted=2.0)
    distances = np.sort((1 - vectors @ vectors.T)[np.triu_indices(300, 1)])
    assert pairs.is_cut and len(pairs.distances) == 1_000
    np.testing.assert_allclose(pairs.distances, distances[:1_000], atol=SLACK)
    assert distances[999] - SLACK <= pairs.limit <= distances[1_000]


def test_many_identical_images_are_one_group(tmp_path, monkeypatch):
    """Such as thousands of pictures that say that the picture is gone: no pair of them is kept."""
    monkeypatch.setattr(duplicates, "PAIR_LIMIT", 1_000)
    vectors = np.tile(np.eye(1, 8), (200, 1))
    vectors[7], vectors[8] = np.eye(8)[3], np.eye(8)[3] + 1e-3 * np.eye(8)[4]
    pairs = pairs_of(index_of(tmp_path, vectors), wanted=0.1)
    assert not pairs.is_cut and len(pairs.distances) == 1
    same = [row for row in range(200) if row not in (7, 8)]
    assert duplicates.near_groups(pairs, 0.1) == [same, [7, 8]]


def test_examples_are_the_farthest_pairs_within_the_distance(tmp_path):
    pairs = pairs_of(index_of(tmp_path, on_circle(0, 1, 20, 23, 40, 45, 80, 80)), wanted=apart(10))
    found = duplicates.examples(pairs, apart(4), 4)
    assert [(one, other) for one, other, _ in found] == [(2, 3), (0, 1), (6, 7)]
    assert found[0].distance == pytest.approx(apart(3), abs=SLACK) and found[2].distance == 0
    assert len(duplicates.examples(pairs, apart(10), 1)) == 1


@pytest.mark.parametrize("rows", [0, 1])
def test_nothing_to_compare(tmp_path, rows):
    pairs = pairs_of(index_of(tmp_path, np.eye(rows, 8)))
    assert (pairs.default, pairs.limit, pairs.is_cut) == (0, 0, False)
    assert duplicates.near_groups(pairs, 0.0) == duplicates.leaks(pairs, 0.0, rows) == []
    assert duplicates.examples(pairs, 0.0, 4) == []
