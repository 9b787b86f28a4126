"""R-50.pkl in its published variants, CLIP as safetensors, and what is said of others."""

import hashlib
import json
import os
import pickle
import re
import subprocess
import sys

import numpy as np
import pytest

from common.errors import WeightsError
from common.program import ROOT
from tests.harness import refusing
from weights import clip, resnet50
from weights.clip import check_clip_weights
from weights.resnet50 import read_resnet_weights

CURL = "curl -LO https://dl.fbaipublicfiles.com/detectron2/ImageNetPretrained/MSRA/R-50.pkl"


@pytest.fixture(scope="module")
def arrays(weights_dir):
    return read_resnet_weights(weights_dir / "R-50.pkl")


@pytest.fixture
def read_blobs(monkeypatch, tmp_path):
    """Reads blobs as if R-50.pkl held them, without writing 100 MB."""

    def read(content):
        path = tmp_path / "R-50.pkl"
        path.touch()
        monkeypatch.setattr(resnet50, "read_pickle", lambda path: content)
        return read_resnet_weights(path)

    return read


def refusal(read, content):
    with pytest.raises(WeightsError) as caught:
        read(content)
    message = caught.value.message
    assert CURL in message and "\n" not in message
    return message


def test_reads_the_published_layout(arrays, weights_dir):
    with open(weights_dir / "R-50.pkl", "rb") as file:
        content = pickle.load(file)
    assert set(content) - set(arrays) == {"conv1_b"}
    for name, array in arrays.items():
        np.testing.assert_array_equal(array, content[name])
        assert array.dtype == np.float32


@pytest.mark.parametrize("wrapper", ["model", "blobs"])
def test_reads_nested_copies_with_momenta(wrapper, arrays, read_blobs):
    momenta = {name + "_momentum": np.zeros(1) for name in arrays}
    result = read_blobs({wrapper: {**arrays, **momenta}, "__author__": "x"})
    assert list(result) == list(arrays)


def test_reads_scale_and_shift_for_batch_norm(arrays, read_blobs):
    """bn_s and bn_b have no statistics: mean 0 and variance 1 - eps make scale and shift exact."""
    blobs = {}
    for name, array in arrays.items():
        if not re.search("_bn_running_", name):
            short = name.replace("_bn_gamma", "_bn_s").replace("_bn_beta", "_bn_b")
            blobs[short.replace("fc1000_", "pred_")] = array
    result = read_blobs(blobs)
    np.testing.assert_array_equal(result["res2_0_branch2a_bn_gamma"], blobs["res2_0_branch2a_bn_s"])
    np.testing.assert_array_equal(result["fc1000_w"], blobs["pred_w"])
    assert (result["res_conv1_bn_running_mean"] == 0).all()
    assert np.allclose(result["res_conv1_bn_running_var"] + np.float32(1e-5), 1, rtol=0, atol=1e-7)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"res3_1_branch2b_w": None}, "has no array res3_1_branch2b_w"),
        ({"conv1_w": np.zeros((64, 3, 3, 3), np.float32)}, "of shape (64, 3, 3, 3) instead"),
        ({"fc1000_b": np.zeros(1000, np.int64)}, "fc1000_b as int64"),
        ({"fc1000_b": np.full(1000, np.nan)}, "NaN or infinity in fc1000_b"),
        ({"fc1000_b": np.full(1000, -np.inf)}, "NaN or infinity in fc1000_b"),
        ({"res_conv1_bn_running_var": np.full(64, -1.0)}, "negative variance"),
        ({"fc1000_w": "text"}, "has no array fc1000_w"),
    ],
)
def test_refuses_what_is_not_resnet50(change, said, arrays, read_blobs):
    assert said in refusal(read_blobs, {**arrays, **change})


@pytest.mark.parametrize("content", [[], None, {}, {"model": []}, {1: 2}, np.zeros(3)])
def test_refuses_other_content(content, read_blobs):
    refusal(read_blobs, content)


@pytest.mark.parametrize("content", [b"", b"<html>", b"\x80\x02cos\nsystem\n."])
def test_refuses_other_files(content, tmp_path):
    path = tmp_path / "R-50.pkl"
    path.write_bytes(content)
    assert str(path) in refusal(read_resnet_weights, path)


def test_missing_file_names_the_download(tmp_path):
    for path, words in (
        (tmp_path / "R-50.pkl", "R-50.pkl is missing: get it with `curl"),
        (tmp_path, "is a directory, not R-50.pkl: CLIP's directory goes to --clip_weights;"),
        (tmp_path / "model.safetensors", "is a safetensors file, not R-50.pkl: CLIP's directory"),
    ):
        assert words in refusal(read_resnet_weights, path)


def test_a_file_in_the_place_of_clips_directory(clip_copy):
    for name, words in (
        ("model.safetensors", f"is a file, not a directory: name its directory, {clip_copy}."),
        ("R-50.pkl", "a .pkl file goes to --resnet_weights; get the directory with `hf download"),
    ):
        (clip_copy / "R-50.pkl").touch()
        with pytest.raises(WeightsError, match=re.escape(words)):
            clip.check_clip_weights(str(clip_copy / name))


@pytest.fixture
def clip_copy(weights_dir, tmp_path):
    """A directory in the hub's layout whose files can be changed; the tensors are a link."""
    original = weights_dir / "clip-vit-base-patch32"
    (tmp_path / "model.safetensors").symlink_to(original / "model.safetensors")
    (tmp_path / "config.json").write_text((original / "config.json").read_text())
    return tmp_path


def clip_refusal(directory):
    with pytest.raises(WeightsError) as caught:
        check_clip_weights(str(directory))
    assert "\n" not in caught.value.message
    return caught.value.message


def write_tensors(directory, data, size):
    """Another model.safetensors: `data`, then a hole up to this size."""
    path = directory / "model.safetensors"
    path.unlink()
    path.write_bytes(data)
    os.truncate(path, size)


def tensors(changes=None, dtype="F32"):
    """The header of a model.safetensors in which some tensors have other shapes; its whole size."""
    header, end = {"__metadata__": {"format": "pt"}}, 0
    for name, shape in {**clip.clip_shapes(), **(changes or {})}.items():
        if shape is not None:
            start, end = end, end + int(np.prod(shape)) * (2 if dtype in ("F16", "BF16") else 4)
            header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text, 8 + len(text) + end


@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16"])
def test_full_clip_model_is_accepted(dtype, clip_copy):
    """The published file: text tower, buffers and metadata beside the image tower."""
    text = {
        "text_model.embeddings.token_embedding.weight": (49408, 512),
        "text_projection.weight": (512, 512),
        "vision_model.embeddings.position_ids": (1, 50),
        "logit_scale": (),
    }
    write_tensors(clip_copy, *tensors(text, dtype))
    config = {"vision_config": {"hidden_act": "quick_gelu"}, "text_config": {}}
    (clip_copy / "config.json").write_text(json.dumps(config))
    assert check_clip_weights(str(clip_copy)) == clip_copy


@pytest.mark.parametrize(
    ("changes", "dtype", "said"),
    [
        ({"visual_projection.weight": None}, "F32", "has no tensor visual_projection.weight"),
        ({"visual_projection.weight": (768, 768)}, "F32", "[768, 768] instead of (512, 768)"),
        ({"vision_model.embeddings.position_embedding.weight": (197, 768)}, "F32", "(50, 768)"),
        ({}, "I32", "as I32 instead of F32"),
    ],
)
def test_other_clip_models_are_refused(changes, dtype, said, clip_copy):
    write_tensors(clip_copy, *tensors(changes, dtype))
    assert said in clip_refusal(clip_copy)


NESTED = b"[" * 100_000
DAMAGED = (
    *(b"", b"\x01", b"\xff" * 8 + b"{}", b"\x02" + b"\0" * 7 + b"[]"),
    len(NESTED).to_bytes(8, "little") + NESTED,
)


@pytest.mark.parametrize(
    ("data", "size"), [(tensors()[0], 1_000_000), *((data, len(data)) for data in DAMAGED)]
)
def test_damaged_safetensors_are_refused(data, size, clip_copy):
    write_tensors(clip_copy, data, size)
    assert "is not a safetensors file, or is damaged (" in clip_refusal(clip_copy)


def test_pickled_clip_is_refused_with_the_reason(clip_copy):
    (clip_copy / "model.safetensors").rename(clip_copy / "pytorch_model.bin")
    assert "a pickle that could run code" in clip_refusal(clip_copy)


@pytest.mark.parametrize(
    ("config", "said"),
    [
        (None, "has no config.json"),
        *((damaged, "is not a CLIP config") for damaged in ("", "[]", "{", '{"vision_config": 1}')),
        # LAION's ViT-B/32 has the same shapes and another activation and text encoder.
        ('{"hidden_act": "gelu"}', "'gelu'"),
    ],
)
def test_other_configurations_are_refused(config, said, clip_copy):
    (clip_copy / "config.json").unlink()
    if config is not None:
        (clip_copy / "config.json").write_text(config)
    assert said in clip_refusal(clip_copy)


@pytest.mark.parametrize("name", ["./missing", "/missing/clip", "missing", "a/b/c", "~/missing"])
def test_missing_directory(name):
    assert clip_refusal(name).startswith(f"The directory of CLIP weights {name!r}")


def run(script, **options):
    command = [sys.executable, "-c", script]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, **options)


HUB_SCRIPT = """
from common.errors import WeightsError
from weights import clip
try:
    print(clip.check_clip_weights("openai/clip-vit-base-patch32"))
except WeightsError as error:
    print(error.message)
"""


def hub_run(tmp_path, script=HUB_SCRIPT, **environment):
    with refusing() as hub:
        environment = {"HF_ENDPOINT": hub, "HF_HOME": str(tmp_path), "PATH": "", **environment}
        return run(script, env=environment)


@pytest.mark.parametrize("offline", ["0", "1"])
def test_unreachable_hub_says_what_to_do(offline, tmp_path):
    result = hub_run(tmp_path, HF_HUB_OFFLINE=offline)
    assert result.stdout.startswith("The hub cannot be reached for the CLIP weights"), result.stderr
    assert "--clip_weights" in result.stdout and result.stdout.count("\n") == 1


def test_another_model_cannot_take_the_place_of_clip(tmp_path):
    script = HUB_SCRIPT.replace("patch32", "patch16")
    result = hub_run(tmp_path, script, HF_HUB_OFFLINE="1")
    assert "leave out --clip_weights for openai/clip-vit-base-patch32, the only" in result.stdout


@pytest.mark.parametrize("revision", ["main", "refs/pr/15"])
def test_hub_cache_is_used_without_the_hub(revision, tmp_path, weights_dir):
    commit = "0" * 40
    repository = tmp_path / "hub" / "models--openai--clip-vit-base-patch32"
    snapshot = repository / "snapshots" / commit
    snapshot.mkdir(parents=True)
    for file in clip.CLIP_FILES:
        (snapshot / file).symlink_to(weights_dir / "clip-vit-base-patch32" / file)
    reference = repository / "refs" / revision
    reference.parent.mkdir(parents=True)
    reference.write_text(commit)
    result = hub_run(tmp_path)
    assert result.stdout.strip() == str(snapshot), result.stderr


def test_digest_of_file_and_directory(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"abc")
    expected = hashlib.sha256(b"abc").hexdigest()
    assert clip.digest(tmp_path) == clip.digest(tmp_path / "model.safetensors") == expected


def test_needs_no_torch():
    modules = "weights.resnet50, weights.clip"
    assert run(f"import sys, {modules}; assert 'torch' not in sys.modules").returncode == 0
