"""The demo keeps to itself: its directory, its port and its servers are its own."""

import json
import re
import signal
import socket
import subprocess
import sys

import pytest

import demo
from common.errors import IngestError
from common.program import ROOT
from tests.harness import ask, clean_environment, start, wait_for


@pytest.fixture
def taken(monkeypatch):
    """A port of another program, which is the demo's usual one."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        monkeypatch.setattr(demo, "PORT", listener.getsockname()[1])
        yield demo.PORT


def test_two_demos_have_two_directories(tmp_path, monkeypatch):
    monkeypatch.setattr(demo, "WORK", tmp_path / ".demo")
    with demo.work_directory() as first:
        (first / "labels.json").write_text("{}")
        with demo.work_directory() as second:
            assert second != first
            assert list(second.iterdir()) == []
        assert (first / "labels.json").exists()
    with demo.work_directory() as third:
        assert third == first
        assert list(third.iterdir()) == []


def test_the_page_gets_a_free_port_if_the_usual_one_is_in_use(taken, emulator, tmp_path, capsys):
    with demo.start_server(tmp_path, None) as service:
        assert re.fullmatch(r"http://127\.0\.0\.1:\d+", service.url)
        assert not service.url.endswith(f":{taken}")
    assert capsys.readouterr().out == (
        f"Another program uses port {taken}, so the page gets a free port.\n"
    )


def test_a_port_that_was_asked_for_and_is_in_use(taken, emulator, tmp_path):
    with pytest.raises(IngestError) as refused:
        demo.start_server(tmp_path, taken)
    assert refused.value.message == (
        f"Cannot listen on 127.0.0.1:{taken} (Address already in use): choose another --port."
    )


def test_make_clean_removes_what_the_demo_leaves():
    said = subprocess.run(["make", "-n", "clean"], cwd=ROOT, capture_output=True, text=True)
    assert str(demo.WORK.relative_to(ROOT)) in said.stdout.split()


@pytest.mark.soak
def test_two_demos_at_once(tmp_path):
    """With the real models: both show their own index, wherever port 8000 went."""
    said = [tmp_path / "one", tmp_path / "two"]
    environment = {**clean_environment(), "FORAGER_BUCKET": "other", "http_proxy": "http://[::1]:9"}
    demos = []
    for path in said:
        with open(path, "w") as output:
            command = [sys.executable, str(ROOT / "demo.py")]
            demos.append(start(command, environment, stdout=output, stderr=subprocess.STDOUT))
    look = re.compile(r"^(http://[\d.:]+)/demo$", re.M)
    wait_for(lambda: all(look.search(path.read_text()) for path in said), timeout=280)
    servers = [look.search(path.read_text())[1] for path in said]
    indexes = {
        json.loads(ask(f"{server}/api/get_dataset_info_v2/demo"))["index_id"] for server in servers
    }
    assert len(indexes) == 2
    for process in demos:
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 0
