"""report.json: what it says of every kind of run, and that its documentation has every field."""

import json
import re
import signal
from pathlib import Path

import pytest

from common.options import image_limit
from common.program import ROOT
from report.run import plain_options
from tests.harness import TRAIN, VAL, ended, has_only_a_report, wait_for
from tests.stand_in import Rule, StandIn
from tests.test_documents import table_rows

DOWNLOAD = r"GET /storage/.*alt=media"


def fields(value, path=""):
    """The fields of a report as docs/report.md names them, with the types of their values."""
    if isinstance(value, dict):
        for name, content in value.items():
            yield from fields(content, f"{path}.{name}" if path else name)
    elif isinstance(value, list):
        for item in value:
            yield from fields(item, f"{path}[]")
    else:
        for parent, name in (("command.options", "option"), ("versions", "package")):
            if path.startswith(f"{parent}."):
                path = f"{parent}.<{name}>"
        path = re.sub(r"^counts\.skipped\..+", "counts.skipped.<kind>", path)
        path = re.sub(r"^trial\.prices\.values\..+", "trial.prices.values.<price>", path)
        kinds = {bool: "flag", int: "number", float: "number", str: "text", type(None): "null"}
        yield path, kinds[type(value)]


def documented():
    rows = table_rows((ROOT / "docs" / "report.md").read_text())
    return {row[0].strip("`"): row[1] for row in rows if row[0].startswith("`")}


def assert_documented(report):
    """Every field is in the documentation, with a type that it may have there."""
    types = documented()
    for path, kind in fields(report):
        if path in ("counts", "limit", "trial"):
            assert kind == "null"
        elif path != "command.options.<option>" and path not in ("warnings", "failures"):
            assert kind in types[path].split(" or "), path


def test_report_of_a_whole_ingest_with_failing_requests(fresh):
    fresh.storage.put(fresh.images, "train/notes.txt", b"x")
    with (
        StandIn(fresh.storage.url, share=0.1, kinds=["503"], seed=3) as storage,
        StandIn(fresh.server, Rule("dataset_info", "503", times=1)) as server,
    ):
        done = fresh.run(storage=storage, server=server)
    fresh.storage.delete(fresh.images, "train/notes.txt")
    assert done.exit_code == 0, done.stderr
    report = fresh.report()
    assert_documented(report)
    assert (report["outcome"], report["exit_code"]) == ("registered", 0)
    assert report["message"] == done.stdout.splitlines()[-1]
    assert report["dataset"]["index_id"] == fresh.index_id()
    counts = report["counts"]
    assert (counts["training"], counts["validation"]) == (TRAIN, VAL)
    assert counts["done"] == counts["embedded_now"] == TRAIN + VAL
    assert (counts["failed"], counts["pending"], counts["reused"]) == (0, 0, 0)
    assert counts["skipped"] == {".txt": 1} and "notes.txt" in report["warnings"][0]
    assert [step["name"] for step in report["steps"]] == [
        *("checks", "loading the models", "embedding", "verification", "upload"),
        "registration",
    ]
    assert sum(step["seconds"] for step in report["steps"]) <= report["seconds"]
    stages = {stage["name"]: stage["images"] for stage in report["stages"]}
    assert stages == dict.fromkeys(("fetch", "decode", "models", "thumbnails"), TRAIN + VAL)


def test_report_of_a_failed_run_then_of_one_that_continues(make_world):
    bad = {"train/a.jpg": b"no image", "train/b.jpg": b"nor this", "val/c.png": b""}
    made = make_world(bad, "bad")
    done = made.run()
    assert done.exit_code == 1
    report = made.report()
    assert_documented(report)
    assert (report["outcome"], report["exit_code"]) == ("stopped", 1)
    assert report["message"] in done.stderr and "3 of 3 images" in report["message"]
    assert [(group["images"], group["example"]) for group in report["failures"]] == [
        *((2, "train/a.jpg"), (1, "val/c.png"))
    ]
    assert report["failures"][1]["reason"] == "the file is empty"
    done = made.ingest("--skip_bad_images")
    assert "Failed: 3 images.\n      2: not an image in a supported format" in done.stdout
    assert made.report()["counts"]["failed"] == 3


def test_report_of_a_run_whose_checks_fail(fresh):
    with StandIn(fresh.server, Rule("api", "404")) as server:
        done = fresh.run("--json", server=server)
    assert done.exit_code == 1 and "Error: " in done.stderr
    printed, report = json.loads(done.stdout), fresh.report()
    assert_documented(report)
    assert printed["message"] == report["message"] and report["message"] in done.stderr
    assert report["counts"] is None and report["outcome"] == "stopped"
    # The directory has nothing else, and the next run begins in it.
    assert has_only_a_report(fresh.work)
    fresh.ingest()


def test_report_of_an_interrupted_run(fresh, emulator_url):
    with StandIn(emulator_url, Rule(DOWNLOAD, "hold", after=12)) as storage:
        small = {"FAKE_WINDOW": "4", "FAKE_CHECKPOINT_S": "0.05"}
        process = fresh.start("--json", storage=storage, **small)
        wait_for(lambda: len(fresh.done()) >= 4)
        running = fresh.report()
        process.send_signal(signal.SIGHUP)
        done = ended(process)
    assert done.exit_code == 129
    assert (running["outcome"], running["exit_code"], running["ended"]) == ("running", None, None)
    report = fresh.report()
    for found in (running, report, json.loads(done.stdout)):
        assert_documented(found)
    assert (report["outcome"], report["exit_code"]) == ("interrupted", 129)
    counts = report["counts"]
    assert counts["done"] == counts["embedded_now"] == len(fresh.done()) >= 4
    assert counts["done"] + counts["pending"] == TRAIN + VAL
    assert report["steps"][-1]["name"] == "embedding" and report["stages"]


def test_report_of_a_run_with_reuse_and_json_instead_of_the_table(undisturbed, fresh):
    options = "--reuse", str(undisturbed.work), "--json"
    done = fresh.ingest(*options)
    report = json.loads(done.stdout)
    assert_documented(report)
    assert report == fresh.report()
    assert report["counts"]["reused"] == TRAIN + VAL and report["counts"]["embedded_now"] == 0
    assert {"name": "reuse", "images": TRAIN + VAL}.items() <= report["steps"][1].items()
    assert report["command"]["options"]["reuse"] == [str(undisturbed.work)]
    # A repeat finds it finished, and keeps that report; a dry run changes nothing either.
    again = fresh.run(*options)
    assert json.loads(again.stdout)["outcome"] == "finished" and again.exit_code == 0
    assert fresh.report() == report


def test_a_dry_run_prints_a_report_and_leaves_none(fresh):
    done = fresh.run("--dry_run", "--json")
    report = json.loads(done.stdout)
    assert_documented(report)
    assert (report["outcome"], report["exit_code"]) == ("dry_run", 0)
    assert report["counts"]["images"] == report["counts"]["pending"] == TRAIN + VAL
    assert "This was a dry run: nothing was changed." in report["message"]
    assert not fresh.work.exists()


@pytest.mark.parametrize("options", [(), ("--dry_run",)])
def test_nothing_secret_is_in_a_report(fresh, servers, options):
    """Neither where the server refuses, nor where all checks pass, nor in a wrong path."""
    host = servers["B"].removeprefix("http://")
    viewer = ["--viewer_url", "https://u:hidden@viewer.example/x"]
    env = {"server": f"http://user:hidden@{host}", "HF_TOKEN": "hidden"}
    done = fresh.ingest(*viewer, *options, "--json", **env)
    signed = ["https://storage.googleapis.com/b/t?X-Goog-Signature=hidden", "gs://b/v"]
    train, val = signed
    wrong = fresh.run(*viewer, "--json", train=train, val=val, **env)
    assert wrong.exit_code == 1 and json.loads(wrong.stdout)["counts"] is None
    kept = [path.read_text() for path in fresh.directory.glob("work/report.json")]
    for text in (done.stdout, wrong.stdout, *kept):
        assert "hidden" not in text
    assert json.loads(done.stdout)["command"]["options"]["server_url"] == servers["B"]


def test_options_are_written_as_they_are_given():
    limit = image_limit("1%")
    options = {"max_bad": limit, "work_dir": Path("d@x?"), "reuse": ("a", "./b"), "n": None}
    assert plain_options(options) == {
        **{"max_bad": "1%", "work_dir": "d@x?", "reuse": ["a", "./b"], "n": None}
    }


def test_every_documented_field_is_in_some_report(undisturbed):
    """The undisturbed run has all fields but those of failures, warnings and trials."""
    found = {path for path, _ in fields(undisturbed.report())}
    missing = {re.split(r"[.\[]", path)[0] for path in documented() if path not in found}
    assert missing <= {"machine", "counts", "limit", "failures", "trial", "warnings"}
