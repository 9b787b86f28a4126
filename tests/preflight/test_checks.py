"""Every refusal before the first image is fetched: one message, exit code 1, nothing left."""

import json
import shutil
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import urlopen

import pytest

import gcs
from engine.loading import ModelLoader
from testing.embedders import FakeEmbedder
from tests.harness import has_only_a_report, refusing
from tests.stand_in import Answer, Rule, StandIn

CLIP = "clip-vit-base-patch32"


def refusal(result):
    """What the user is told, after the lines on what was listed and tried."""
    return result.refused().error.rstrip("\n")


@pytest.fixture
def ready(world, fast_models):
    """A world in which every check passes."""
    world.put("t/a.jpg", "v/b.jpg")
    return world


@pytest.mark.parametrize("name", ["my birds", "x" * 51, "a/b", "été", "../up", ""])
def test_dataset_name(ready, name, tmp_path):
    arguments = [name, *ready.arguments()[1:]]
    message = refusal(ready.invoke(arguments))
    assert message == (
        f"The dataset name {name!r} is not valid: use 1 to 50 letters, digits, dashes and "
        "underscores."
    )
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "url", ["", "host:8000", "ftp://host", "http://", "http://h:99999", "http://h/?q"]
)
def test_server_url_is_no_address(ready, url):
    ready.server = url
    assert "http://HOST:PORT" in refusal(ready.run())


def test_nobody_listens(ready):
    with refusing() as ready.server:
        message = refusal(ready.run())
    assert message == (
        f"Cannot reach the Forager server at {ready.server} (Connection refused): check "
        "SERVER_URL, and that the server is running."
    )


PAGE = b"<html><head><title>Forager &amp; friends</title></head></html>"


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (Answer(200, PAGE), "a web page ('Forager & friends') instead of JSON"),
        (Answer(302, b"", {"Location": "https://login.example/"}), "redirects GET api/get_d"),
        (Answer(404, PAGE), "is not a Forager server that this program can talk to"),
        (Answer(200, {"a": 1}), "JSON of another shape than a Forager server"),
        (Answer(401, b""), "with HTTP 401: it asks for a login"),
        (Answer(500, PAGE), "HTTP 500 (Forager & friends)"),
        (None, "is the later forager-server from PyPI, which takes local directories"),
    ],
)
def test_no_forager_server(ready, answer, message):
    later = Rule("/api/get_datasets$", Answer(200, {"dataset_names": []}))
    with StandIn(None, Rule("", answer) if answer else later) as server:
        said = refusal(ready.run(server=server))
    assert message in said
    assert server.url in said


def test_dataset_is_there_already(ready):
    info = {"index_id": "other-index", "num_train": 1200, "num_val": 34}
    with StandIn(None, Rule("", Answer(200, info))) as server:
        assert refusal(ready.run(server=server)) == (
            f"The dataset {ready.name} is already there, with 1,200 training and 34 validation "
            "images (index other-index): choose another name."
        )


@pytest.mark.parametrize(
    ("train", "val", "message"),
    [
        ("t", "gs://{bucket}/v", "t is not a Cloud Storage path: write gs://BUCKET/DIRECTORY."),
        ("gs://{bucket}/t", "gs://v", "gs://v names no bucket"),
        ("gs://{bucket}/t", "gs://other/v", "gs://other/v are in two buckets: the web page "),
        ("gs://{bucket}/t", "gs://{bucket}/t/", "gs://{bucket}/t/ is named for both splits: name"),
        ("gs://{bucket}/t", "gs://{bucket}/t/v", "gs://{bucket}/t/ contains gs://{bucket}/t/v/, "),
        ("gs://{bucket}/t/v", "gs://{bucket}/t", "gs://{bucket}/t/ contains gs://{bucket}/t/v/, "),
        ("gs://{bucket}", "gs://{bucket}/v", "gs://{bucket}/ contains gs://{bucket}/v/, whose"),
        ("gs://{bucket}/t", "gs://{bucket}/none", "No validation images under gs://{bucket}/none/"),
        ("gs://{bucket}/T", "gs://{bucket}/v", "No training images under gs://{bucket}/T/: images"),
        (
            "gs://nowhere/t",
            "gs://nowhere/v",
            "There is no bucket gs://nowhere: correct TRAIN_PATH and VAL_PATH. Your project has ",
        ),
    ],
)
def test_paths(ready, train, val, message):
    bucket = ready.images
    said = refusal(ready.run(train=train.format(bucket=bucket), val=val.format(bucket=bucket)))
    assert message.format(bucket=bucket) in said
    assert "\n  - " not in said


def test_an_empty_validation_path_says_how_to_go_on(ready):
    message = refusal(ready.run(val=f"gs://{ready.images}/none"))
    assert message == (
        f"No validation images under gs://{ready.images}/none/: images are objects that end in "
        ".jpg, .jpeg, .png, in lower case; --allow_empty_val continues without them. Directories "
        f"beside it: gs://{ready.images}/v/, gs://{ready.images}/t/."
    )


def test_duplicates_over_both_splits_are_named(ready, tmp_path):
    ready.put("t/x/a.png", "t/b.jpeg", "v/c.jpg", "t/c.d.jpg")
    message = refusal(ready.run())
    assert message == (
        "2 duplicate basenames: each must be unique over training and validation, without the "
        "extension. Rename or remove all but one of each. The script of --dry_run --write_renames "
        "FILE puts the directories into the names, such as cat/cat_0001.jpg for "
        "cat/0001.jpg.\n      a: t/a.jpg\n"
        "      a: t/x/a.png\n      b: t/b.jpeg\n      b: v/b.jpg"
    )
    assert ready.objects() == {}
    assert has_only_a_report(Path("work"))


def test_more_than_ten_duplicates_go_to_a_file(ready, tmp_path):
    ready.put(*(f"{split}/{number:02}.jpg" for split in ("t/x", "t/y") for number in range(11)))
    message = refusal(ready.run())
    assert "      04: t/y/04.jpg\n      ... and 12 more; all are in " in message
    (path,) = tmp_path.glob("*.json")
    assert str(path) in message
    assert json.loads(path.read_text())["10"] == ["t/x/10.jpg", "t/y/10.jpg"]
    assert len(json.loads(path.read_text())) == 11


def test_too_long_names(ready):
    long, deep = f"t/{'i' * 301}.jpg", "t/" + "d/" * 298 + "x.jpg"
    ready.put(long, deep, f"t/{'é' * 300}.jpg", "t/" + "d/" * 296 + "ab.jpg")  # these fit
    message, *objects = refusal(ready.run()).split("\n      ")
    assert message == (
        "Too long for the server, which takes 600 characters, and 300 in basenames: 2 names. "
        "Rename these objects."
    )
    assert [name[:6] for name in objects] == ["t/d/d/", "t/iiii"]


def test_names_that_act_on_a_terminal_are_escaped(ready):
    ready.put("t/\x1b[31mred.jpg", "v/\x1b[31mred.jpg", "t/\u202egpj.jpg", "v/\u202egpj.png")
    ready.put(**{"t/\x1b]0;title\x07.txt": b"x"})
    result = ready.run()
    assert r"\x1b[31mred: t/\x1b[31mred.jpg" in refusal(result)
    assert result.output.replace("\n", "").isprintable()


ANONYMOUS = "(GET|HEAD) /(?!storage/|upload/|download/)"  # without the API, as a browser asks


def refused(ready, *rules, options=()):
    """What the user is told where storage answers by these rules; nothing is written."""
    with StandIn(ready.storage.url, *rules) as storage:
        message = refusal(ready.run(*options, storage=storage))
    assert not storage.requests("POST ")
    return message


@pytest.mark.parametrize("status", [401, 403])
def test_a_bucket_that_is_not_public(ready, status):
    message = refused(ready, Rule(ANONYMOUS, Answer(status)))
    assert message.startswith("2 problems found")  # one image of each split
    for name in ("t/a.jpg", "v/b.jpg"):
        assert (
            f"\n  - gs://{ready.images}/{name} cannot be read without credentials, which the web "
            "page needs. To make the bucket public: gcloud storage buckets add-iam-policy-binding "
            f"gs://{ready.images} --member=allUsers --role=roles/storage.objectViewer"
        ) in message


PAYS = b"<Message>Bucket is a requester pays bucket but no user project provided.</Message>"


@pytest.mark.parametrize(
    ("pattern", "answer", "message"),
    [
        # Its owner can list it; a browser cannot read it.
        (ANONYMOUS, Answer(400, PAYS), f"gs://{{images}}: {gcs.REQUESTER_PAYS}"),
        (r"/v/b\.jpg$", Answer(403), "gs://{images}/v/b.jpg cannot be read without credentials"),
        (r"/v/b\.jpg$", Answer(404), "gs://{images}/v/b.jpg gives HTTP 404 without "),
        (
            "testPermissions",
            Answer(200, {"permissions": ["storage.objects.get"]}),
            "The credentials in use lack storage.objects.create, storage.objects.delete on "
            "gs://{index}: ask its owner for the role Storage Object User, or name a "
            "bucket of your own with --bucket.",
        ),
        ("testPermissions", Answer(404, {}), "There is no bucket gs://{index}: correct --bucket"),
    ],
)
def test_a_bucket_that_cannot_be_used(ready, pattern, answer, message):
    said = refused(ready, Rule(pattern, answer))
    assert said.startswith(message.format(images=ready.images, index=ready.index))


@pytest.mark.parametrize(
    ("variable", "value", "shown"),
    [
        ("FORAGER_RETRY_BASE_S", "fast", "fast"),
        ("STORAGE_EMULATOR_HOST", "http://host:port", "http://host:..."),
    ],
)
def test_a_wrong_variable_of_the_environment_is_one_sentence(ready, variable, value, shown):
    said = refusal(ready.run(**{variable: value}))
    assert said.startswith(f"{variable}='{shown}' in the environment is not ")


@pytest.mark.parametrize("others", [[], ["t/c.jpg"]])
def test_an_empty_first_image_is_not_called_private(ready, others):
    ready.put(*others, **{"t/0.jpg": b""})
    with StandIn(ready.storage.url, Rule(f"/{ready.images}/t/0.jpg$", "416")) as storage:
        ready.ingest("--dry_run", storage=storage)


def without_crc32c(emulator, names):
    """A storage that lists these objects without crc32c and, as if they were empty, size."""

    def rule(asked):
        if not urlsplit(asked.path).path.endswith("/o"):
            return None
        page = json.loads(urlopen(emulator + asked.path).read())
        for item in page["items"]:
            if item["name"] in names:
                del item["crc32c"], item["size"]
        return Answer(200, page)

    return StandIn(emulator, rule)


def test_images_without_crc32c_are_one_finding(ready, emulator, tmp_path):
    encrypted = [f"t/{number:02}.jpg" for number in range(12)]
    ready.put(*encrypted)
    with without_crc32c(emulator, encrypted) as storage:
        message = refusal(ready.run(storage=storage))
    assert message.startswith(
        "The listing has no crc32c of 12 images, so what is read cannot be checked. Objects that "
        "are encrypted with a key of your own have none: copy them without such a key.\n      t/00"
    )
    assert message.count("\n      t/") == 10
    assert json.loads((tmp_path / "without_crc32c.json").read_text()) == encrypted


def test_a_skipped_object_needs_no_crc32c(ready, emulator):
    ready.put(**{"t/notes.txt": b"x"})
    with without_crc32c(emulator, ["t/notes.txt"]) as storage:
        ready.ingest("--dry_run", storage=storage)


def test_no_credentials_is_one_finding(ready, monkeypatch, tmp_path):
    for name in ("STORAGE_EMULATOR_HOST", "GOOGLE_APPLICATION_CREDENTIALS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("CLOUDSDK_CONFIG", str(tmp_path))
    monkeypatch.setenv("NO_GCE_CHECK", "true")
    message = refusal(ready.run())
    assert message == (
        "No Google credentials were found: run `gcloud auth application-default login`, or set "
        "GOOGLE_APPLICATION_CREDENTIALS to the key file of a service account."
    )


def test_disk_space(ready, monkeypatch):
    usage = shutil.disk_usage(".")._replace(free=10_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    message = refusal(ready.run())
    assert message == (
        "The arrays need 30.3 kB more in work, and 10.0 kB are free: free some space, or choose "
        "another disk with --work_dir."
    )


@pytest.fixture
def real_weights(world, monkeypatch, weights_dir):
    """A world with the seeded weights and the real checks of them; no model is ever loaded."""
    world.put("t/a.jpg", "v/b.jpg")
    monkeypatch.setattr(ModelLoader, "load", lambda *_: FakeEmbedder())
    return world


def test_what_the_arguments_alone_tell_is_said_before_any_request(real_weights, emulator):
    with StandIn() as server:
        real_weights.server = f"{server.url}?x"
        options = ["--resnet_weights", "none.pkl", "--clip_weights", "./none"]
        message = refusal(real_weights.run(*options, name="no name", val="gs://x"))
        assert server.asked == []
    assert message.startswith("5 problems found:")
    for part in (
        "dataset name 'no name'",
        "gs://x names no bucket",
        "is not an address",
        "none.pkl is missing",
        "The directory of CLIP weights './none' does not exist",
    ):
        assert part in message
    assert not Path("work").exists()


def test_findings_of_every_kind_in_one_message(real_weights, monkeypatch, weights_dir, tmp_path):
    usage = shutil.disk_usage(".")._replace(free=10)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    real_weights.put("t/b.png")
    wrong = tmp_path / "R-50.pkl"
    wrong.write_bytes(b"<html>Not found</html>")
    with StandIn(None, lambda asked: Answer(200, PAGE)) as server:
        real_weights.server = server.url
        clip = ["--clip_weights", str(weights_dir / CLIP)]
        options = ["--device", "cuda:77", "--resnet_weights", str(wrong), *clip]
        message = refusal(real_weights.run(*options))
        said = message.count("\n  - ")
    assert message.startswith(f"{said} problems found:")
    for part in ("1 duplicate basename:", "a web page", f"{wrong} ", "--device", "are free: free"):
        assert part in message
    assert has_only_a_report(Path("work"))


def test_an_empty_path_names_the_directories_beside_it(ready):
    ready.put("sets/training/x.jpg", "sets/val/y.jpg", "sets/z.jpg")
    message = refusal(ready.run(train=f"gs://{ready.images}/sets/train"))
    assert f"Directories beside it: gs://{ready.images}/sets/training/" in message
