"""Searches with an inverted file: against exact ones, over HTTP, on the page, without faiss."""

from types import SimpleNamespace

import numpy as np
import pytest

from local_forager import types as page_types
from local_forager.analysis import duplicates
from local_forager.analysis.health import PAIRS_ROWS
from local_forager.indexes import vectors as approximate
from local_forager.page.state import View
from testing import synthetic
from tests.harness import wait_for
from tests.local_forager import screen
from tests.local_forager.page_server import (
    COPY,
    FAILED,
    NAMES,
    ignore,
    made_index,
    made_vectors,
    page_server,
)

ROWS, DIMENSIONS, FAILED_ROW = 6_000, 32, 17


@pytest.fixture(scope="module")
def vectors(tmp_path_factory):
    array = np.concatenate(list(synthetic.embeddings(ROWS, DIMENSIONS)))
    array[FAILED_ROW] = 0
    return made_vectors(tmp_path_factory.mktemp("vectors"), array)


@pytest.fixture(scope="module")
def failed(vectors):
    return ~vectors.array.any(axis=1)


@pytest.fixture(scope="module")
def inverted(vectors, failed, tmp_path_factory):
    pytest.importorskip("faiss", reason="no faiss: pip install -r requirements-faiss.txt")
    path = tmp_path_factory.mktemp("inverted") / "file"
    return approximate.open_or_build(path, vectors, failed, ignore)


def recall(inverted, vectors, failed, rows):
    """The share of the 20 nearest images of these rows that an inverted file finds."""
    shares = []
    for row in rows:
        found, expected = inverted.neighbours(row, 20), vectors.neighbours(row, 20, failed)
        assert len(found.rows) == 20 and row not in found.rows and not failed[found.rows].any()
        assert (np.diff(found.distances) >= 0).all()
        np.testing.assert_allclose(
            found.distances, 1 - vectors.array[found.rows] @ vectors.array[row], atol=1e-5
        )
        shares.append(len(set(found.rows) & set(expected.rows)) / 20)
    return np.mean(shares)


def test_neighbours_are_nearly_exact(inverted, vectors, failed):
    assert inverted.lists == 11
    assert recall(inverted, vectors, failed, range(100, 140)) >= 0.95


def test_more_neighbours_than_images(inverted):
    assert len(set(inverted.neighbours(0, ROWS).rows)) > ROWS / 2


@pytest.mark.parametrize("damage", [None, b"", b"x" * 100, "of other vectors"])
def test_the_file_is_built_once_unless_damaged(vectors, failed, inverted, tmp_path, damage):
    path, reports, others = tmp_path / "file", [], failed.copy()
    others[:10] = damage == "of other vectors"
    approximate.open_or_build(path, vectors, others, ignore)
    if isinstance(damage, bytes):
        path.write_bytes(damage)
    again = approximate.open_or_build(path, vectors, failed, reports.append)
    assert (len(reports) > 1) == (damage is not None)
    assert again.neighbours(5, 9).rows.tolist() == inverted.neighbours(5, 9).rows.tolist()
    assert [file.name for file in tmp_path.iterdir()] == ["file"]


def test_near_duplicates_agree_with_all_pairs(inverted, vectors, failed):
    index = made_index(list(map(str, range(ROWS))), 0, failed=failed, embeddings={"clip": vectors})
    found = duplicates.near_pairs(index, "clip", ignore, inverted=inverted)
    expected = duplicates.near_pairs(index, "clip", ignore)
    assert not found.exact and found.default == expected.default
    every = duplicates.near_groups(expected, expected.default)
    assert len(every) > 50
    some = duplicates.near_groups(found, found.default)
    assert len([group for group in every if group not in some]) <= 0.02 * len(every)


def test_a_search_of_100_000_reads_few_of_them(tmp_path):
    pytest.importorskip("faiss", reason="no faiss: pip install -r requirements-faiss.txt")
    vectors = made_vectors(tmp_path, np.concatenate(list(synthetic.embeddings(100_000, 64))))
    failed = np.zeros(100_000, bool)
    inverted = approximate.open_or_build(tmp_path / "file", vectors, failed, ignore)
    assert inverted.lists == 200
    assert recall(inverted, vectors, failed, range(30)) >= 0.95


@pytest.mark.parametrize(
    ("rows", "exact_rows", "in_lists"),
    [(PAIRS_ROWS, 200_000, False), (PAIRS_ROWS + 1, 200_000, True), (60, 50, True)],
)
def test_near_duplicates_of_many_images_are_searched_for_in_lists(rows, exact_rows, in_lists):
    pytest.importorskip("faiss", reason="no faiss: pip install -r requirements-faiss.txt")
    index = made_index(["x"] * rows, rows, embeddings={"clip": None})
    page = SimpleNamespace(jobs=None, options=SimpleNamespace(exact_rows=exact_rows))
    view = View(page=page, dataset=None, index=index, table=None)
    assert view.health("clip").in_lists == in_lists


def neighbours(server, query=""):
    return server.typed(f"d/neighbours/2?{query}", page_types.NeighbourList)


def ready(server, by="clip"):
    """Wait until the inverted file is built; searches until then compare all images."""
    pytest.importorskip("faiss", reason="no faiss: pip install -r requirements-faiss.txt")
    state = neighbours(server, f"by={by}")["search"]["state"]
    assert state in ("building", "ready")

    def built():
        return server.typed(f"d/search?by={by}", page_types.SearchState)["state"] == "ready"

    wait_for(built)


def test_neighbours_of_a_large_index(server):
    ready(server, "imagenet")
    found = neighbours(server, "by=imagenet&count=79")
    exact = neighbours(server, "by=imagenet&count=79&exact=1")
    assert not found["exact"] and exact["exact"]
    assert found["neighbours"] == exact["neighbours"]
    assert found["neighbours"][0]["image"]["row"] == COPY


def test_neighbours_of_a_large_index_on_the_page(server, tabs):
    ready(server)
    page = tabs(f"{server.url}/d?image=2")
    near = page.locator(".near")
    near.get_by_text("among roughly similar images; a few may be missing.").wait_for()
    assert near.locator(".strip li").count() == 24
    near.get_by_role("button", name="Compare with all").click()
    near.get_by_text("80 images compared in").wait_for()
    assert near.get_by_role("button", name="Compare with all").count() == 0
    building = {"state": "building", "progress": 0.4, "reason": ""}
    answer = neighbours(server, "exact=1") | {"search": building}
    page.route("**/neighbours/2?*", lambda route: route.fulfill(json=answer))
    page.reload()
    page.get_by_text("A faster search is being prepared: 40%.").wait_for()
    page.get_by_text("A faster search is ready.").wait_for()


def test_near_duplicates_of_a_large_index(server, tabs):
    ready(server, "imagenet_early")
    page = tabs(f"{server.url}/d?view=health&by=imagenet_early")
    finding = page.locator("[data-set=near]")
    finding.get_by_text("Show 2 images in 1 group").wait_for()
    finding.get_by_text("Only roughly similar images were compared").wait_for()
    page.get_by_role("button", name="Compare all pairs for near duplicates: about a minute").click()
    finding.get_by_text("Only roughly similar images were compared").wait_for(state="hidden")
    finding.get_by_text("Show 2 images in 1 group").click()
    screen.total(page, "2 of 80 images")


def test_everything_works_without_faiss(tmp_path, monkeypatch):
    site = tmp_path / "site"
    site.mkdir()
    (site / "sitecustomize.py").write_text("import sys\nsys.modules['faiss'] = None\n")
    monkeypatch.setenv("PYTHONPATH", str(site))
    with page_server(tmp_path, "--exact_rows", "50") as server:
        server.publish("d", NAMES, 60, failed={FAILED}, same={COPY: 2})
        found = neighbours(server, "count=79")
        assert found["exact"] and len(found["neighbours"]) == 78
        assert found["search"] == {
            "state": "exact", "progress": 1.0, "reason": approximate.NOT_INSTALLED,
        }  # fmt: skip
        report = wait_for(lambda: compared(server))
        assert report["all_pairs"]["state"] == "none"
        near = next(one for one in report["findings"] if one["set"] == "near")
        assert near["images"] == 2 and "roughly" not in near["about"]


def compared(server):
    report = server.typed("d/health", page_types.HealthReport)
    return all(one["state"] == "ready" for one in report["findings"]) and report
