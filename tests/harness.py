"""What the tests of faults, kills and bad images share: a dataset, a run, what it left behind."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock
from urllib.parse import quote

from click.testing import CliRunner
from pyarrow import parquet

import ingest
from common.names import identifier
from dataset import arrays
from testing.photographs import picture
from testing.servers.guarded import guarded
from testing.servers.processes import LONGEST_S
from tests.fake_ingest import make_loader, settings

FAKE = [sys.executable, str(Path(__file__).with_name("fake_ingest.py"))]
JSON = "application/json"
DONE = 1  # the status of a row
TRAIN, VAL = 18, 6  # pictures of the dataset that most tests of stops and faults use
CLEAN = ("SERVER_URL", "FORAGER_BUCKET", "http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY")


def pictures(train: int, val: int, size: tuple[int, int] = (40, 30)) -> dict[str, bytes]:
    """Object names and files of a dataset under train/ and val/."""
    return {
        **{f"train/t{i:04}.jpg": picture(i, size) for i in range(train)},
        **{f"val/v{i:04}.png": picture(10_000 + i, size, "PNG") for i in range(val)},
    }


def ask(url: str, method: str = "GET", data: bytes | None = None, kind: str = "") -> bytes:
    """One request to an emulator or a server, without any client library."""
    headers = {"Content-Type": kind} if kind else {}
    request = urllib.request.Request(url, data=data, method=method, headers=headers)
    with urllib.request.urlopen(request, timeout=LONGEST_S) as response:
        return response.read()


class Emulated(NamedTuple):
    """The storage emulator, spoken to directly."""

    url: str

    def bucket(self) -> str:
        name = f"bucket-{uuid.uuid4().hex[:12]}"
        ask(f"{self.url}/storage/v1/b?project=p", "POST", b'{"name": "%s"}' % name.encode(), JSON)
        return name

    def put(self, bucket: str, name: str, data: bytes) -> None:
        address = f"{self.url}/upload/storage/v1/b/{bucket}/o?name={quote(name, safe='')}"
        if data:
            ask(f"{address}&uploadType=media", "POST", data, "application/octet-stream")
        else:  # which the emulator takes in this form alone
            parts = b"--b\r\nContent-Type: application/json\r\n\r\n{}\r\n--b\r\n\r\n\r\n--b--"
            ask(f"{address}&uploadType=multipart", "POST", parts, "multipart/related; boundary=b")

    def delete(self, bucket: str, name: str) -> None:
        ask(f"{self.url}/storage/v1/b/{bucket}/o/{quote(name, safe='')}", "DELETE")

    def get(self, bucket: str, name: str) -> bytes:
        return ask(f"{self.url}/storage/v1/b/{bucket}/o/{quote(name, safe='')}?alt=media")

    def contents(self, bucket: str) -> dict[str, str]:
        """Object names and their crc32c."""
        found, token = {}, ""
        while True:
            page = json.loads(ask(f"{self.url}/storage/v1/b/{bucket}/o?pageToken={token}"))
            found.update({item["name"]: item["crc32c"] for item in page.get("items", ())})
            token = quote(page.get("nextPageToken", ""))
            if not token:
                return found


def manifest_content(data: bytes) -> str:
    """What does not depend on when and how often an image was written."""
    table = parquet.read_table(io.BytesIO(data)).drop_columns(["generation"])
    return str(table.to_pylist())


class Dataset(NamedTuple):
    """Images in a bucket, an empty index bucket, a name, weights and a work directory to be."""

    storage: Emulated
    images: str
    bucket: str  # of the index
    name: str
    directory: Path

    def command(self, *options: str) -> list[str]:
        """ingest.py with the fake models."""
        paths = [f"gs://{self.images}/train", f"gs://{self.images}/val"]
        weights = ["--resnet_weights", str(self.directory / "resnet")]
        weights += ["--clip_weights", str(self.directory / "clip")]
        places = ["--bucket", self.bucket, "--work_dir", str(self.work)]
        return [*FAKE, self.name, *paths, *weights, *places, *options]

    @property
    def work(self) -> Path:
        return self.directory / "work"

    def left_behind(self) -> dict[str, str]:
        """The objects in the index bucket and their crc32c, with ID for the one index_id."""
        found = self.storage.contents(self.bucket)
        for name in found:
            if name.endswith("/manifest.parquet"):  # whose metadata has the time and the index id
                found[name] = manifest_content(self.storage.get(self.bucket, name))
        ids = {name.split("/")[1] for name in found}
        assert len(ids) <= 1, f"several index_ids: {ids}"
        return {re.sub(r"/[-0-9a-f]{36}/", "/ID/", name): crc for name, crc in found.items()}

    def statuses(self) -> dict[str, int]:
        """Object names and the status of their rows, as they are on the disk now."""
        path = f"file:{self.work / 'state.sqlite'}?mode=ro"  # else it would be made
        with contextlib.closing(sqlite3.connect(path, uri=True)) as state:
            return dict(state.execute("SELECT object, status FROM rows ORDER BY row"))

    def options(self) -> dict[str, str]:
        """The recorded options; none where the run did not come that far."""
        path = f"file:{self.work / 'state.sqlite'}?mode=ro"
        if not (self.work / "state.sqlite").exists():
            return {}
        with contextlib.closing(sqlite3.connect(path, uri=True)) as state:
            return dict(state.execute("SELECT name, value FROM options"))

    def done(self) -> list[str]:
        """The objects whose rows are marked done."""
        return [name for name, status in self.statuses().items() if status == DONE]

    def registered(self, server: str) -> tuple[str, int, int]:
        """What the server knows of the dataset: index_id, training and validation images."""
        info = json.loads(ask(f"{server}/api/get_dataset_info_v2/{self.name}"))
        return info["index_id"], info["num_train"], info["num_val"]

    def index_id(self) -> str:
        return next(iter(self.storage.contents(self.bucket))).split("/")[1]

    def assert_same(self, undisturbed: Dataset, server: str) -> None:
        """What is there is what an undisturbed run left, once, under the first run's index_id."""
        assert self.left_behind() == undisturbed.left_behind()
        splits = [name.split("/")[0] for name in self.storage.contents(self.images)]
        counts = splits.count("train"), splits.count("val")
        assert self.registered(server) == (self.index_id(), *counts)
        with contextlib.closing(sqlite3.connect(self.work / "state.sqlite")) as state:
            recorded = state.execute("SELECT value FROM options WHERE name = 'index_id'").fetchall()
        assert recorded == [(self.index_id(),)]

    def assert_done_is_done(self) -> None:
        """Every row marked done has its vectors on the disk and its thumbnail in the bucket."""
        if not (self.work / "state.sqlite").exists():
            return
        rows = list(self.statuses().items())
        uploaded = {name.rpartition("/")[2] for name in self.storage.contents(self.bucket)}
        for name, dimension in arrays.DIMENSIONS.items():
            path = arrays.array_path(self.work, name)
            array = path.read_bytes() if path.exists() else b""
            for row, (object_name, status) in enumerate(rows):
                if status == DONE:
                    vector = array[row * dimension * 4 : (row + 1) * dimension * 4]
                    assert any(vector), f"{object_name} is marked done and has no {name}"
                    assert f"{identifier(object_name)}.jpg" in uploaded

    def again(self, directory: Path) -> Dataset:
        """The same images under another name, with nothing done."""
        return dataset(self.storage, directory, {}, self.images)


def has_only_a_report(work: Path) -> bool:
    """Whether a work directory has no more than the report of a run that began nothing."""
    return [path.name for path in work.iterdir()] == ["report.json"]


def dataset(
    storage: Emulated, directory: Path, objects: dict[str, bytes], images: str = ""
) -> Dataset:
    """A dataset of these objects, ready to be ingested."""
    directory.mkdir(parents=True, exist_ok=True)
    for name in ("resnet", "clip"):
        (directory / name).write_bytes(name.encode())
    images = images or storage.bucket()
    for name, data in objects.items():
        storage.put(images, name, data)
    return Dataset(storage, images, storage.bucket(), f"d-{uuid.uuid4().hex[:8]}", directory)


def clean_environment() -> dict[str, str]:
    """This process's environment for another program, with quick retries.

    Without the settings of Ray's that a cluster leaves in the process that started it.
    """
    kept = {
        name: value
        for name, value in os.environ.items()
        if name not in CLEAN and not name.startswith("RAY_")
    }
    return {**kept, "FORAGER_RETRY_BASE_S": "0.01", "PYTHONUNBUFFERED": "1"}


def environment(storage: str, server: str, **more: str) -> dict[str, str]:
    """A clean environment for a run."""
    addresses = {"STORAGE_EMULATOR_HOST": storage, "SERVER_URL": server}
    return {**clean_environment(), **addresses, **more}


INTERIOR = (  # of libraries and protocols: no message shows it
    *("Traceback", "Error(", "Exception", "[Errno", "HTTPStatus", "HTTPConnection", "object at 0x"),
    *('{"', "('", "\n.", "Unterminated string", "Expecting value", "Caused by", "<html"),
)


def plain(messages: str) -> str:
    """The messages; none of them shows the interior of a library."""
    found = [fragment for fragment in INTERIOR if fragment in messages]
    assert not found, f"{found} in:\n{messages}"
    return messages


class Done(NamedTuple):
    """How a command ended; a traceback in its output is never right."""

    returncode: int
    stdout: str
    stderr: str
    cpu_s: float = 0.0


def run_here(command: list[str], env: dict[str, str]) -> Done:
    """ingest.py with the fake models in this process, which saves the imports."""
    with mock.patch.dict(os.environ, env, clear=True), settings():
        result = CliRunner().invoke(ingest.main, command[len(FAKE) :], obj=make_loader)
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return Done(result.exit_code, result.stdout, plain(result.stderr))


def run(command: list[str], env: dict[str, str], timeout: float = LONGEST_S) -> Done:
    """A command in a process of its own, to its end."""
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        process = subprocess.Popen(**guarded(command), env=env, stdout=out, stderr=err)
        guard = threading.Timer(timeout, process.kill)
        guard.start()
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        guard.cancel()
        out.seek(0), err.seek(0)
        done = Done(
            process.returncode,
            out.read().decode(),
            err.read().decode(),
            usage.ru_utime + usage.ru_stime,
        )
    plain(done.stderr)
    return done


def start(command: list[str], env: dict[str, str], **options: Any) -> subprocess.Popen[str]:
    """A command in a process of its own, under way; it ends with the run of the tests.

    `options` are more arguments of Popen.
    """
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(**guarded(command), env=env, text=True, **{**pipes, **options})


def ended(process: subprocess.Popen[str], timeout: float = LONGEST_S) -> Done:
    """How a process ended; it is killed if it does not end within the timeout."""
    try:
        out, err = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        process.kill()
        raise
    return Done(process.returncode, out, plain(err))


def wait_for(condition: Callable[[], object], timeout: float = LONGEST_S) -> None:
    """Wait until a condition holds; it does not where a file or a table is not there yet."""
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        with contextlib.suppress(sqlite3.OperationalError, OSError):
            if condition():
                return
        time.sleep(0.02)
    raise AssertionError(f"not fulfilled within {timeout} s")


def is_running(pid: int) -> bool:
    """Whether a process of this id runs; one that ended and was not waited for does not."""
    try:
        os.kill(pid, 0)
        if os.path.exists("/proc/self/stat"):
            return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (ProcessLookupError, FileNotFoundError):
        return False
    return True


def is_stopped(pid: int) -> bool:
    """Whether a process is stopped, as by SIGSTOP."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"
    except (FileNotFoundError, ProcessLookupError):
        return False


def feeders_of(pid: int) -> list[int]:
    """The process ids of a command's feeders."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((process / "stat").read_text().rpartition(")")[2].split()[1])
            if parent == pid and b"engine.feeder" in (process / "cmdline").read_bytes():
                found.append(int(process.name))
        except (FileNotFoundError, ProcessLookupError):
            continue
    return found
