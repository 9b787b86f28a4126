"""Labels whose requests fail or whose run is interrupted: none is lost, and none stored twice."""

import json
import os
import random
import signal

import pytest

from tests.commands.labels.label_command import BOXES, GOOD, STORED, WITH_BOXES, failing
from tests.damage import damaged_in_some_way
from tests.harness import ended


def test_one_fault_in_ten_changes_nothing(server_b, run):
    source = random.Random(0)
    kinds = ["503", "429", "500", "502", "lost", "reset"]
    faults = [source.choice(kinds) if source.random() < 0.1 else None for _ in range(200)]
    document = {"a.jpg": [f"category {number}" for number in range(60)]}
    with failing(server_b, *faults) as proxy:
        code, out, err = run(proxy.url, document, name="noindex")  # so the labels share no request
    assert code == 0
    assert "attempt 2 of 8" in err
    assert "60 of 60 labels created in 60 requests" in out
    assert server_b.stored() == sorted(
        ("a", f"category {number}", "POSITIVE") for number in range(60)
    )


@pytest.mark.parametrize("fault", ["lost", "reset"])
@pytest.mark.parametrize("choice", ["resend", "assume-stored"])
@pytest.mark.parametrize(
    ("generation", "document", "before", "what", "why"),
    [
        ("a", GOOD, 1, "1 label 'cat' (far away), b.v1", "1 label a second time"),
        ("b", WITH_BOXES, 3, "4 boxes, d to c", "4 boxes a second time"),
    ],
)
def test_a_lost_answer_is_for_the_user_to_settle(
    request, run, fault, choice, generation, document, before, what, why
):
    server = request.getfixturevalue(f"server_{generation}")
    with failing(server, *[None] * before, fault) as proxy:
        run(proxy.url, document).refused(
            f"may or may not have stored {what}: ",
            f"{before} of {3 if generation == 'a' else 4} requests stored so far",
            why,
        )
        run(proxy.url, document).refused(
            "An interrupted run may have stored 1 request with ", f"      {what}\n", why
        )
        assert len(proxy.requests("POST")) == before + 1
        assert run(proxy.url, document, "--uncertain", choice)[0] == 0
    copies = (fault == "lost") + (choice == "resend")
    if generation == "a":
        assert server.stored() == sorted(STORED[:2] + STORED[3:] + STORED[2:3] * copies)
    else:
        assert server.boxes() == sorted(BOXES * copies)
        assert server.stored() == sorted([*STORED, ("c", "cat", "POSITIVE")])


@pytest.mark.parametrize(("choice", "again"), [("assume_stored", []), ("resend", STORED[2:3])])
def test_a_lost_answer_of_a_can_be_settled_before(server_a, run, choice, again):
    with failing(server_a, None, "lost") as proxy:
        assert run(proxy.url, GOOD, "--uncertain", choice)[0] == 0
    assert server_a.stored() == sorted(STORED + again)


def test_all_requests_fail(server, run):
    with failing(server, *["503"] * 8) as proxy:
        run(proxy.url, GOOD).refused(
            "in 8 attempts: HTTP 503", "0 of 3 requests stored so far; the same command continues."
        )
        assert "interrupted" not in run(proxy.url, GOOD, "--dry_run")[1]
        assert run(proxy.url, GOOD)[0] == 0  # what was refused is not uncertain, on A either
    assert server.stored() == STORED


@pytest.mark.parametrize(("number", "code"), [(signal.SIGKILL, -9), (signal.SIGHUP, 129)])
def test_an_interrupted_run_continues(server_b, begin, run, number, code):
    with failing(server_b, None, "hold") as proxy:
        with begin(proxy.url, GOOD) as process:
            assert proxy.holding.wait(100)
            process.send_signal(number)
            done = ended(process)
        assert done.exit_code == code
        if number != signal.SIGKILL:
            assert (
                done.stderr == "Interrupted: the same command continues where this one stopped.\n"
            )
        code, out, err = run(proxy.url, GOOD)
    assert code == 0
    assert "An interrupted run has stored 1 of 3 requests." in err
    assert "5 of 5 labels created" in out
    bodies = [json.loads(asked.body) for asked in proxy.requests("POST")]
    sent = ["cat POSITIVE", "cat far away", "cat far away", "dog NEGATIVE"]
    assert [body["category"] + " " + body["mode"] for body in bodies] == sent
    assert server_b.stored() == STORED


def test_two_at_once(server_b, begin, run):
    with failing(server_b, "hold") as proxy, begin(proxy.url, GOOD) as first:
        assert proxy.holding.wait(100)
        run(proxy.url, GOOD).failed("Another ingest_labels.py is sending these labels")
        first.kill()
        ended(first)


def test_a_journal_of_something_else_is_refused(server_a, run):
    with failing(server_a, None, "400") as proxy:
        assert run(proxy.url, GOOD)[0] == 1
        run(proxy.url, GOOD | {"c.jpeg": ["cat"]}, "--user", "bob@x.org").failed(
            "user 'ann@x.org', now 'bob@x.org'; label file sha256", "--restart"
        )
        assert run(proxy.url, GOOD, "--restart")[0] == 0
    assert server_a.stored() == sorted([*STORED, *(STORED[i] for i in (0, 3, 4))])


def test_starting_over_says_what_is_stored_twice(server_a, run):
    with failing(server_a, None, None, "400") as proxy:
        assert run(proxy.url, GOOD)[0] == 1
        dry_run = run(proxy.url, GOOD, "--dry_run")[1]
        code, _, err = run(proxy.url, GOOD, "--restart")
        assert "run has stored 2 of 3 requests: they are not sent." in dry_run
    assert code == 0
    assert "Starting over: this server stores 4 labels of an earlier run a second time" in err
    assert server_a.stored() == sorted([*STORED, *(STORED[i] for i in (0, 2, 3, 4))])


def test_a_finished_run_is_not_repeated(server, run):
    twice = server.generation == "A"
    assert run(server.url, GOOD)[0] == 0
    for options in ([], ["--restart"], ["--uncertain", "resend"]):
        _, out, err = run(server.url, GOOD, *options).succeeded()
        assert out == ""
        assert err.startswith("An earlier run finished sending ")
        assert "5 of 5 labels created. Nothing was sent now. To send them again, add --again" in err
        assert ("a second time" in err) == twice
    assert server.stored() == STORED
    out = run(server.url, GOOD, "--dry_run").succeeded().stdout
    assert "An earlier run finished sending this file (5 labels)" in out
    assert "would be sent to" not in out
    assert "earlier run" not in run(server.url, GOOD, "--dry_run", "--user", "bob@x.org")[1]
    err = run(server.url, GOOD, "--again").succeeded("5 of 5 labels created").stderr
    assert ("Starting over: this server stores 5 labels" in err) == twice
    assert server.stored() == sorted(STORED * (1 + twice))


def test_a_changed_label_file_is_sent(server, run):
    twice = server.generation == "A"
    assert run(server.url, {"a.jpg": ["cat"]})[0] == 0
    _, out, err = run(server.url, {"a.jpg": ["cat"], "d.jpg": ["cat"]}).succeeded()
    assert ("another version of this label file, with 1 label." in err) == twice
    assert "2 of 2 labels created" in out
    assert server.stored() == [STORED[0]] * (1 + twice) + [STORED[3]]


def test_label_files_of_one_name_in_one_work_dir(server, run, tmp_path):
    """Each has a journal: none is taken for another version of the other."""
    work = "--work_dir", str(tmp_path / "work")
    files = [(tmp_path / name / "labels.json", [name]) for name in ("cat", "dog")]
    for path, categories in files:
        path.parent.mkdir()
        path.write_text(json.dumps({"a.jpg": categories}))
        assert "1 of 1 label created" in run(server.url, path, *work).succeeded().stdout
    for path, _ in files:
        assert "Nothing was sent now." in run(server.url, path, *work).succeeded().stderr
    assert server.stored() == [("a", "cat", "POSITIVE"), ("a", "dog", "POSITIVE")]


def test_a_finished_run_that_stored_too_few_stays_an_error(server_a, run):
    document = {"a.jpg": ["cat"], "nowhere.jpg": ["cat"]}
    for words in ("1 of 2", "1 of 2 labels created. Nothing was sent now."):
        assert words in run(server_a.url, document, name="noindex").failed().stderr
    assert server_a.stored() == STORED[:1]


@pytest.mark.parametrize("ending", ["closed", "full"])
def test_output_that_cannot_be_printed_changes_nothing(server_a, begin, run, ending):
    """As after `| true`, or when the disk behind standard output is full."""
    if ending == "full":
        target = os.open("/dev/full", os.O_WRONLY)
    else:
        reading, target = os.pipe()
        os.close(reading)
    with begin(server_a.url, GOOD, popen={"stdout": target}) as process:
        os.close(target)
        code, _, err = ended(process)
    assert code == 1
    assert "Error: 5 of 5 labels created" in err and "Only the summary cannot be printed (" in err
    assert "continue" not in err
    assert run(server_a.url, GOOD)[0] == 0
    assert server_a.stored() == STORED


@pytest.mark.parametrize("damage", [b"", b"{}\n{}\n"])
def test_a_damaged_journal_is_uncertain(server, run, tmp_path, damage):
    (tmp_path / "labels.json.birds.journal").write_bytes(damage)
    code, _, err = run(server.url, GOOD)
    assert "journal is damaged. An interrupted run may have stored 3 requests with 5 labels" in err
    if server.generation == "A":
        assert code == 1
        assert "--uncertain resend, which may store 5 labels a second time." in err
        assert server.stored() == []
        assert run(server.url, GOOD, "--uncertain", "resend")[0] == 0
    else:
        assert code == 0
    assert server.stored() == STORED


MANY = {f"{stem}.jpg": [f"c{number}" for number in range(4)] for stem in ("a", "b.v1", "c", "d")}
MANY_STORED = sorted(
    (name.removesuffix(".jpg"), category, "POSITIVE") for name in MANY for category in MANY[name]
)


def damage_and_repeat(server, run, tmp_path, seed):
    """Stop a run at a random request, damage its journal, and run the same command again."""
    source = random.Random(seed)
    faults = [None] * source.randrange(4) + [source.choice(["lost", "reset", "400"])]
    journal = tmp_path / "labels.json.birds.journal"
    journal.unlink(missing_ok=True)
    server.emptied()
    with failing(server, *faults) as proxy:
        run(proxy.url, MANY)
        for _ in range(3):
            if journal.exists():
                journal.write_bytes(damaged_in_some_way(journal.read_bytes(), source))
            code, _, err = run(proxy.url, MANY)
            assert code == 0 or "interrupted run" in err or "earlier run" in err
            stored = server.stored()
            if code == 0:
                assert stored == MANY_STORED
            else:
                assert server.generation == "A"
                assert len(stored) == len(set(stored))
        if code:
            assert run(proxy.url, MANY, "--uncertain", "resend")[0] == 0
    assert sorted(set(server.stored())) == MANY_STORED


def kill_until_finished(server, begin, seed, requests=8):
    """Kill -9 while requests or answers are under way, until the command is finished."""
    source = random.Random(seed)
    faults = source.choices([None, "hold", "kept"], k=requests)
    held, answer = None, []
    server.emptied()
    with failing(server, *faults) as proxy:
        for _ in range(20):
            with begin(proxy.url, MANY, *answer) as process:
                while process.poll() is None and not proxy.holding.wait(0.02):
                    pass
                process.kill()
                done = ended(process)
            if proxy.holding.is_set():
                proxy.holding.clear()
                held, answer = faults[len(proxy.requests("POST")) - 1], []
            elif done.exit_code == 0:
                break
            else:
                assert server.generation == "A"
                assert "An interrupted run may have stored 1 request with 4 labels:" in done.stderr
                answer = ["--uncertain", "resend" if held == "hold" else "assume_stored"]
    assert done.exit_code == 0
    assert server.stored() == MANY_STORED


def test_kills(server, begin):
    kill_until_finished(server, begin, 1, requests=4)


@pytest.mark.soak
def test_many_kills(server, begin, tmp_path):
    for seed in range(2, 12):
        (tmp_path / "labels.json.birds.journal").unlink(missing_ok=True)
        kill_until_finished(server, begin, seed)


@pytest.mark.parametrize("seed", range(6))
def test_damage_of_the_journal_never_doubles_a_label(server, run, tmp_path, seed):
    damage_and_repeat(server, run, tmp_path, seed)


@pytest.mark.soak
def test_damage_of_the_journal_in_200_ways(server, run, tmp_path):
    for seed in range(100, 300):
        damage_and_repeat(server, run, tmp_path, seed)
