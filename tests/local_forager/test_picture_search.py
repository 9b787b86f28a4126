"""A picture as the question: its vectors, over HTTP, by the command, and on the page."""

import base64
import http.client
import json
import re
from urllib.parse import urlsplit

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet

from bench.support.device import embed
from dataset import manifest
from dataset.arrays import DIMENSIONS
from embeddings import Embedder
from engine.decode import open_image, prepare
from local_forager import types as page_types
from local_forager.analysis import picture_search
from local_forager.page import questions
from local_forager.types import PageError
from testing import synthetic
from tests.local_forager import screen
from tests.local_forager.page_server import conforms, fetch, get, made_index, page_server
from tests.local_forager.screen import expect

ROWS = 6
TOLERANCE = 1e-6  # of elements of unit vectors, as in tests/models


def vectors_of(embedder, pictures):
    """{name: rows} as an ingest computes them."""
    decoded = [prepare(open_image(data)) for data in pictures]
    found = embed(embedder, [one.pixels for one in decoded], [one.clip_input for one in decoded])
    rows = zip(*(embedding.vectors for embedding in found), strict=True)
    return {name: np.stack(row) for name, row in zip(DIMENSIONS, rows, strict=True)}


@pytest.fixture(scope="module")
def weights(weights_dir):
    return weights_dir / "R-50.pkl", weights_dir / "clip-vit-base-patch32"


@pytest.fixture(scope="module")
def computed(weights):
    embedder = Embedder(*weights, device="cpu", precision="float32")
    return vectors_of(embedder, [synthetic.landscape(row) for row in range(ROWS)])


@pytest.fixture(scope="module")
def asked(emulator_url, tmp_path_factory, weights, computed):
    """A server with both weights, and a dataset "real" whose vectors are those of its images."""

    def put_vectors(file):
        for name, rows in computed.items():
            file(f"local/{name}/embeddings.npy").upload_from_string(rows.astype("<f4").tobytes())

    options = "--resnet_weights", str(weights[0]), "--clip_weights", str(weights[1])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("STORAGE_EMULATOR_HOST", emulator_url)
        with page_server(tmp_path_factory.mktemp("asked"), *options) as server:
            server.publish("real", ROWS, change=put_vectors)
            yield server


def give(server, data, name="real", headers=None):
    status, _, answer = fetch(f"{server.url}/page/{name}/picture", headers, data, "POST")
    return status, json.loads(answer) if answer.startswith(b"{") else answer


@pytest.mark.parametrize("by", DIMENSIONS)
def test_vectors_are_those_of_an_ingest(weights, computed, by):
    found = picture_search.find_weights(*weights)
    assert found.problems == dict.fromkeys(("clip", "imagenet", "imagenet_early"))
    picture = picture_search.read_picture(synthetic.landscape(3))
    vector = picture_search.picture_vectors(found, picture, [by])[by]
    assert vector.dtype == np.float32 and abs(vector - computed[by][3]).max() < TOLERANCE


@pytest.mark.parametrize("by", DIMENSIONS)
def test_a_copy_of_an_image_is_nearest_to_that_image(asked, by):
    status, given = give(asked, synthetic.landscape(3))
    assert status == 200
    conforms(given, page_types.PictureQuestion)
    query = f"like={given['like']}&by={by}"
    assert asked.rows(query, "real")[0] == 3
    distances = asked.array(f"real/distances?{query}", "<f4")
    assert round(float(distances[0]), 3) == 0 and distances[1] > 0
    assert asked.rows(f"{query}&split=val", "real") == []
    assert get(f"{asked.url}/page/real/picture/{given['like']}") == (200, given)


def test_pictures_are_not_stored(asked):
    data = synthetic.landscape(77)
    give(asked, data)
    files = [path for path in asked.data_dir.rglob("*") if path.is_file()]
    assert files and all(data not in path.read_bytes() for path in files)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "the file is empty"),
        (b"no picture", "not an image in a supported format"),
        (synthetic.landscape(0)[:2000], "it cannot be decoded"),
    ],
)
def test_a_picture_that_cannot_be_decoded(asked, data, reason):
    status, answer = give(asked, data)
    assert status == 400 and reason in answer["error"]


def test_a_picture_that_is_too_large_is_not_read(asked):
    address = urlsplit(asked.url)
    connection = http.client.HTTPConnection(address.hostname, address.port)
    connection.putrequest("POST", "/page/real/picture")
    connection.putheader("Content-Length", str(questions.MAX_BYTES + 1))
    connection.endheaders()
    answer = connection.getresponse()
    assert answer.status == 413 and "larger than 1.1 GB" in json.loads(answer.read())["error"]
    connection.close()


def test_a_picture_that_is_gone_is_asked_for_again(asked):
    token = questions.PREFIX + "0" * 32
    gone = {"like": token, "by": [], "reason": questions.GONE}
    assert get(f"{asked.url}/page/real/picture/{token}") == (200, gone)
    assert get(f"{asked.url}/page/real/rows?like={token}") == (404, {"error": questions.GONE})


def test_without_weights_the_reason_names_the_options(server):
    status, answer = give(server, synthetic.landscape(0), "d")
    assert status == 409
    assert "--clip_weights" in answer["error"] and "--resnet_weights" in answer["error"]
    assert not server.dataset("d")["picture_search"]["available"]


def test_with_one_model_only_its_embeddings(weights, tmp_path):
    found = picture_search.find_weights(tmp_path / "missing", weights[1])
    assert found.usable()[0] == ["clip"]
    with pytest.raises(PageError, match="--resnet_weights"):
        found.check("imagenet", made_index([], 0, directory=tmp_path))
    assert picture_search.find_weights(weights[0], None).usable()[0] == [
        "imagenet",
        "imagenet_early",
    ]


def test_an_index_of_other_weights_is_not_compared(weights, tmp_path):
    """Its vectors would be far from those of its own images."""
    table = pa.table({"object": []}).replace_schema_metadata(
        {"forager": json.dumps({"clip_weights_sha256": "0" * 64})}
    )
    parquet.write_table(table, tmp_path / manifest.NAME)
    index, found = made_index([], 0, directory=tmp_path), picture_search.find_weights(*weights)
    assert found.usable(index) == (["imagenet", "imagenet_early"], "")
    with pytest.raises(PageError, match="other weights than .*: give those with --clip_weights"):
        found.check("clip", index)


def test_export_like_an_image(asked, emulator, weights, computed, tmp_path):
    picture = tmp_path / "question.jpg"
    picture.write_bytes(synthetic.landscape(4))
    like = "real", "--like_image", str(picture), "--clip_weights", str(weights[1])
    done = asked.command("export", *like, "--count", "7").succeeded()
    order = np.argsort(-computed["clip"] @ computed["clip"][4], kind="stable")
    assert done.stdout.split() == [f"real/train/{row}.jpg" for row in order]
    assert "Exported 6 images." in done.stderr
    picture.write_bytes(b"no picture")
    asked.command("export", *like).failed("question.jpg cannot be used: not an image in")
    without = "real", "--like_image", str(picture), "--by", "clip"
    asked.command("export", *without).failed("--clip_weights")


DROP = """([name, bytes, kind]) => {
  const transfer = new DataTransfer();
  transfer.items.add(new File([Uint8Array.from(atob(bytes), c => c.charCodeAt(0))], name));
  const place = document.querySelector('.stage');
  const event = (type) => kind === 'paste'
    ? new ClipboardEvent(type, { clipboardData: transfer, bubbles: true, cancelable: true })
    : new DragEvent(type, { dataTransfer: transfer, bubbles: true, cancelable: true });
  if (kind === 'paste') { place.dispatchEvent(event('paste')); return true; }
  const over = event('dragover');
  place.dispatchEvent(over);
  const marked = place.classList.contains('dropping');
  place.dispatchEvent(event('drop'));
  return marked && over.defaultPrevented;
}"""


def drop(page, data, kind="drop"):
    """Drop a picture on the images, or paste it; returns whether the page showed where."""
    return page.evaluate(DROP, ["picture.jpg", base64.b64encode(data).decode(), kind])


def shows_likeness(page, row):
    """Wait until the images are sorted by similarity to a copy of this one."""
    screen.chips(page, "by similarity to your picture")
    screen.complete(page)
    expect(screen.tiles(page).first).to_have_attribute("href", re.compile(f"image={row}$"))
    expect(page.locator(".badge.far").first).to_have_text("0.000")


def test_choose_drop_and_paste_a_picture(asked, tabs):
    page = tabs("about:blank")
    page.on("filechooser", lambda _: None)  # from now on; to begin only with the key would race it
    page.goto(f"{asked.url}/real?by=imagenet")
    screen.complete(page)
    page.get_by_role("button", name="Search by a picture").focus()
    with page.expect_file_chooser() as chooser:
        page.keyboard.press("Enter")
    picture = {"name": "x.jpg", "mimeType": "image/jpeg", "buffer": synthetic.landscape(2)}
    chooser.value.set_files(picture)
    shows_likeness(page, 2)
    expect(page).to_have_url(re.compile(r"\?like=picture-[0-9a-f]{32}&by=imagenet$"))
    assert drop(page, synthetic.landscape(4))
    shows_likeness(page, 4)
    drop(page, synthetic.landscape(5), "paste")
    shows_likeness(page, 5)
    page.go_back()
    shows_likeness(page, 4)
    page.get_by_role("link", name="Remove the filter: by similarity to your picture").click()
    screen.chips(page)


def test_a_file_that_is_no_picture_on_the_page(asked, tabs):
    page = tabs(f"{asked.url}/real", viewport={"width": 400, "height": 800})
    screen.complete(page)
    drop(page, b"no picture")
    reason = page.get_by_text("The picture cannot be used: not an image in a supported format")
    expect(reason).to_be_visible()  # the filters open for it
    screen.total(page, f"{ROWS} images")
    page.problems[:] = [one for one in page.problems if "status of 400" not in one]


def test_a_picture_in_an_address_after_a_restart(asked, tabs):
    page = tabs(f"{asked.url}/real?like={questions.PREFIX}00ff&split=train")
    screen.total(page, f"{ROWS} images")
    expect(page.get_by_role("alert")).to_have_text(questions.GONE)
    screen.chips(page, "train")


def test_the_page_says_why_no_picture_can_be_compared(server, opened):
    page = opened()
    expect(page.get_by_role("button", name="Search by a picture")).to_be_disabled()
    about = page.locator("#picture-about")
    expect(about).to_contain_text("--clip_weights")
    expect(about).to_contain_text("--resnet_weights")
    assert not drop(page, synthetic.landscape(0))
    expect(page.get_by_text("No picture can be compared here.")).to_be_visible()
