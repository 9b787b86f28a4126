"""Every refusal before the first image is fetched: one message, exit code 1, nothing left."""

import json
import shutil
import socket
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import urlopen

import pytest

import gcs
from common.errors import Findings
from engine.loading import ModelLoader
from testing.embedders import FakeEmbedder
from tests.harness import has_only_a_report
from tests.stand_in import Answer, StandIn
from weights import resnet50

JSON = {"Content-Type": "application/json"}


def refusal(result):
    """What the user is told, after the lines on what was listed and tried."""
    assert result.exit_code == 1, result.output
    assert "Traceback" not in result.output
    assert result.stdout == ""
    return result.stderr[result.stderr.index("Error: ") :].removeprefix("Error: ").rstrip("\n")


@pytest.fixture
def ready(world, fast_models):
    """A world in which every check passes."""
    world.put("t/a.jpg", "v/b.jpg")
    return world


def test_nothing_in_the_way(ready):
    assert ready.run("--dry_run").exit_code == 0


@pytest.mark.parametrize("name", ["my birds", "x" * 51, "a/b", "été", "../up", ""])
def test_dataset_name(ready, name, tmp_path):
    arguments = [name, *ready.arguments()[1:]]
    message = refusal(ready.invoke(arguments))
    assert message == (
        f"The dataset name {name!r} is not valid: use 1 to 50 letters, digits, dashes and "
        "underscores."
    )
    assert list(tmp_path.iterdir()) == []


def test_server_url_missing(ready):
    ready.server = ""
    assert refusal(ready.run()) == (
        "SERVER_URL is not set: write SERVER_URL=http://HOST:PORT before python."
    )


@pytest.mark.parametrize(
    "url", ["host:8000", "ftp://host", "http://", "http://h:99999", "http://h/?q"]
)
def test_server_url_is_no_address(ready, url):
    ready.server = url
    assert "http://HOST:PORT" in refusal(ready.run())


def test_nobody_listens(ready):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    ready.server = f"http://127.0.0.1:{port}"
    assert refusal(ready.run()) == (
        f"Cannot reach the Forager server at {ready.server} (Connection refused): check "
        "SERVER_URL, and that the server is running."
    )


PAGE = b"<html><head><title>Forager &amp; friends</title></head></html>"


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (Answer(200, PAGE), "a web page ('Forager & friends') instead of JSON"),
        (
            Answer(302, b"", {"Location": "https://login.example/"}),
            "redirects GET api/get_data",
        ),
        (Answer(404, PAGE), "is not a Forager server that this program can talk to"),
        (Answer(200, b'{"a": 1}', JSON), "JSON of another shape than a Forager server"),
        (Answer(401, b""), "with HTTP 401: it asks for a login"),
        (Answer(500, PAGE), "HTTP 500 (Forager & friends)"),
    ],
)
def test_no_forager_server(ready, answer, message):
    with StandIn(None, lambda asked: answer) as server:
        ready.server = server.url
        said = refusal(ready.run())
    assert message in said
    assert server.url in said


def test_the_later_server_from_pypi(ready):
    def rule(asked):
        if asked.path == "/api/get_datasets":
            return Answer(200, b'{"dataset_names": []}', JSON)
        return Answer(404, PAGE)

    with StandIn(None, rule) as server:
        ready.server = server.url
        message = refusal(ready.run())
    assert "is the later forager-server from PyPI, which takes local directories" in message


def test_dataset_is_there_already(ready):
    info = {"index_id": "other-index", "num_train": 1200, "num_val": 34}
    with StandIn(None, lambda asked: Answer(200, json.dumps(info).encode(), JSON)) as server:
        ready.server = server.url
        assert refusal(ready.run()) == (
            f"The dataset {ready.name} is already there, with 1,200 training and 34 validation "
            "images (index other-index): choose another name."
        )


@pytest.mark.parametrize(
    ("train", "val", "message"),
    [
        ("t", "gs://{bucket}/v", "t is not a Cloud Storage path: write gs://BUCKET/DIRECTORY."),
        ("gs://{bucket}/t", "gs://v", "gs://v names no bucket"),
        (
            "gs://{bucket}/t",
            "gs://elsewhere/v",
            "gs://{bucket}/t and gs://elsewhere/v are in two buckets: the web page builds every "
            "image address from the training bucket, so put both in one.",
        ),
        ("gs://{bucket}/t", "gs://{bucket}/t/", "gs://{bucket}/t/ is named for both splits: name"),
        ("gs://{bucket}/t", "gs://{bucket}/t/v", "gs://{bucket}/t/ contains gs://{bucket}/t/v/, "),
        ("gs://{bucket}/t/v", "gs://{bucket}/t", "gs://{bucket}/t/ contains gs://{bucket}/t/v/, "),
        ("gs://{bucket}", "gs://{bucket}/v", "gs://{bucket}/ contains gs://{bucket}/v/, whose"),
        ("gs://{bucket}/t", "gs://{bucket}/none", "No validation images under gs://{bucket}/none/"),
        ("gs://{bucket}/T", "gs://{bucket}/v", "No training images under gs://{bucket}/T/: images"),
        (
            "gs://no-such-bucket/t",
            "gs://no-such-bucket/v",
            "there is no such bucket or object (404)",
        ),
    ],
)
def test_paths(ready, train, val, message):
    bucket = ready.images
    said = refusal(ready.run(train=train.format(bucket=bucket), val=val.format(bucket=bucket)))
    assert message.format(bucket=bucket) in said
    assert "\n  - " not in said


def test_one_directory_in_both_splits_is_told_in_full(ready):
    train = f"gs://{ready.images}/t/"
    assert refusal(ready.run(train=train, val=train)) == (
        f"{train} is named for both splits: name one directory for the training images, and "
        "another one for the validation images."
    )
    assert refusal(ready.run(train=train, val=f"{train}v")) == (
        f"{train} contains {train}v/, whose images would be in both splits: name two directories "
        "of which neither contains the other."
    )


def test_both_paths_wrong_are_two_findings(ready):
    message = refusal(ready.run(train="t", val="v"))
    assert message.startswith("2 problems found:\n  - ")
    assert "t is not a Cloud" in message
    assert "v is not a Cloud" in message


def test_an_empty_validation_path_says_how_to_go_on(ready):
    message = refusal(ready.run(val=f"gs://{ready.images}/none"))
    assert message == (
        f"No validation images under gs://{ready.images}/none/: images are objects that end in "
        ".jpg, .jpeg, .png, in lower case; --allow_empty_val continues without them. Directories "
        f"beside it: gs://{ready.images}/v/, gs://{ready.images}/t/."
    )


def test_upper_case_images_alone_are_no_images(world, fast_models):
    world.put("v/b.jpg", **{"t/A.JPG": b"x"})
    result = world.run()
    assert "No training images under" in refusal(result)
    assert "Skipped 1 object (.JPG, such as t/A.JPG): the server takes lower-case" in result.stderr


def test_duplicates_over_both_splits_are_named(ready, tmp_path):
    ready.put("t/x/a.png", "t/b.jpeg", "v/c.jpg", "t/c.d.jpg")
    message = refusal(ready.run())
    assert message == (
        "2 duplicate basenames: each must be unique over training and validation, without the "
        "extension. Rename or remove all but one of each.\n      a: t/a.jpg\n"
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


def test_many_objects_of_one_name_go_to_a_file(ready, tmp_path):
    ready.put(*(f"t/{number:02}/a.png" for number in range(12)))
    message = refusal(ready.run())
    (path,) = tmp_path.glob("*.json")
    assert f"... and 3 more; all are in {path}" in message
    assert len(json.loads(path.read_text())["a"]) == 13


def test_too_long_names(ready):
    long, deep = f"t/{'i' * 301}.jpg", "t/" + "d/" * 298 + "x.jpg"
    ready.put(long, deep, "t/" + "j" * 300 + ".jpg")
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


def anonymous(status):
    """A storage that answers this to whoever asks without the API, as a browser does."""

    def rule(asked):
        api = asked.path.startswith(("/storage/", "/upload/", "/download/"))
        return None if api else Answer(status)

    return rule


@pytest.mark.parametrize("status", [401, 403])
def test_a_bucket_that_is_not_public(ready, emulator, monkeypatch, status):
    with StandIn(emulator, anonymous(status)) as storage:
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", storage.url)
        message = refusal(ready.run())
    assert message.startswith("2 problems found")  # one image of each split
    for name in ("t/a.jpg", "v/b.jpg"):
        assert (
            f"\n  - gs://{ready.images}/{name} cannot be read without credentials, which the web "
            "page needs. To make the bucket public: gcloud storage buckets add-iam-policy-binding "
            f"gs://{ready.images} --member=allUsers --role=roles/storage.objectViewer"
        ) in message
    assert not any(asked.path.startswith("/upload/") for asked in storage.asked)


PAYS = b"<Message>Bucket is a requester pays bucket but no user project provided.</Message>"


def test_a_wrong_first_wait_of_the_retries_is_one_sentence(ready, monkeypatch):
    monkeypatch.setenv("FORAGER_RETRY_BASE_S", "fast")
    assert refusal(ready.run()) == (
        "FORAGER_RETRY_BASE_S='fast' in the environment is not a number of seconds from 0 to 60: "
        "correct it or unset it."
    )


def test_a_wrong_emulator_host_is_one_sentence(ready, monkeypatch):
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", "http://host:port")
    assert refusal(ready.run()).startswith("STORAGE_EMULATOR_HOST='http://host:...' in the env")


def test_a_requester_pays_bucket_is_refused(ready, emulator, monkeypatch):
    """Its owner can list it; a browser cannot read it."""

    def rule(asked):
        return Answer(400, PAYS) if asked.path.startswith(f"/{ready.images}/") else None

    with StandIn(emulator, rule) as storage:
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", storage.url)
        message = refusal(ready.run())
    assert message == f"gs://{ready.images}: {gcs.REQUESTER_PAYS}"


@pytest.mark.parametrize("others", [[], ["t/c.jpg"]])
def test_an_empty_first_image_is_not_called_private(ready, emulator, monkeypatch, others):
    def rule(asked):
        return Answer(416) if asked.path == f"/{ready.images}/t/0.jpg" else None

    ready.put(*others, **{"t/0.jpg": b""})
    with StandIn(emulator, rule) as storage:
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", storage.url)
        assert ready.run("--dry_run").exit_code == 0


def without_crc32c(emulator, names):
    """A storage that lists these objects without crc32c and, as if they were empty, size."""

    def rule(asked):
        if not urlsplit(asked.path).path.endswith("/o"):
            return None
        page = json.loads(urlopen(emulator + asked.path).read())
        for item in page["items"]:
            if item["name"] in names:
                del item["crc32c"], item["size"]
        return Answer(200, json.dumps(page).encode(), JSON)

    return StandIn(emulator, rule)


def test_images_without_crc32c_are_one_finding(ready, emulator, monkeypatch, tmp_path):
    encrypted = [f"t/{number:02}.jpg" for number in range(12)]
    ready.put(*encrypted)
    with without_crc32c(emulator, encrypted) as storage:
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", storage.url)
        message = refusal(ready.run())
    assert message.startswith(
        "The listing has no crc32c of 12 images, so what is read cannot be checked. Objects that "
        "are encrypted with a key of your own have none: copy them without such a key.\n      t/00"
    )
    assert message.count("\n      t/") == 10
    assert json.loads((tmp_path / "without_crc32c.json").read_text()) == encrypted


def test_a_skipped_object_needs_no_crc32c(ready, emulator, monkeypatch):
    ready.put(**{"t/notes.txt": b"x"})
    with without_crc32c(emulator, ["t/notes.txt"]) as storage:
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", storage.url)
        assert ready.run("--dry_run").exit_code == 0


def test_one_split_that_is_not_public(ready, emulator, monkeypatch):
    def rule(asked):
        return Answer(403) if asked.path == f"/{ready.images}/v/b.jpg" else None

    with StandIn(emulator, rule) as storage:
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", storage.url)
        message = refusal(ready.run())
    assert message.startswith(f"gs://{ready.images}/v/b.jpg cannot be read without credentials")


def test_an_image_that_a_browser_does_not_get(ready, emulator, monkeypatch):
    with StandIn(emulator, anonymous(404)) as storage:
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", storage.url)
        message = refusal(ready.run())
    assert message.endswith(
        f"\n  - gs://{ready.images}/v/b.jpg gives HTTP 404 without credentials, and the web page "
        f"needs it: open {storage.url}/{ready.images}/v/b.jpg in a browser."
    )


def test_no_write_access_to_the_index_bucket(ready, emulator, monkeypatch):
    granted = json.dumps({"permissions": ["storage.objects.get"]}).encode()

    def rule(asked):
        return Answer(200, granted, JSON) if "testPermissions" in asked.path else None

    with StandIn(emulator, rule) as storage:
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", storage.url)
        assert refusal(ready.run()) == (
            "The credentials in use lack storage.objects.create, storage.objects.delete on "
            f"gs://{ready.index}: ask its owner for the role Storage Object User, or name a "
            "bucket of your own with --bucket."
        )
    assert not any(asked.method == "POST" for asked in storage.asked)


def test_the_index_bucket_is_missing(ready, emulator, monkeypatch):
    def rule(asked):
        return Answer(404, b"{}", JSON) if "testPermissions" in asked.path else None

    with StandIn(emulator, rule) as storage:
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", storage.url)
        message = refusal(ready.run("--bucket", "no-such-bucket"))
    assert "Checking write access to gs://no-such-bucket: there is no such bucket" in message


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


def run_with_weights(world, resnet, clip):
    return world.run("--resnet_weights", str(resnet), "--clip_weights", str(clip))


def test_weights_missing(real_weights, tmp_path):
    message = refusal(run_with_weights(real_weights, tmp_path / "R-50.pkl", tmp_path / "clip"))
    assert f"R-50.pkl is missing: get it with `{resnet50.RESNET_DOWNLOAD}`." in message
    assert f"The directory of CLIP weights '{tmp_path / 'clip'}' does not exist: correct" in message


def test_clip_weights_missing(real_weights, weights_dir, tmp_path):
    (tmp_path / "clip").mkdir()
    message = refusal(run_with_weights(real_weights, weights_dir / "R-50.pkl", tmp_path / "clip"))
    assert "clip has no config.json and no model.safetensors" in message


def test_weights_wrong(real_weights, weights_dir, tmp_path):
    wrong = tmp_path / "R-50.pkl"
    wrong.write_bytes(b"<html>Not found</html>")
    clip = weights_dir / "clip-vit-base-patch32"
    message = refusal(run_with_weights(real_weights, wrong, clip))
    assert f"{wrong} " in message
    assert (
        f"so it is not Detectron2's R-50.pkl: get it with `{resnet50.RESNET_DOWNLOAD}`." in message
    )


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
        "has more than an address",
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
        clip = ["--clip_weights", str(weights_dir / "clip-vit-base-patch32")]
        options = ["--device", "cuda:77", "--resnet_weights", str(wrong), *clip]
        message = refusal(real_weights.run(*options))
        said = message.count("\n  - ")
    assert message.startswith(f"{said} problems found:")
    for part in ("1 duplicate basename:", "a web page", f"{wrong} ", "--device", "are free: free"):
        assert part in message
    assert has_only_a_report(Path("work"))


def test_each_finding_comes_once():
    findings = Findings()
    for sentence in ("One.", "Two.", "One."):
        findings.add(sentence)
    with pytest.raises(Exception, match=r"^2 problems found:\n  - One\.\n  - Two\.$"):
        findings.raise_if_any()


def test_an_empty_path_names_the_directories_beside_it(ready):
    ready.put("sets/training/x.jpg", "sets/val/y.jpg", "sets/z.jpg")
    message = refusal(ready.run(train=f"gs://{ready.images}/sets/train"))
    assert f"Directories beside it: gs://{ready.images}/sets/training/" in message
