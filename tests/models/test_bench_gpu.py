"""bench.gpu on the CPU, so that it works at the first try on a GPU."""

import json

import pytest
import torch

from bench import gpu
from tests.harness import invoked

QUICK = [name for name in gpu.PARTS if name != "ingest"]


def run(tmp_path, parts):
    path = tmp_path / "cpu.json"
    done = invoked(gpu.main, ["--device", "cpu", "--json", str(path), *parts]).succeeded()
    return done.output, json.loads(path.read_text())


@pytest.mark.soak
def test_every_part_but_the_ingest_runs_on_a_cpu(tmp_path):
    said, written = run(tmp_path, QUICK)
    for part in QUICK:
        assert f"\n{part}: " in said
    values = {line["name"]: line["value"] for line in written["lines"]}
    assert values["smallest cosine, imagenet"] > 0.999999
    assert "torch" in written["machine"]


@pytest.mark.soak
def test_the_ingest_runs_on_a_cpu(tmp_path):
    said, _ = run(tmp_path, ["ingest"])
    assert "ingest of COCO's sizes / models alone" in said


def test_a_missed_limit_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setitem(gpu.PARTS, "shapes", lambda bench: [gpu.Line("too low", 0.5, "", ">= 0.9")])
    arguments = ["--device", "cpu", "--json", str(tmp_path / "cpu.json"), "shapes"]
    invoked(gpu.main, arguments).failed("1 limits missed: too low")


def test_without_a_gpu_it_says_so(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    invoked(gpu.main, []).failed("`--device cpu` runs a small version")
