"""A bucket that lives: images appear, vanish, change and move, between two runs and during one."""

import contextlib
import itertools
import signal

import pytest

from dataset.state import State
from testing.photographs import picture
from tests.fault_proxy import FaultProxy, Rule
from tests.front import Front
from tests.harness import Emulated, dataset, ended, environment, pictures, run_here, start

DOWNLOAD, COPY = r"GET /storage/.*alt=media", r"POST /batch/"
LAST_LIST = "val_identifiers.json"


@pytest.fixture
def env(emulator_url, servers):
    return environment(emulator_url, servers["B"])


@pytest.fixture
def stopped(emulator_url, env, tmp_path):
    """Six training and two validation images, of which the first four are done."""
    made = dataset(Emulated(emulator_url), tmp_path / "made", pictures(6, 2))
    rules = [Rule(DOWNLOAD, "403", after=4)]
    with FaultProxy(emulator_url, rules=rules) as storage:
        refused = {**env, "STORAGE_EMULATOR_HOST": storage.url, "FAKE_WINDOW": "1"}
        assert run_here(made.command(), refused).returncode == 1
    assert made.done() == [f"train/t000{number}.jpg" for number in range(4)]
    return made


def vanish(made, *names):
    for name in names:
        made.storage.delete(made.images, name)


def put(made, name, seed):
    made.storage.put(made.images, name, picture(seed))


def rename(made, name, new):
    made.storage.put(made.images, new, made.storage.get(made.images, name))
    vanish(made, name)


def exchange(made, one, two):
    contents = [made.storage.get(made.images, name) for name in (one, two)]
    for name, content in zip((two, one), contents, strict=True):
        made.storage.put(made.images, name, content)


def change_everything(made):
    """One image vanishes, one changes, two appear, one is moved and one is renamed."""
    vanish(made, "train/t0000.jpg")
    put(made, "train/t0001.jpg", 99)
    put(made, "train/new.jpg", 98)
    put(made, "val/new-too.jpg", 97)
    rename(made, "train/t0002.jpg", "train/deep/t0002.jpg")
    rename(made, "train/t0003.jpg", "train/renamed.jpg")


CHANGES = {
    "appeared": lambda made: put(made, "train/a-new.jpg", 98),
    "vanished": lambda made: vanish(made, "train/t0001.jpg"),
    "replaced": lambda made: put(made, "train/t0001.jpg", 99),
    "renamed": lambda made: rename(made, "train/t0001.jpg", "train/another.jpg"),
    "moved": lambda made: rename(made, "train/t0001.jpg", "val/t0001.jpg"),
    "exchanged": lambda made: exchange(made, "train/t0000.jpg", "train/t0001.jpg"),
    "everything": change_everything,
}


def once(pattern, change):
    """A rule for Front that changes something just before a request is forwarded, once."""
    todo = [change]

    def rule(asked):
        if pattern in asked.path and todo:
            todo.pop()()

    return rule


def assert_as_if_new(made, env, tmp_path):
    """What is there is what a new ingest of today's images makes."""
    other = made.again(tmp_path / "other")
    done = run_here(other.command(), env)
    assert done.returncode == 0, done.stderr
    made.assert_same(other, env["SERVER_URL"])


def test_only_what_is_new_is_computed(stopped, env, tmp_path):
    change_everything(stopped)
    planned = run_here(stopped.command("--dry_run"), env)
    line = (
        "Since the last run: 2 images appeared, 1 vanished, 2 were renamed, 1 was replaced. "
        "1 computed image is computed again.\n"
    )
    assert planned.returncode == 0 and planned.stdout.startswith(line)
    assert len(stopped.done()) == 4
    with FaultProxy(env["STORAGE_EMULATOR_HOST"]) as storage:
        proxied = {**env, "STORAGE_EMULATOR_HOST": storage.url}
        done = run_here(stopped.command(), proxied)
        fetched = {seen.target for seen in storage.requests(DOWNLOAD)}
    assert done.returncode == 0, done.stderr
    assert line in done.stderr and "Copied what 1 image need" in done.stderr
    assert "9 images (6 training, 3 validation), 0 failed, 7 embedded now" in done.stdout
    assert len(fetched) == 7
    assert not any(name in target for target in fetched for name in ("t0002", "renamed"))
    assert_as_if_new(stopped, env, tmp_path)
    with contextlib.closing(State.open_checked(stopped.work / "state.sqlite")) as state:
        assert state.progress().reused == 0
    assert {path.name for path in stopped.work.iterdir()} <= {
        *("lock", "state.sqlite", "state.sqlite-wal", "state.sqlite-shm", "index", "aux"),
        "report.json",
    }


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("when", [LAST_LIST, "t0001.jpg?alt=media"])
def test_a_bucket_that_changes_during_the_run_is_listed_again(
    emulator_url, env, tmp_path, change, when
):
    """Before the registration, and while images are downloaded."""
    made = dataset(Emulated(emulator_url), tmp_path / "made", pictures(4, 2))
    with Front(emulator_url, once(when, lambda: CHANGES[change](made))) as front:
        done = run_here(made.command(), {**env, "STORAGE_EMULATOR_HOST": front.url})
    assert done.returncode == 0, done.stderr
    assert "Since the images were listed: " in done.stderr
    assert_as_if_new(made, env, tmp_path)


@pytest.mark.parametrize("options", [["--skip_bad_images"], ["--decode_in", "processes"]])
def test_an_image_that_is_replaced_before_its_download_is_fetched_again(
    emulator_url, env, tmp_path, options
):
    made = dataset(Emulated(emulator_url), tmp_path / "made", pictures(4, 2))
    replace = once("t0001.jpg?alt=media", lambda: CHANGES["replaced"](made))
    with Front(emulator_url, replace) as front:
        done = run_here(made.command(*options), {**env, "STORAGE_EMULATOR_HOST": front.url})
    assert done.returncode == 0, done.stderr
    assert "1 image changed in the bucket since they were listed" in done.stderr
    assert "\n  train/t0001.jpg: it was replaced after it was listed\n" in done.stderr
    assert_as_if_new(made, env, tmp_path)


def test_a_bucket_that_never_holds_still_is_given_up_in_words(emulator_url, env, tmp_path):
    made = dataset(Emulated(emulator_url), tmp_path / "made", pictures(3, 1))
    seeds = iter(range(200, 300))

    def rule(asked):
        if LAST_LIST in asked.path:
            seed = next(seeds)
            put(made, f"train/{seed}.jpg", seed)

    with Front(emulator_url, rule) as front:
        done = run_here(made.command(), {**env, "STORAGE_EMULATOR_HOST": front.url})
    assert done.returncode == 1
    assert done.stderr.count("Since the images were listed: ") == 5
    message = done.stderr[done.stderr.index("Error: ") :]
    assert message.startswith("Error: The bucket changed in each of 5 rounds, so nothing was reg")
    assert "\nAll that is computed is kept. Run the same command again when gs://" in message
    with pytest.raises(OSError, match="404"):
        made.registered(env["SERVER_URL"])
    done = run_here(made.command(), env)
    assert done.returncode == 0, done.stderr
    assert_as_if_new(made, env, tmp_path)


def test_most_of_what_is_computed_is_not_left_out_without_a_word(stopped, env, tmp_path):
    """Someone moves the directory: the first run after it finds half of it, the second all."""
    contents = {
        name: stopped.storage.get(stopped.images, name)
        for name in stopped.statuses()
        if name.startswith("train/")
    }
    vanish(stopped, *contents)
    before = stopped.statuses(), stopped.left_behind()
    put(stopped, "train/other.jpg", 7)
    for options in ([], ["--dry_run"]):
        done = run_here(stopped.command(*options), env)
        assert done.returncode == 1
        assert "Error: 4 of 4 computed images would be left out" in done.stderr
        assert "add --accept_changes." in done.stderr
    assert (stopped.statuses(), stopped.left_behind()) == before
    for name, content in contents.items():
        stopped.storage.put(stopped.images, name.replace("/t", "/moved/image-"), content)
    done = run_here(stopped.command(), env)
    assert done.returncode == 0, done.stderr
    assert "5 embedded now" in done.stdout  # one is new, and four were not computed yet
    assert_as_if_new(stopped, env, tmp_path)


def test_accepted_changes_leave_out_most_of_what_is_computed(stopped, env, tmp_path):
    vanish(stopped, *stopped.done()[:3])
    done = run_here(stopped.command("--accept_changes"), env)
    assert done.returncode == 0, done.stderr
    assert "Since the last run: 3 images vanished. Nothing that is computed is lost." in done.stderr
    assert_as_if_new(stopped, env, tmp_path)


def test_what_vanishes_and_comes_back_is_not_computed_again(stopped, env, tmp_path):
    """Until the index is whole, the vectors of images that are not listed are kept."""
    content = stopped.storage.get(stopped.images, "train/t0001.jpg")
    vanish(stopped, "train/t0001.jpg")
    rules = [Rule(DOWNLOAD, "403")]
    with FaultProxy(env["STORAGE_EMULATOR_HOST"], rules=rules) as storage:
        refused = {**env, "STORAGE_EMULATOR_HOST": storage.url}
        assert run_here(stopped.command(), refused).returncode == 1
    assert len(stopped.done()) == 3
    stopped.storage.put(stopped.images, "val/back.jpg", content)
    done = run_here(stopped.command(), env)
    assert done.returncode == 0, done.stderr
    assert "4 embedded now" in done.stdout
    assert_as_if_new(stopped, env, tmp_path)


def test_broken_files_that_were_deleted_are_left_out(emulator_url, env, tmp_path):
    objects = {**pictures(3, 1), "train/bad.jpg": b"no image", "train/worse.jpg": b""}
    made = dataset(Emulated(emulator_url), tmp_path / "made", objects)
    assert run_here(made.command(), env).returncode == 1
    vanish(made, "train/bad.jpg", "train/worse.jpg")
    done = run_here(made.command(), env)
    assert done.returncode == 0, done.stderr
    assert "4 images (3 training, 1 validation), 0 failed, 0 embedded now" in done.stdout
    assert not (made.work / "failed.json").exists()


def test_damaged_vectors_are_not_kept(stopped, env, tmp_path):
    with open(stopped.work / "index/local/clip/embeddings.npy", "r+b") as file:
        file.seek(2 * 512 * 4)
        file.write(b"\1\2\3")
    rename(stopped, "train/t0002.jpg", "train/renamed.jpg")
    done = run_here(stopped.command(), env)
    assert done.returncode == 0, done.stderr
    assert "as their vectors are damaged there: 1." in done.stderr
    assert_as_if_new(stopped, env, tmp_path)


def test_kills_lose_nothing(stopped, env, tmp_path):
    """Killed while images are copied, and at each of the renames; each kill after another."""
    change_everything(stopped)
    with FaultProxy(env["STORAGE_EMULATOR_HOST"]) as storage:
        proxied = {**env, "STORAGE_EMULATOR_HOST": storage.url}
        storage.rules = [Rule(COPY, "kill-after")]
        storage.victim = start(stopped.command(), {**proxied, "FAKE_CHECKPOINT_S": "0.01"})
        assert ended(storage.victim).returncode == -signal.SIGKILL
        stopped.assert_done_is_done()
        storage.rules = []
        for number in itertools.count(2):  # the first is that of the report
            process = start(stopped.command(), {**proxied, "FAKE_KILL_RENAME": str(number)})
            if (done := ended(process)).returncode == 0:
                break
            assert done.returncode == -signal.SIGKILL
            stopped.assert_done_is_done()
        assert number >= 8
        assert len(storage.requests(DOWNLOAD)) == 7
    assert_as_if_new(stopped, env, tmp_path)


def test_a_registered_index_does_not_change(emulator_url, env, tmp_path):
    """The earlier run may have ended between the registration and the record of it."""
    made = dataset(Emulated(emulator_url), tmp_path / "made", pictures(2, 1))
    assert run_here(made.command(), env).returncode == 0
    with contextlib.closing(State(made.work / "state.sqlite")) as state:
        state.set_options({"registered": None, "servers": None})
    uploaded = made.storage.contents(made.bucket)
    put(made, "train/new.jpg", 98)
    for options in ([], ["--dry_run"]):
        done = run_here(made.command(*options), env)
        assert done.returncode == 1
        assert f"{made.name} is registered with the index in {made.work}, and the" in done.stderr
        assert f"with --reuse {made.work} and another --work_dir" in done.stderr
    assert made.storage.contents(made.bucket) == uploaded


@pytest.mark.parametrize("option", ["--relist", "--as_listed"])
def test_options_that_are_gone_say_so(stopped, env, option):
    done = run_here(stopped.command(option), env)
    assert done.returncode == 2
    assert f"{option} is gone: the same command takes today's listing by itself" in done.stderr
