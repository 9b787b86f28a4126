"""What end-to-end tests share: images in a bucket, a run of ingest.py, what it left behind.

    made = make_world(pictures(18, 6))          # or the fixtures `world`, `fresh`, `undisturbed`
    done = made.run("--dry_run")                # in this process
    process = made.start(FAKE_WINDOW="4")       # in a process of its own, under way
    done = ended(process)
    made.left_behind()

A run has the environment of the test; `storage` and `server` may put a StandIn in the place of the
real ones, and other keyword arguments are variables of the environment (see fake_ingest.py).
"""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import os
import pickle
import re
import sqlite3
import subprocess
import sys
import time
import urllib.request
import uuid
import zlib
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock
from urllib.parse import quote

import click
import numpy as np
from click.testing import CliRunner
from pyarrow import parquet

import gcs
import ingest
from common.names import GsPath, identifier
from common.program import ROOT
from dataset import arrays
from dataset.state import State
from storage.async_client import AsyncStorage
from storage.listing import listed
from testing.embedders import FakeEmbedder, LoaderWithoutModels
from testing.photographs import picture
from testing.servers.guarded import guarded
from testing.servers.processes import LONGEST_S, local_forager
from tests.fake_ingest import make_loader, settings
from tests.listeners import below, command_of
from tests.stand_in import Rule, StandIn

FAKE = [sys.executable, str(Path(__file__).with_name("fake_ingest.py"))]
REAL = [sys.executable, str(ROOT / "ingest.py")]
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


def url_of(server: Any) -> str:
    """The address of a server: a StandIn, or the address itself."""
    return getattr(server, "url", server)


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


class World:
    """Images in a bucket, an empty index bucket, a server, and the command to run between them.

    With `fake`, the models of tests/fake_ingest.py; else `embedder`, or the real models if it is
    None. The work directory is work/ in `directory`.
    """

    def __init__(
        self,
        storage: str,
        server: str,
        directory: Path,
        *,
        splits: tuple[str, str] = ("train", "val"),
        images: str | None = None,
        fake: bool = True,
    ) -> None:
        self.storage, self.server, self.directory = Emulated(storage), server, directory
        self.images, self.index = images or self.storage.bucket(), self.storage.bucket()
        self.name = f"d-{uuid.uuid4().hex[:12]}"
        self.splits = splits
        self.embedder: FakeEmbedder | None = None
        self.fake = fake
        if fake:
            directory.mkdir(parents=True, exist_ok=True)
            for name in ("resnet", "clip"):
                (directory / name).write_bytes(name.encode())

    @property
    def work(self) -> Path:
        return self.directory / "work"

    @property
    def client(self) -> Any:
        """google-cloud-storage's, for the emulator of the test."""
        return gcs.make_client()

    def again(self, directory: Path) -> World:
        """The same images under another name, with nothing done."""
        address, images, fake = self.storage.url, self.images, self.fake
        return World(address, self.server, directory, splits=self.splits, images=images, fake=fake)

    def changed(self, **attributes: Any) -> World:
        """The same ingest with other attributes."""
        other = object.__new__(World)
        other.__dict__.update(self.__dict__, **attributes)
        return other

    # The images

    def put(self, *names: str, **contents: bytes) -> dict[str, bytes]:
        """Put objects into the image bucket, an image of its own where no content is given."""
        for name in names:
            kind = "PNG" if name.endswith(".png") else "JPEG"
            contents[name] = picture(zlib.crc32(name.encode()), kind=kind)
        for name, content in contents.items():
            self.storage.put(self.images, name, content)
        return contents

    def delete(self, *names: str) -> None:
        for name in names:
            self.storage.delete(self.images, name)

    def rename(self, name: str, new: str) -> None:
        self.storage.put(self.images, new, self.storage.get(self.images, name))
        self.delete(name)

    # The command

    def arguments(
        self,
        *options: str,
        name: str | None = None,
        train: str | None = None,
        val: str | None = None,
        server: Any = None,
    ) -> list[str]:
        paths = [
            f"gs://{self.images}/{split}" if path is None else path
            for path, split in zip((train, val), self.splits, strict=True)
        ]
        weights = []
        if self.fake:
            weights += ["--resnet_weights", str(self.directory / "resnet")]
            weights += ["--clip_weights", str(self.directory / "clip")]
        places = ["--bucket", self.index, "--work_dir", str(self.work)]
        places += ["--server_url", self.server if server is None else url_of(server)]
        return [self.name if name is None else name, *paths, *places, *weights, *options]

    def command(self, *options: str, **named: Any) -> list[str]:
        """ingest.py with the fake models, for a process of its own."""
        return [*FAKE, *self.arguments(*options, **named)]

    def run(self, *options: str, storage: Any = None, **named: Any) -> Done:
        """The command in this process, which saves the imports."""
        variables = {name: named.pop(name) for name in list(named) if not name.islower()}
        return self.invoke(self.arguments(*options, **named), storage, **variables)

    def ingest(self, *options: str, **named: Any) -> Done:
        """A run that ends with exit code 0."""
        done = self.run(*options, **named)
        assert done.exit_code == 0, done.output
        return done

    def invoke(self, arguments: list[str], storage: Any = None, **variables: str) -> Done:
        """The command in this process with just these arguments."""
        loader: Any = make_loader if self.fake else None
        if self.embedder:
            loader = partial(LoaderWithoutModels, embedder=self.embedder)
        if storage is not None:
            variables["STORAGE_EMULATOR_HOST"] = url_of(storage)
        with mock.patch.dict(os.environ, variables), settings():
            return invoked(ingest.main, arguments, loader)

    def start(
        self,
        *options: str,
        storage: Any = None,
        program: Sequence[str] = FAKE,
        popen: Any = (),
        **named: Any,
    ) -> subprocess.Popen[str]:
        """The command in a process of its own, under way; `popen`: more arguments of Popen."""
        variables = {name: named.pop(name) for name in list(named) if not name.islower()}
        if storage is not None:
            variables["STORAGE_EMULATOR_HOST"] = url_of(storage)
        command = [*program, *self.arguments(*options, **named)]
        return start(command, {**clean_environment(), **variables}, **dict(popen))

    def stop_at(self, rule: Rule, *options: str, **named: Any) -> Done:
        """A run that ends with exit code 1, as storage fails by this rule."""
        with StandIn(self.storage.url, rule) as storage:
            done = self.run(*options, storage=storage, **named)
        assert done.exit_code == 1, done.output
        return done

    # What it left behind

    def left_behind(self, but: str = "no index") -> dict[str, str]:
        """The objects in the index bucket and their crc32c, with ID for the one index_id.

        Those of an index named by `but` are left out.
        """
        found = {n: crc for n, crc in self.storage.contents(self.index).items() if but not in n}
        for name in found:
            if name.endswith("/manifest.parquet"):  # whose metadata has the time and the index id
                found[name] = manifest_content(self.storage.get(self.index, name))
        ids = {name.split("/")[1] for name in found}
        assert len(ids) <= 1, f"several index_ids: {ids}"
        return {re.sub(r"/[-0-9a-f]{36}/", "/ID/", name): crc for name, crc in found.items()}

    def objects(self) -> dict[str, bytes]:
        """Every object in the index bucket: name -> bytes."""
        names = self.storage.contents(self.index)
        return {name: self.storage.get(self.index, name) for name in names}

    def array(self, name: str) -> np.ndarray:
        """An array of the uploaded index, float32 (n, dimension)."""
        path = f"indexes/{self.index_id()}/local/{name}/embeddings.npy"
        data = self.storage.get(self.index, path)
        return np.frombuffer(data, "<f4").reshape(-1, arrays.DIMENSIONS[name])

    def report(self, name: str = "report.json") -> dict[str, Any]:
        return json.loads((self.work / name).read_text())

    def failed(self) -> dict[str, str]:
        """The images that cannot be embedded, and why."""
        failed = json.loads((self.work / "failed.json").read_text())
        assert all(list(entry) == ["object", "reason"] for entry in failed)
        return {entry["object"]: entry["reason"] for entry in failed}

    def _state(self, query: str) -> dict[str, Any]:
        """What the state on the disk answers; nothing where the run did not come that far."""
        path = f"file:{self.work / 'state.sqlite'}?mode=ro"  # else it would be made
        with (
            contextlib.suppress(sqlite3.OperationalError),
            contextlib.closing(sqlite3.connect(path, uri=True)) as state,
        ):
            return dict(state.execute(query))
        return {}

    def statuses(self) -> dict[str, int]:
        """Object names and the status of their rows, as they are on the disk now."""
        return self._state(
            "SELECT object, status FROM images WHERE split IS NOT NULL ORDER BY split, object"
        )

    def options(self) -> dict[str, str]:
        """The recorded options."""
        return self._state("SELECT name, value FROM options")

    def set_options(self, **options: str | None) -> None:
        """Record other options; None deletes one."""
        with contextlib.closing(State(self.work / "state.sqlite")) as state:
            state.set_options(options)

    def done(self) -> list[str]:
        """The objects whose rows are marked done."""
        return [name for name, status in self.statuses().items() if status == DONE]

    def registered(self, server: Any = None) -> tuple[str, int, int] | None:
        """What the server knows of the dataset: index_id, training and validation images."""
        address = f"{url_of(server or self.server)}/api/get_dataset_info_v2/{self.name}"
        try:
            info = json.loads(ask(address))
        except urllib.error.HTTPError as error:
            error.close()
            return None
        return info["index_id"], info["num_train"], info["num_val"]

    def index_id(self) -> str:
        return next(iter(self.storage.contents(self.index))).split("/")[1]

    def assert_same(self, undisturbed: World) -> None:
        """What is there is what an undisturbed run left, once, under the first run's index_id."""
        assert self.left_behind() == undisturbed.left_behind()
        splits = [name.split("/")[0] for name in self.storage.contents(self.images)]
        assert self.registered() == (self.index_id(), *map(splits.count, self.splits))
        assert self.options()["index_id"] == self.index_id()

    def assert_done_is_done(self) -> None:
        """Every row marked done has its vectors on the disk and its thumbnail in the bucket."""
        rows = list(self.statuses().items())
        uploaded = {name.rpartition("/")[2] for name in self.storage.contents(self.index)}
        for name, dimension in arrays.DIMENSIONS.items():
            path = arrays.array_path(self.work, name)
            array = path.read_bytes() if path.exists() else b""
            for row, (object_name, status) in enumerate(rows):
                if status == DONE:
                    vector = array[row * dimension * 4 : (row + 1) * dimension * 4]
                    assert any(vector), f"{object_name} is marked done and has no {name}"
                    assert f"{identifier(object_name)}.jpg" in uploaded


def manifest_content(data: bytes) -> str:
    """What does not depend on when and how often an image was written."""
    table = parquet.read_table(io.BytesIO(data)).drop_columns(["generation", "row_crc32c"])
    return str(table.to_pylist())


def has_only_a_report(work: Path) -> bool:
    """Whether a work directory has no more than the report of a run that began nothing."""
    return [path.name for path in work.iterdir()] == ["report.json"]


class Index:
    """What an ingest left in the index bucket, read as the server and the web page do."""

    def __init__(self, objects: dict[str, bytes]) -> None:
        self.names = set(objects)
        (self.id,) = {name.split("/")[1] for name in objects}
        prefix = f"indexes/{self.id}"
        self.labels = json.loads(objects[f"{prefix}/labels.json"])
        self.train = json.loads(objects[f"{prefix}/identifiers.json"])
        self.val = json.loads(objects[f"{prefix}/val_identifiers.json"])
        self.classes = pickle.loads(objects[f"aux_labels/{self.id}/imagenet.pickle"])
        self.arrays = {
            name: np.frombuffer(
                objects[f"{prefix}/local/{name}/embeddings.npy"], dtype="<f4"
            ).reshape(len(self.labels), dimension)
            for name, dimension in arrays.DIMENSIONS.items()
        }
        start = f"thumbnails/{self.id}/"
        self.thumbnails = {
            name.removeprefix(start): data
            for name, data in objects.items()
            if name.startswith(start)
        }


# Parts of storage alone


def put(bucket: str, *names: str, data: bytes = b"data") -> None:
    for name in names:
        gcs.make_client().bucket(bucket).blob(name).upload_from_string(data)


def listing(bucket: str, prefix: str = "") -> list[Any]:
    return sorted(found for page in listed(GsPath(bucket, prefix)) for found in page)


def with_objects(function: str, *args: Any) -> Any:
    """What a method of AsyncStorage returns."""

    async def run() -> Any:
        async with AsyncStorage(4) as objects:
            return await getattr(objects, function)(*args)

    return asyncio.run(run())


# Processes


@contextlib.contextmanager
def foragers(directories: dict[str, Path], storage: str) -> Iterator[dict[str, str]]:
    """A local Forager of each generation, with its data in this directory: its address."""
    environment = {**os.environ, "STORAGE_EMULATOR_HOST": storage}
    with contextlib.ExitStack() as services:
        addresses = {}
        for generation, directory in directories.items():
            options = "--generation", generation
            service = local_forager(directory, directory / "log", *options, environment=environment)
            addresses[generation] = services.enter_context(service).url
        yield addresses


def clean_environment() -> dict[str, str]:
    """This process's environment for another program, with quick retries.

    Without the settings of Ray's that a cluster leaves in the process that started it.
    """
    kept = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    return {**kept, "FORAGER_RETRY_BASE_S": "0.01", "PYTHONUNBUFFERED": "1"}


INTERIOR = (  # of libraries and protocols: no message shows it
    *("Traceback", "Error(", "Exception", "[Errno", "HTTPStatus", "HTTPConnection", "object at 0x"),
    *('{"', "('Connection", "\n.", "Unterminated string", "Expecting value", "Caused by", "<html"),
)


def plain(messages: str) -> str:
    """The messages; none of them shows the interior of a library."""
    found = [fragment for fragment in INTERIOR if fragment in messages]
    assert not found, f"{found} in:\n{messages}"
    return messages


def weight_options(weights_dir: Path) -> list[str]:
    """Options for the seeded weights of the real models."""
    clip = weights_dir / "clip-vit-base-patch32"
    return ["--resnet-weights", str(weights_dir / "R-50.pkl"), "--clip-weights", str(clip)]


class Done(NamedTuple):
    """How a command ended; a traceback in its output is never right."""

    exit_code: int
    stdout: str
    stderr: str

    @property
    def output(self) -> str:
        return self.stdout + self.stderr

    @property
    def error(self) -> str:
        """The message that ended it, without "Error: "."""
        return self.stderr.partition("Error: ")[2]

    def succeeded(self, *words: str) -> Done:
        """It, where it ended with exit code 0 and these words are in what it printed."""
        assert self.exit_code == 0, self.output
        assert [part for part in words if part not in self.stdout] == [], self.output
        return self

    def failed(self, *words: str) -> Done:
        """It, where it ended with exit code 1 and these words are in the message that ended it."""
        assert self.exit_code == 1, self.output
        assert [part for part in words if part not in self.error] == [], self.output
        return self

    def refused(self, *words: str) -> Done:
        """It, where it failed with these words and printed nothing on stdout."""
        assert self.stdout == "", self.output
        return self.failed(*words)


def invoked(main: click.Command, arguments: Sequence[str], obj: Any = None) -> Done:
    """How a command ended, run in this process, which saves the imports."""
    result = CliRunner().invoke(main, arguments, obj=obj)
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return Done(result.exit_code, result.stdout, plain(result.stderr))


def start(command: list[str], env: dict[str, str], **options: Any) -> subprocess.Popen[str]:
    """A command in a process of its own, under way; it ends with the run of the tests.

    `options` are more arguments of Popen.
    """
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(**guarded(command), env=env, text=True, **{**pipes, **options})


def ended(process: subprocess.Popen[str], timeout: float | None = LONGEST_S) -> Done:
    """How a process ended; it is killed if it does not end within the timeout."""
    try:
        out, err = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        process.kill()
        raise
    return Done(process.returncode, out, plain(err))


def run(
    command: list[str],
    env: dict[str, str] | None = None,
    timeout: float = LONGEST_S,
    **options: Any,
) -> Done:
    """A command in a process of its own, to its end; `options` are more arguments of Popen."""
    return ended(start(command, clean_environment() if env is None else env, **options), timeout)


def wait_for(condition: Callable[[], Any], timeout: float = LONGEST_S) -> Any:
    """Wait until a condition holds, and return its value.

    It does not hold where a file or a table is not there yet.
    """
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        with contextlib.suppress(sqlite3.OperationalError, OSError):
            if value := condition():
                return value
        time.sleep(0.02)
    raise AssertionError(f"not fulfilled within {timeout} s")


def _state(pid: int) -> str:
    """The state of a process as /proc has it, such as "T" for stopped; "" if it has none."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return ""


def is_running(pid: int) -> bool:
    """Whether a process of this id runs; one that ended and was not waited for does not."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return _state(pid) != "Z"


def is_stopped(pid: int) -> bool:
    """Whether a process is stopped, as by SIGSTOP."""
    return _state(pid) == "T"


def feeders_of(pid: int) -> list[int]:
    """The process ids of a command's feeders."""
    return [process for process in below(pid) if "engine.feeder" in command_of(process)]
