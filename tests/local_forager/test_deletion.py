"""Deleting a dataset: by command, on the page, while the server runs."""

import sqlite3
import sys

import pytest

import gcs
from tests.harness import run
from tests.local_forager import screen
from tests.local_forager.page_server import ask, fetch, get, page_server
from tests.local_forager.screen import expect


def delete_command(data_dir, bucket, *arguments):
    where = "--data_dir", str(data_dir), "--bucket", bucket
    return run([sys.executable, "-m", "local_forager", "delete", *arguments, *where])


def rows_left(data_dir):
    """The number of rows of each table."""
    with sqlite3.connect(data_dir / "forager.sqlite3") as database:
        tables = ("dataset", "item", "label", "box")
        return [database.execute(f"SELECT count(*) FROM {one}").fetchone()[0] for one in tables]


def files_left(data_dir):
    return sorted(path for path in data_dir.glob("*/**/*") if path.is_file())


@pytest.fixture
def two(emulator, tmp_path):
    """A server with the datasets "birds" and "cats", of two and three images, with labels."""
    with page_server(tmp_path) as server:
        for name, images in (("birds", 2), ("cats", 3)):
            server.publish(name, images)
            server.label(name, ["0"], "seen")
            assert server.box(name, "1", "seen", (1, 2, 3, 4)) == 200
            for row in range(images):
                assert fetch(f"{server.url}/page/{name}/thumbnail/{row}")[0] == 200
        yield server


def test_command_deletes_one_dataset_while_the_server_runs(two):
    cats = two.dataset("cats")
    before, objects = files_left(two.data_dir), bucket_names(two.index)
    index_id = two.dataset("birds")["index_id"]
    done = delete_command(two.data_dir, two.index, "birds", "--yes").succeeded()
    assert "Deleted dataset birds: 2 images, 2 labels." in done.stderr
    assert f"gcloud storage rm -r gs://{two.index}/indexes/{index_id}/" in done.stdout
    assert rows_left(two.data_dir) == [1, 3, 1, 1]
    gone = set(before) - set(files_left(two.data_dir))
    thumbnails = [path for path in gone if path.suffix == ".jpg"]
    assert len(thumbnails) == 2 and all(index_id in str(path) for path in gone - set(thumbnails))
    assert not (two.data_dir / "indexes" / index_id).exists()
    assert bucket_names(two.index) == objects
    status, answer = get(f"{two.url}/page/birds/rows")
    assert (status, answer) == (404, {"error": "There is no dataset named birds here."})
    assert {**two.dataset("cats"), "version": 0} == {**cats, "version": 0}
    delete_command(two.data_dir, two.index, "birds", "--yes").failed("It has: cats.")


def bucket_names(bucket):
    return sorted(blob.name for blob in gcs.make_client().list_blobs(bucket))


def test_command_asks_first(two):
    before = files_left(two.data_dir)
    delete_command(two.data_dir, two.index, "birds").failed("--yes")
    assert rows_left(two.data_dir)[0] == 2 and files_left(two.data_dir) == before


def test_index_of_two_datasets_stays(two):
    index_id = two.dataset("birds")["index_id"]
    two.create("again", index_id, "birds")
    done = delete_command(two.data_dir, two.index, "birds", "--yes").succeeded()
    assert "again has it too" in done.stdout and "gcloud" not in done.stdout
    assert (two.data_dir / "indexes" / index_id / "labels.json").exists()
    assert get(f"{two.url}/page/again/dataset")[1]["rows"] == 2


def test_labels_do_not_return_with_a_dataset_of_the_same_name(two):
    index_id = two.dataset("cats")["index_id"]
    assert two.dataset("cats")["labelled"] == 1
    delete_command(two.data_dir, two.index, "cats", "--yes").succeeded()
    two.create("cats", index_id, "cats")
    assert two.wait_until_copied("cats")["labelled"] == 0
    assert len(two.array("cats/map", "<f4")) == 6  # it is stored in the new copy of the index


def test_page_deletes_after_a_question(two, tabs):
    page = tabs(two.url)
    page.get_by_role("button", name="Delete birds…").click()
    dialog = page.get_by_role("dialog", name="Delete birds?")
    expect(dialog).to_contain_text("2 images and 2 labels")
    dialog.get_by_role("button", name="Cancel").click()
    assert rows_left(two.data_dir)[0] == 2
    page.get_by_role("button", name="Delete birds…").click()
    dialog.get_by_role("button", name="Delete", exact=True).click()
    expect(page.get_by_role("dialog", name="Deleted birds")).to_contain_text("gcloud storage rm")
    expect(page.locator(".card")).to_have_count(1)
    assert rows_left(two.data_dir) == [1, 3, 1, 1]
    page.close()  # before its server: the page asks for new datasets


def test_page_of_a_dataset_that_is_deleted_meanwhile(two, tabs):
    page = tabs(f"{two.url}/birds")
    screen.total(page, "2 images")
    delete_command(two.data_dir, two.index, "birds", "--yes").succeeded()
    expect(page.get_by_role("alert")).to_contain_text("There is no dataset named birds here.")
    assert len(page.problems) == 1 and "404" in page.problems.pop()
    page.close()


def test_another_site_cannot_delete(two):
    address = f"{two.url}/page/deletion?name=birds"
    assert ask(address, b"x", headers={"Origin": "http://evil.example"})[0] == 403
    assert ask(address)[0] == 200  # only says what a deletion means
    assert rows_left(two.data_dir)[0] == 2
