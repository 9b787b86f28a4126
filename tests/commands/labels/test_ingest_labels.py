"""The command as a user runs it, against the local Forager of both generations."""

import json
import os
import re
from pathlib import Path

import pytest

from tests.commands.labels.label_command import GOOD, STORED
from tests.harness import ended
from tests.stand_in import Answer, Rule, StandIn


def test_labels_are_stored(server, begin, tmp_path):
    _, out, err = ended(begin(server.url, GOOD)).succeeded()
    assert err == ""
    assert out.splitlines() == [
        "category  mode      asked  created",
        "cat       POSITIVE      3        3",
        "cat       far away      1        1",
        "dog       NEGATIVE      1        1",
        "",
        f"5 of 5 labels created in 3 requests. Look at them at {server.url}/birds",
    ]
    assert server.ask("SELECT DISTINCT user, created_by FROM label") == [("ann@x.org", "ingest")]
    assert server.stored() == STORED
    assert sorted(os.listdir(tmp_path)) == ["labels.json", "labels.json.birds.journal"]


def test_no_labels_at_all(server_b, run):
    run(server_b.url, {"a.jpg": []}).refused("Nothing of ", " was sent: it has no labels.")
    unknown = run(server_b.url, {"z.jpg": ["cat"]}, "--skip_unknown")
    unknown.refused("none of its 1 labelled image is in the dataset birds.")


def test_a_long_table_is_cut_and_whole_in_json(server_b, run, tmp_path):
    document = {"a.jpg": [f"category {number:02}" for number in range(32)]}
    options = "--viewer_url", "https://view.org/"
    done = run(server_b.url, document, *options).succeeded(" at https://view.org/birds\n")
    whole = tmp_path / "labels.json.birds.table.txt"
    assert (
        f"\ncategory 29  POSITIVE      1        1\n... and 2 more; all are in {whole}\n"
        in done.stdout
    )
    assert len(whole.read_text().splitlines()) == 33
    said = json.loads(run(server_b.url, document, "--json").succeeded().stdout)
    assert said["outcome"] == "sent_earlier" and len(said["counts"]) == 32
    assert said["counts"][0] == {
        "category": "category 00",
        "mode": "POSITIVE",
        "asked": 1,
        "created": 1,
    }
    said = json.loads(run(server_b.url, {"z.jpg": ["cat"]}, "--json").failed().stdout)
    assert said["outcome"] == "stopped" and "not in the dataset birds" in said["message"]


def test_unknown_images_stop_the_command(server, run, tmp_path):
    document = GOOD | {f"far/z{number:02}.jpg": ["cat"] for number in range(12)}
    err = run(server.url, document).refused().stderr
    list_file = tmp_path / "labels.json.birds.unknown.txt"
    assert err.startswith(
        "Error: 12 labelled images are not in the dataset birds:\n      far/z00.jpg\n"
    )
    assert f"      far/z09.jpg\n      ... and 2 more; all are in {list_file}\n" in err
    assert "--skip_unknown" in err
    assert list_file.read_text().split() == [f"far/z{number:02}.jpg" for number in range(12)]
    assert server.stored() == []


def test_names_that_are_probably_misspelt(server_b, run):
    assert run(server_b.url, {"a.jpg": ["cat"]})[0] == 0
    err = run(server_b.url, {"A.jpg": ["Cat", "cat"]}).failed().stderr
    assert err.startswith("Note:\n      'Cat' and 'cat' are two categories.\n")
    assert "The dataset has a, and the file A: the case of letters counts.\n" in err
    code, _, err = run(server_b.url, {"a.jpg": ["Cat"]}, "--dry_run")
    assert (code, err.count("'Cat' is not the category 'cat', which the server has.\n")) == (0, 1)


def test_unknown_images_are_skipped(server, run):
    _, out, err = run(server.url, GOOD | {"z.jpg": ["cat", "cow"]}, "--skip-unknown").succeeded()
    assert err.startswith("Skipped: 1 labelled image is not in the dataset birds:\n      z.jpg\n")
    assert "5 of 5 labels created in 3 requests; labels of 1 unknown image skipped." in out
    assert server.stored() == STORED


def test_without_an_index_the_counts_are_compared(server, run):
    assert "cannot be read" in run(server.url, GOOD, name="noindex").succeeded().stderr
    done = run(server.url, GOOD | {"z.jpg": ["cat", "cow"]}, name="noindex")
    done.failed("'cat' (POSITIVE): 3 of 4\n      'cow' (POSITIVE): 0 of 1")
    assert "cow       POSITIVE      1        0" in done.stdout
    assert "5 of 7 labels created" in done.stdout


def test_a_mode_that_is_nearly_built_in_must_be_allowed(server, run):
    document = {"a.jpg": [{"category": "cat", "value": "positive"}]}
    run(server.url, document).refused("or add --allow_mode positive if it is right.")
    assert server.stored() == []
    assert run(server.url, document, "--allow_mode", "positive")[0] == 0
    assert server.stored() == [("a", "cat", "positive")]


def test_dry_run(server, run, tmp_path):
    """Also of what the server has with other modes, which A has twice and counts once."""
    before = {"a.jpg": ["cat", {"category": "dog", "value": "far\u202e away"}], "é.jpg": ["cat"]}
    assert run(server.url, before)[0] == 0
    assert run(server.url, before, "--again")[0] == 0
    stored = server.stored()
    (tmp_path / "labels.json.birds.journal").unlink()
    _, out, err = run(server.url, GOOD, "--dry_run").succeeded()
    note = "Note: this server counts your own modes together, as CUSTOM.\n"
    assert err == {"A": note, "B": ""}[server.generation]
    consequence = {
        "A": "What it has already of the labels is stored a second time.",
        "B": "Where an image has the category already, the server replaces its mode.",
    }
    there = {
        "A": [
            "category  mode      labels  on the server",
            "cat       POSITIVE       3              2",
            "cat       far away       1              0",
            "dog       CUSTOM         0              1",
            "dog       NEGATIVE       1              0",
        ],
        "B": [
            "category  mode            labels  on the server",
            "cat       POSITIVE             3              2",
            "cat       far away             1              0",
            "dog       NEGATIVE             1              0",
            r"dog       far\u202e away       0              1",
        ],
    }
    assert out.splitlines() == [
        *there[server.generation],
        "",
        f"5 labels in 3 requests would be sent to {server.url}. This was a dry run: nothing was "
        f"sent. {consequence[server.generation]}",
    ]
    assert server.stored() == stored
    assert [path.name for path in tmp_path.iterdir()] == ["labels.json"]


def test_small_groups_share_a_request(server, run):
    document = {
        "a.jpg": [f"c{number}" for number in range(30)],
        "d.jpg": [{"category": f"c{number}", "value": "far away"} for number in range(30)],
    }
    code, out, _ = run(server.url, document)
    requests = "60 requests" if server.generation == "A" else "1 request"
    assert code == 0
    assert f"60 of 60 labels created in {requests}." in out
    assert server.stored() == sorted(
        (image, f"c{number}", mode)
        for image, mode in (("a", "POSITIVE"), ("d", "far away"))
        for number in range(30)
    )


def test_a_shared_request_for_an_image_that_the_server_lacks(server_b, run, monkeypatch):
    monkeypatch.setattr("labels.plan.known_images", lambda *_: {"a", "gone"})
    document = {f"{image}.jpg": [f"c{n}" for n in range(20)] for image in ("a", "gone")}
    run(server_b.url, document).failed(
        "refuses all labels of a request if the dataset lacks one image.",
        "0 of 1 request stored so far; the same command continues.",
    )
    assert server_b.stored() == []


def test_missing_dataset(server_b, run):
    names = Rule("GET /api/get_datasets_v2", Answer(200, {"dataset_names": ["noindex", "birds"]}))
    with StandIn(server_b.url, names) as front:
        run(front.url, GOOD, name="brids").refused(
            f"There is no dataset brids on {front.url}. It has birds, noindex."
        )


def test_all_wrong_arguments_at_once(run, tmp_path):
    document = {"a.jpg": list(range(12))}
    run("localhost:8000", document, "--user", "ann", name="b/c").refused(
        "4 problems found:\n  - The dataset name 'b/c' is not valid",
        "SERVER_URL 'localhost:8000' is not an address",
        "--user 'ann' is not an e-mail address",
        "labels.json has 12 problems:\n",
        '      ["a.jpg"][9]: expected "CATEGORY" or ',
        f"      ... and 2 more; all are in {tmp_path}/labels.json.problems.txt",
    )
    assert len((tmp_path / "labels.json.problems.txt").read_text().splitlines()) == 12


@pytest.mark.parametrize(
    ("url", "options", "words"),
    [
        ("", [], "SERVER_URL is not set"),
        ("http://127.0.0.1:9", [], "Cannot reach the Forager server at http://127.0.0.1:9"),
        ("http://h", ["--user", "a@b\udcff"], "is not an e-mail address"),
    ],
)
def test_wrong_argument(run, url, options, words):
    run(url, GOOD, *options).refused(words)


def test_label_file_that_is_not_there(run):
    run("http://h", Path("no\x1b.json")).failed(
        r"Cannot read the label file no\x1b.json: No such file or directory."
    )


def test_user_may_be_written_with_a_name(server_b, run):
    assert run(server_b.url, GOOD, "--user", "Ann B <ann@b.org>")[0] == 0
    assert server_b.ask("SELECT DISTINCT user FROM label") == [("ann@b.org",)]


def test_longest_user(server, run):
    longest = {"A": 300, "B": 254}[server.generation]
    user = "u" * (longest - 6) + "@x.org"
    run(server.url, GOOD, "--user", f"u{user}").failed(f"is longer than {longest} characters")
    assert run(server.url, GOOD, "--user", user)[0] == 0


def test_names_that_could_act_on_a_terminal(server_b, run):
    assert run(server_b.url, {"\x1b]0;x\x07.jpg": ["cat"]})[0] == 1
    _, out, err = run(server_b.url, {"a.jpg": ["\x1b[2J\u202e"]}).succeeded(r"\x1b[2J\u202e")
    assert not re.search(r"[\x1b\x07\u202e]", out + err)
    assert server_b.stored() == [("a", "\x1b[2J\u202e", "POSITIVE")]


def test_a_terminal_that_cannot_show_a_category(server_b, begin, monkeypatch):
    monkeypatch.setenv("PYTHONIOENCODING", "latin-1")
    ended(begin(server_b.url, {"é.jpg": ["猫"]})).succeeded(r"\u732b")
