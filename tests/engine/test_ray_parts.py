"""The parts of the engine on Ray that need no cluster."""

import ast
import json
from pathlib import Path

import numpy as np
import pytest

from common.program import ROOT, copy_program, program_digest, program_files
from dataset.arrays import DIMENSIONS, Embedding
from dataset.state import Row
from engine.decode import Decoded, NotEmbedded
from engine.stages import StageTime
from gcs import ListedObject

ray = pytest.importorskip("ray", reason="Ray is not installed: pip install -r requirements-ray.txt")

import jsonschema  # noqa: E402
import yaml  # noqa: E402

from engine.ray import cluster, driver, tables  # noqa: E402

pytestmark = pytest.mark.ray
ROWS = [Row(i, ListedObject(f"t/{i}.jpg", 10 + i, 0, 0)) for i in (4, 9, 11, 12)]


def test_packs_and_results_keep_every_number():
    pixels = np.random.default_rng(0).integers(0, 256, (5, 7, 3), np.uint8)
    clip_input = np.random.default_rng(1).integers(0, 256, (224, 224, 3), np.uint8)
    images = [
        NotEmbedded("broken"),
        Decoded(pixels=pixels, clip_input=clip_input, thumbnail=None, is_rotated=False),
        NotEmbedded("was replaced", changed=True),
        Decoded(pixels=pixels[:2], clip_input=None, thumbnail=None, is_rotated=True),
    ]
    times = [StageTime(name, 1, 0.5) for name in ("fetch", "decode", "thumbnails")]
    pack = tables.packed(list(zip(ROWS, images, strict=True)), times, [1, 2])
    assert pack["requests"].to_pylist() == [[1, 2]]
    rows, found = tables.unpacked(pack)
    assert (found[0], found[2]) == (images[0], images[2])
    assert (found[1].pixels == pixels).all() and (found[1].clip_input == clip_input).all()
    assert (found[3].pixels == pixels[:2]).all() and found[3].clip_input is None

    embedding = Embedding([np.full(d, d, np.float32) for d in DIMENSIONS.values()], 7)
    table = tables.results(rows, [found[0], embedding, found[2], embedding], [0.0] * 8, [3])
    assert table.schema == tables.RESULTS
    assert table["requests"].to_pylist() == [[3], None, None, None]
    read = list(tables.read_results(table))
    assert [result.row for result in read] == ROWS
    assert [result.outcome for result in read[::2]] == images[::2]
    assert [result[1:3] for result in read] == [(None, None), (7, 5), (None, None), (7, 2)]
    assert [result.is_rotated for result in read] == [False, False, False, True]
    for *_, outcome in read[1::2]:
        assert outcome.imagenet_class == 7
        for vector, dimension in zip(outcome.vectors, DIMENSIONS.values(), strict=True):
            assert (vector == dimension).all() and len(vector) == dimension


def test_one_embedder_per_gpu_or_node():
    assert cluster.gpu_pool(8)[:3] == (8, 0.5, 1)
    assert cluster.cpu_pool([16, 32])[:3] == (2, 13.9, 0)
    for cpus in (1, 2, 3, 4, 64):
        share = cluster.cpu_pool([cpus]).cpus
        assert share != driver.PREPARE_CPUS  # else Ray Data joins the stages
        assert share + driver.PREPARE_CPUS <= cpus


def test_workers_get_every_module_that_they_import_and_no_other_file(tmp_path):
    copy_program(tmp_path)
    copied = {path.relative_to(tmp_path) for path in tmp_path.rglob("*") if path.is_file()}
    assert copied == set(program_files())
    assert Path("engine/ray/workers.py") in copied
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
    for path in (tmp_path / "gcs.py", tmp_path / "engine" / "ray" / "tables.py"):
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
