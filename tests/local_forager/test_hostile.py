"""Damaged and hostile indexes, boxes, names and requests: an answer or a sentence, no traceback."""

import errno
import hashlib
import json
import os
import pty
import resource
import socket
import sqlite3
import subprocess
import sys
from urllib.parse import urlsplit

import numpy as np
import pytest

from common.program import ROOT
from dataset.arrays import DIMENSIONS
from local_forager.commands.export import for_terminal
from local_forager.indexes.copies import index_directory
from local_forager.indexes.vectors import Vectors
from local_forager.types import PageError
from testing.servers.processes import LONGEST_S
from tests.harness import wait_for
from tests.local_forager.page_server import fetch, get, page_server


def log_of(server):
    return (server.data_dir / "log").read_text()


def test_vectors_that_are_not_finite_count_as_failed(server, dataset_name):
    def damage(file):
        for name, row, value in (("clip", 3, np.nan), ("clip", 7, -np.inf), ("imagenet", 5, 3e38)):
            blob = file(f"local/{name}/embeddings.npy")
            array = np.frombuffer(blob.download_as_bytes(), "<f4").copy()
            array[row * DIMENSIONS[name] + 1] = value
            blob.upload_from_string(array.tobytes())

    index_id = server.publish(dataset_name, 12, change=damage)
    page = server.dataset(dataset_name)
    assert server.rows("failed=yes", dataset_name) == [3, 5, 7]
    assert any("row 3, 5, 7." in warning for warning in page["warnings"])
    good = [row for row in range(12) if row not in (3, 5, 7)]
    for query in ("sort=outliers", "like=0"):
        assert sorted(server.rows(query, dataset_name)) == good
    points = server.array(f"{dataset_name}/map?by=clip", "<f4").reshape(-1, 2)
    assert np.flatnonzero(np.isfinite(points).all(axis=1)).tolist() == good
    near = get(f"{server.url}/page/{dataset_name}/neighbours/0?count=99")[1]["neighbours"]
    assert sorted(one["image"]["row"] for one in near) == good[1:]
    kept = server.data_dir / "indexes" / index_id / "not-finite.json"
    assert json.loads(kept.read_bytes()) == [3, 5, 7]


def test_array_that_is_cut_short_while_it_is_mapped(server, dataset_name, tmp_path):
    np.zeros((5, 64), "<f4").tofile(tmp_path / "array")
    vectors = Vectors(tmp_path / "array", 5, 64)
    os.truncate(tmp_path / "array", 64)
    with pytest.raises(PageError, match="cut short"):
        vectors.neighbours(0, 1, np.zeros(5, bool))
    index_id = server.publish(dataset_name, 5)
    os.truncate(server.data_dir / "indexes" / index_id / "clip.f32", 64)
    assert fetch(f"{server.url}/page/{dataset_name}/neighbours/0")[0] == 409
    assert server.wait_until_copied(dataset_name)["index"]["state"] == "ready"  # from the bucket
    assert get(f"{server.url}/page/{dataset_name}/neighbours/0")[0] == 200


def test_damaged_copy_is_replaced_at_the_next_start(emulator, tmp_path):
    with page_server(tmp_path) as server:
        index_id, bucket = server.publish("d", 2), server.index
    os.truncate(tmp_path / "indexes" / index_id / "clip.f32", 64)
    with page_server(tmp_path, "--bucket", bucket) as server:
        assert server.wait_until_copied("d")["index"]["state"] == "ready"


@pytest.mark.parametrize("index_id", ["../../escape", "/etc", ".", "a/b", "x" * 300, "A", "_a", ""])
def test_each_index_id_has_a_safe_directory_of_its_own(tmp_path, index_id):
    directory = index_directory(tmp_path, index_id)
    assert directory.parent == tmp_path / "indexes" and ".." not in str(directory)
    digest = hashlib.sha256(index_id.encode()).hexdigest()
    others = {digest, f"_{digest}", index_id.lower()} - {index_id}
    taken = {str(index_directory(tmp_path, other)).lower() for other in others}
    assert str(directory).lower() not in taken  # some disks ignore case


@pytest.mark.parametrize("value", [float("inf"), float("-inf"), float("nan"), "Infinity"])
def test_boxes_are_finite(server, dataset_name, value):
    server.publish(dataset_name, 1)
    assert server.box(dataset_name, "0", "dog", (1, 2, 3, value)) == 500
    assert server.box(dataset_name, "0", "dog", (1, 2, 3, 4)) == 200
    with sqlite3.connect(server.data_dir / "forager.sqlite3") as earlier:
        earlier.execute(
            "INSERT INTO box (item, user, category, mode, created_by, x1, y1, x2, y2) "
            "SELECT item, user, category, mode, created_by, 9e999, y1, x2, y2 FROM box "
            "ORDER BY id DESC LIMIT 1"
        )
    earlier.close()
    status, _, body = fetch(f"{server.url}/page/{dataset_name}/images?rows=0")
    assert status == 200 and b"Infinity" not in body
    assert len(json.loads(body)["images"][0]["boxes"]) == 1


def ask_raw(server, head):
    """The first line of the answer to a request as these bytes."""
    address = urlsplit(server.url)
    with socket.create_connection((address.hostname, address.port), timeout=LONGEST_S) as client:
        client.sendall(head + b"\r\n\r\n")
        return client.recv(100).partition(b"\r\n")[0]


@pytest.mark.parametrize(
    "host",
    [b"", b":80", b"localhost:x", b"localhost:99999", b"[::1", b"a b", b"[v1.x]", b"\xff", b"@",
     b"evil.example", b"a\0b"],
)  # fmt: skip
def test_other_hosts_are_refused_without_a_traceback(server, host):
    for path in (b"page/datasets", b"api/get_datasets_v2"):
        head = b"GET /" + path + b" HTTP/1.1\r\nHost: "
        assert b" 200 " in ask_raw(server, head + b"localhost:8000")
        assert b" 400 " in ask_raw(server, head + host)
    assert "Traceback" not in log_of(server)


def test_more_connections_than_descriptors(emulator, tmp_path):
    with page_server(tmp_path) as server:
        assert get(f"{server.url}/page/datasets")[0] == 200
        pid = server.process.pid
        used = max(map(int, os.listdir(f"/proc/{pid}/fd")))
        limits = resource.prlimit(pid, resource.RLIMIT_NOFILE)
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (used + 10, limits[1]))
        address = urlsplit(server.url)
        clients = [socket.create_connection((address.hostname, address.port)) for _ in range(40)]
        wait_for(lambda: os.strerror(errno.EMFILE) in log_of(server))
        for client in clients:
            client.close()
        assert get(f"{server.url}/page/datasets")[0] == 200
        assert "Traceback" not in log_of(server)


def test_names_in_a_terminal_are_escaped(server, dataset_name):
    name = f"{dataset_name}/train/\x1b[31m.jpg"
    server.publish(dataset_name, [name], 1)
    command = [sys.executable, "-m", "local_forager", "export", dataset_name]
    options = "--data_dir", str(server.data_dir), "--bucket", server.index
    master, terminal = pty.openpty()
    pipes = {"stdout": terminal, "stderr": terminal}
    subprocess.run([*command, *options], cwd=ROOT, timeout=LONGEST_S, check=True, **pipes)
    os.close(terminal)
    shown = os.read(master, 10_000).decode()
    os.close(master)
    assert name.replace("\x1b", "\\x1b") in shown and "\x1b" not in shown


def test_names_in_errors_are_escaped(server, dataset_name, tmp_path):
    server.create(f"x{dataset_name[:12]}", "\x1b[31m", "d")  # its index is not there
    for wrong, words in (
        (["\x1b[31m"], "\\x1b[31m"),
        (["d", "--data_dir", f"{tmp_path}/\x1b[31m"], "\\x1b[31m"),
        ([f"x{dataset_name[:12]}"], "indexes/\\x1b[31m"),
    ):
        done = server.command("export", *wrong).refused(words)
        assert "\x1b" not in done.stderr


def test_text_for_a_terminal():
    assert for_terminal("a\x1b\x07\ud800\nb\r\n\u202e") == "a\\x1b\\x07\\ud800\nb\n\\u202e"
    assert for_terminal("x" * 1000) == "x" * 1000
