"""Maps of datasets that grew: what they keep of the maps of other indexes."""

import sys
from types import SimpleNamespace

import numpy as np
import pytest

from local_forager.analysis import maps
from local_forager.indexes.vectors import Vectors
from local_forager.types import PageError
from testing import synthetic
from tests.local_forager.page_server import page_server

OLD, ALL, DIMENSIONS, FAILED = 300, 500, 32, 7
KEPT = [row for row in range(OLD) if row != FAILED]


@pytest.fixture(autouse=True)
def umap_of_two_numbers(monkeypatch):
    """UMAP replaced by what tells its images apart: two of their numbers, and their order."""

    class UMAP:
        def __init__(self, **options):
            assert options["metric"] == "cosine" and options["random_state"] == maps.SEED

        def fit_transform(self, good):
            return good[:, :2] * 100 + np.linspace(0, 1, len(good))[:, None]

    monkeypatch.setitem(sys.modules, "umap", SimpleNamespace(UMAP=UMAP))


@pytest.fixture
def array():
    """Vectors of which one is of a failed image, and a row of the last 200 is almost row 3."""
    vectors = np.concatenate(list(synthetic.vectors(ALL, DIMENSIONS)))
    vectors[FAILED] = 0
    vectors[400] = vectors[3] + 1e-4 * vectors[4]
    return vectors


def points_of(directory, index_id, array, method):
    """The map of an index with these vectors, saved among those of other indexes."""
    copy = directory / index_id
    copy.mkdir(exist_ok=True)
    array.tofile(copy / "clip.f32")
    vectors = Vectors(copy / "clip.f32", *array.shape)
    failed = ~array.any(axis=1)
    made = maps.saved_projection(copy / f"map-clip-{method}.npz", vectors, failed, method)
    return np.frombuffer(made, "<f4").reshape(-1, 2)


@pytest.mark.parametrize("method", maps.METHODS)
def test_images_that_were_there_keep_their_places(tmp_path, array, method):
    old = points_of(tmp_path, "old", array[:OLD], method)
    order = np.random.default_rng(1).permutation(ALL)
    found = np.empty((ALL, 2), np.float32)
    found[order] = points_of(tmp_path, "new", array[order], method)
    np.testing.assert_array_equal(found[:OLD], old)
    np.testing.assert_allclose(found[400], old[3], atol=0.01)
    assert np.isnan(found[FAILED]).all() and np.isfinite(found[OLD:]).all()
    if method == "umap":
        new, places = array[OLD:], old[KEPT]
        near = np.argsort(-(new @ array[KEPT].T), axis=1)[:, : maps.NEAREST]
        assert (places[near].min(axis=1) - 1e-6 <= found[OLD:]).all()
        assert (found[OLD:] <= places[near].max(axis=1) + 1e-6).all()
    else:
        axes, middle, scale = (
            getattr(maps.read_layout(tmp_path / "old" / "map-clip-pca.npz"), name)
            for name in ("axes", "middle", "scale")
        )
        expected = (array[OLD:] @ axes - middle) / scale
        np.testing.assert_allclose(found[OLD:], expected, atol=1e-5)


@pytest.mark.parametrize("method", maps.METHODS)
def test_places_are_kept_again_when_the_first_index_is_gone(tmp_path, array, method):
    points_of(tmp_path, "first", array[:200], method)
    second = points_of(tmp_path, "second", array[:OLD], method)
    (tmp_path / "first" / f"map-clip-{method}.npz").unlink()
    third = points_of(tmp_path, "third", array, method)
    np.testing.assert_array_equal(third[:OLD], second)
    if method == "pca":
        axes = [
            maps.read_layout(tmp_path / one / "map-clip-pca.npz").axes
            for one in ("second", "third")
        ]
        np.testing.assert_array_equal(*axes)


OTHERS = {
    "no other map": lambda path, array: None,
    "less than half of the images": lambda path, array: points_of(path, "o", array[:240], "pca"),
    "other vectors": lambda path, array: points_of(path, "o", -array, "pca"),
}


@pytest.mark.parametrize("case", OTHERS)
def test_a_map_is_its_own_where_no_other_fits(tmp_path, array, case):
    OTHERS[case](tmp_path, array)
    alone = tmp_path / "alone"
    alone.mkdir()
    found = points_of(tmp_path, "new", array, "pca")
    np.testing.assert_array_equal(found, points_of(alone, "new", array, "pca"))
    assert np.nanmax(np.abs(found)) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("damage", [lambda data: data[:500], lambda data: b"x" * 99, lambda _: b""])
def test_a_damaged_map_is_computed_again(tmp_path, array, damage):
    whole = points_of(tmp_path, "one", array, "pca")
    path = tmp_path / "one" / "map-clip-pca.npz"
    path.write_bytes(damage(path.read_bytes()))
    other = points_of(tmp_path, "another", array[:OLD], "pca")  # does not stumble over it
    assert other.shape == (OLD, 2)
    path.write_bytes(damage(b"PK" * 400))
    (tmp_path / "another" / path.name).unlink()
    np.testing.assert_array_equal(points_of(tmp_path, "one", array, "pca"), whole)
    assert maps.read_layout(path, ALL) is not None


def test_the_map_with_most_of_the_images_is_chosen(tmp_path, array):
    for name, rows, directory in (("few", 260, "few"), ("many", 400, "."), ("some", 300, "some")):
        elsewhere = tmp_path / "elsewhere" / directory  # so that no map begins with another one
        elsewhere.mkdir(parents=True, exist_ok=True)
        places = points_of(elsewhere, name, array[:rows], "umap")
        (elsewhere / name).rename(tmp_path / name)
        if name == "many":
            most = places
    np.testing.assert_array_equal(points_of(tmp_path, "new", array, "umap")[:400], most)


@pytest.mark.parametrize(
    ("rows", "installed", "expected"),
    [(10, True, "umap"), (maps.UMAP_ROWS, True, "umap"), (10**6, True, "pca"), (10, False, "pca")],
)
def test_umap_is_the_usual_layout_where_it_is_installed(monkeypatch, rows, installed, expected):
    monkeypatch.setattr(maps, "umap_installed", lambda: installed)
    assert maps.default_method(rows) == expected


def test_a_dataset_that_grew_keeps_its_places_on_the_page(emulator, tmp_path):
    with page_server(tmp_path) as server:  # without maps of other datasets
        server.publish("d", 40)
        old = server.array("d/map?by=clip", "<f4")
        server.publish("grew", 60)
        new = server.array("grew/map?by=clip", "<f4")
    assert len(new) == 120
    np.testing.assert_array_equal(new[:80], old)


def test_images_in_a_line_are_laid_out_when_there_are_enough(tmp_path, array):
    assert points_of(tmp_path, "line", array[:4], "pca")[:, 1].tolist() == [0, 0, 0, 0]
    assert np.ptp(points_of(tmp_path, "plane", array[:6], "pca"), axis=0).min() > 0.1


def test_a_umap_that_cannot_be_loaded_is_a_sentence(tmp_path, array, monkeypatch):
    monkeypatch.setitem(sys.modules, "umap", None)
    with pytest.raises(PageError, match="UMAP cannot be loaded .* install umap-learn anew"):
        points_of(tmp_path, "one", array, "umap")
    assert not list((tmp_path / "one").glob("map*"))
