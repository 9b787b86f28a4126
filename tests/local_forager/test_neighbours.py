"""Exact neighbours, health checks and the map's layout on made-up vectors."""

from contextlib import closing

import numpy as np
import pytest

from local_forager.analysis import comparisons, jobs, maps
from local_forager.indexes import vectors as vectors_module
from testing import synthetic
from tests.local_forager.page_server import ignore, made_vectors

ROWS, DIMENSIONS = 500, 64


@pytest.fixture
def vectors():
    return np.concatenate(list(synthetic.vectors(ROWS, DIMENSIONS)))


def none_failed(rows=ROWS):
    return np.zeros(rows, bool)


@pytest.mark.parametrize("block_bytes", [1, 5_000, 10**9])
@pytest.mark.parametrize("keep_mapped", [0, 10**12])
def test_neighbours_are_exact(tmp_path, vectors, monkeypatch, block_bytes, keep_mapped):
    monkeypatch.setattr(vectors_module, "BLOCK_BYTES", block_bytes)
    monkeypatch.setattr(vectors_module, "KEEP_MAPPED_BYTES", keep_mapped)
    found = made_vectors(tmp_path, vectors).neighbours(7, 10, none_failed())
    distance = 1 - vectors.astype(float) @ vectors[7].astype(float)
    distance[7] = np.inf
    expected = np.argsort(distance)[:10]
    assert found.rows.tolist() == expected.tolist()
    np.testing.assert_allclose(found.distances, distance[expected], atol=1e-6)


def test_neighbours_leave_out_failed_images(tmp_path, vectors):
    failed = none_failed()
    failed[::2] = True
    vectors[failed] = 0
    found = made_vectors(tmp_path, vectors).neighbours(7, ROWS, failed)
    assert sorted(found.rows) == [row for row in range(1, ROWS, 2) if row != 7]


def test_neighbours_of_the_only_image_and_of_none(tmp_path, vectors):
    assert len(made_vectors(tmp_path, vectors[:1]).neighbours(0, 5, none_failed(1)).rows) == 0
    empty = made_vectors(tmp_path, np.zeros((0, 8)))
    assert len(empty.similarities(np.zeros(8, np.float32))) == 0


@pytest.mark.parametrize("block", [7, 2048])
def test_disagreeing_finds_the_swapped_label(tmp_path, vectors, monkeypatch, block):
    monkeypatch.setattr(comparisons, "NEIGHBOUR_ROWS", block)
    kinds = synthetic.kind_of(np.arange(ROWS))
    one, other = np.flatnonzero(kinds == 1), np.flatnonzero(kinds == 2)
    positive = {"one": np.append(one, other[0]), "other": other[1:]}
    embedding = made_vectors(tmp_path, vectors)
    assert comparisons.disagreeing(embedding, none_failed(), positive, ignore) == [[other[0]]]


def test_disagreeing_needs_two_categories_and_enough_labels(tmp_path, vectors):
    embedding = made_vectors(tmp_path, vectors)
    assert comparisons.disagreeing(embedding, none_failed(), {"a": np.arange(50)}, ignore) == []
    few = {"a": np.arange(3), "b": np.arange(3, 5)}
    assert comparisons.disagreeing(embedding, none_failed(), few, ignore) == []


def laid_out(vectors, failed, method):
    return maps.project(vectors, failed, method, maps.keys_of(vectors)).points


def test_map_is_the_principal_components_without_failed_images(tmp_path, vectors):
    vectors[5] = 0
    points = laid_out(made_vectors(tmp_path, vectors), ~vectors.any(axis=1), "pca")
    assert points.dtype == np.dtype("<f4") and points.shape == (ROWS, 2)
    assert np.isnan(points[5]).all()
    points, good = (np.delete(array, 5, axis=0) for array in (points, vectors))
    assert np.abs(points).max() == pytest.approx(1, abs=1e-5)
    centred = (good - good.mean(axis=0)).astype(float)
    _, _, axes = np.linalg.svd(centred, full_matrices=False)
    for column in range(2):
        assert abs(np.corrcoef(points[:, column], centred @ axes[column])[0, 1]) > 0.9999


@pytest.mark.parametrize("rows", [0, 1, 3])
def test_map_of_few_images(tmp_path, vectors, rows):
    points = laid_out(made_vectors(tmp_path, vectors[:rows]), none_failed(rows), "pca")
    assert points.shape == (rows, 2) and np.isfinite(points).all()


def test_neighbour_distances_agree_with_all_pairs(tmp_path):
    vectors = np.concatenate(list(synthetic.vectors(1_500, 16)))
    vectors[7] = 0
    failed = ~vectors.any(axis=1)
    found = comparisons.neighbour_distances(made_vectors(tmp_path, vectors), failed, ignore)
    distance = 1 - vectors.astype(float) @ vectors.T
    np.fill_diagonal(distance, np.inf)
    distance[:, 7] = np.inf
    nearest = np.sort(np.delete(distance, 7, axis=0), axis=1)[:, :10]
    good = np.delete(found, 7, axis=0)
    np.testing.assert_allclose(good[:, 0], nearest[:, 0], atol=1e-5)
    np.testing.assert_allclose(good[:, 1], nearest.mean(axis=1), atol=1e-5)
    assert np.isnan(found[7]).all()


def test_results_that_were_asked_for_last_are_kept(monkeypatch):
    monkeypatch.setattr(jobs, "KEPT_JOBS", 2)
    with closing(jobs.Jobs()) as kept:
        for key in ("a", "b", "a", "c", "d"):
            assert kept.start(key, lambda progress, key=key: key).future.result() == key
        assert [kept.get(key) is not None for key in "abcd"] == [False, False, True, True]
