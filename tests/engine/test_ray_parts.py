"""The parts of the engine on Ray that need no cluster."""

import ast
import json
from pathlib import Path

import pytest

from common.errors import ClusterError
from common.program import ROOT, copy_program, program_digest, program_files

ray = pytest.importorskip("ray", reason="Ray is not installed: pip install -r requirements-ray.txt")

import jsonschema  # noqa: E402
import yaml  # noqa: E402

from engine.ray import cluster  # noqa: E402

pytestmark = pytest.mark.ray


@pytest.mark.parametrize(
    ("nodes", "device", "found"),
    [
        ([{"CPU": 8}, {"CPU": 12, "GPU": 2}, {"CPU": 4, "GPU": 1}], "auto", (3, 0, 1)),
        ([{"CPU": 8}, {"CPU": 12, "GPU": 2}], "cuda", (2, 0, 1)),
        ([{"CPU": 8}, {"CPU": 12, "GPU": 2}], "cpu", (2, 8, 0)),
        ([{"CPU": 16}, {"CPU": 32}, {"CPU": 0}], "auto", (2, 16, 0)),
        ([{"CPU": 8}], "cuda", "no node of the Ray cluster has a GPU"),
        ([{"GPU": 1}], "cuda:1", "is one device: with"),
        ([{}], "auto", "has a CPU for tasks"),
    ],
)
def test_one_actor_per_gpu_or_else_per_node(monkeypatch, nodes, device, found):
    """`found` is the number of actors, and the CPUs and GPUs of each; or words of the error."""
    ours = cluster.Cluster(None)
    monkeypatch.setattr(ours, "nodes", lambda: [{"Resources": node} for node in nodes])
    if isinstance(found, str):
        with pytest.raises(ClusterError, match=found):
            ours.pool(device)
    else:
        assert ours.pool(device)[:3] == found


def test_workers_get_every_module_that_they_import_and_no_other_file(tmp_path):
    copy_program(tmp_path)
    copied = {path.relative_to(tmp_path) for path in tmp_path.rglob("*") if path.is_file()}
    assert copied == set(program_files())
    assert Path("engine/ray/worker.py") in copied
    modules = {".".join(path.with_suffix("").parts).removesuffix(".__init__") for path in copied}
    here = {path.stem for path in ROOT.iterdir() if path.suffix == ".py" or path.is_dir()}
    for path in copied:
        for node in ast.walk(ast.parse((tmp_path / path).read_text())):
            if isinstance(node, ast.ImportFrom) and node.module.partition(".")[0] in here:
                assert node.module in modules, f"{path} imports {node.module}"


def test_digest_of_the_program_changes_with_every_file(tmp_path, monkeypatch):
    copy_program(tmp_path)
    monkeypatch.setattr("common.program.ROOT", tmp_path)
    before = program_digest()
    for path in (tmp_path / "gcs.py", tmp_path / "engine" / "ray" / "worker.py"):
        path.write_text(path.read_text() + "\n")
        assert program_digest() != before
        before = program_digest()


@pytest.mark.parametrize("to_others", [True, False])
def test_workers_get_the_proxy_and_on_this_machine_the_key_file(tmp_path, monkeypatch, to_others):
    monkeypatch.delenv("STORAGE_EMULATOR_HOST", raising=False)
    monkeypatch.setenv("HTTPS_PROXY", "http://proxy:3128")
    monkeypatch.setenv("SECRET", "s")
    monkeypatch.chdir(tmp_path)
    Path("key.json").write_text("{}")
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", "key.json")
    variables = cluster.environment(to_others=to_others)
    assert variables["HTTPS_PROXY"] == "http://proxy:3128"
    key = variables.get("GOOGLE_APPLICATION_CREDENTIALS")
    assert key == (None if to_others else str(tmp_path / "key.json"))
    assert "SECRET" not in variables


def test_example_cluster_passes_the_schema_of_ray():
    schema = json.loads(
        Path(ray.__file__).with_name("autoscaler").joinpath("ray-schema.json").read_text()
    )
    example = yaml.safe_load((ROOT / "docs" / "ray-cluster.yaml").read_text())
    jsonschema.validate(example, schema)
    for node_type in ("head", "worker"):
        assert example["available_node_types"][node_type]["resources"]["CPU"] > 0
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({**example, "max_worker": 4}, schema)
