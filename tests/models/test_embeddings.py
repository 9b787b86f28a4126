"""Both models against what the original packages computed, in any batch, order and size."""

import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from PIL import Image

import embeddings
from bench.support import original
from common.errors import IngestError
from common.precision import Precision
from dataset.arrays import DIMENSIONS
from embeddings import Embedder
from engine.decode import clip_input
from models import backends, resnet
from models.backends import Models
from models.resnet import onednn, plain
from tests.models.helpers import TOLERANCE, assert_close, embed, embed_photographs

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("batch_size", "order"),
    [(1, slice(0, None, 3)), (2, slice(1, None, 3)), (12, slice(None, None, -1))],
)
def test_reference_photographs(batch_size, order, embedder, photographs, expected, monkeypatch):
    monkeypatch.setattr(embedder, "_clip_batch_size", batch_size)
    assert_close(embed_photographs(embedder, photographs[order]), expected, order)


def test_clip_inputs_made_on_the_device_give_the_same_vectors(embedder, photographs, expected):
    some = slice(2, None, 3)
    rows = embed(embedder, [photograph.pixels for photograph in photographs[some]])
    assert_close(rows, expected, some, 1e-5)


def test_class_is_of_the_mean_before_scaling(embedder, photographs, arrays, monkeypatch):
    """fc1000 has a bias, so a vector scaled to unit length could give another class."""
    monkeypatch.setattr(torch.nn.functional, "normalize", lambda x: x)
    for photograph in photographs[6:8]:
        rows = embed_photographs(embedder, [photograph])
        logits = rows["imagenet"] @ arrays["fc1000_w"].T + arrays["fc1000_b"]
        assert logits.argmax() == rows["classes"][0]


def test_original_packages_agree(make_embedder, photographs, embedder):
    pytest.importorskip("detectron2.modeling")
    pytest.importorskip("clip")
    original = make_embedder(backend="original")
    ours, theirs = (embed_photographs(e, photographs[6:8]) for e in (embedder, original))
    np.testing.assert_array_equal(ours.pop("classes"), theirs.pop("classes"))
    assert_close(ours, theirs)


@pytest.mark.soak
def test_transformers_modules_agree(weights_dir, arrays, photographs, expected):
    """Which stand in the benchmarks for the original packages."""
    clip = weights_dir / "clip-vit-base-patch32" / "model.safetensors"
    models = original.transformers_models(arrays, clip, CPU)
    given = photographs[7].pixels, photographs[7].clip_input
    pixels, inputs = (torch.from_numpy(np.array(part)[None]) for part in given)
    with torch.inference_mode():
        imagenet, early, *_ = models.resnet(pixels)
        clip = models.clip(inputs)
    for name, rows in (("imagenet", imagenet), ("imagenet_early", early), ("clip", clip)):
        assert abs(rows[0].numpy() - expected[name][7]).max() < TOLERANCE


def test_original_packages_missing_names_the_commands(make_embedder, monkeypatch):
    monkeypatch.setitem(sys.modules, "clip.model", None)  # also where it is installed
    with pytest.raises(IngestError, match="pip install") as caught:
        make_embedder(backend="original")
    assert "clip" in caught.value.message


needs_bfloat16 = pytest.mark.skipif(
    not getattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", bool)(),
    reason="needs a CPU with AVX-512",
)


@needs_bfloat16
def test_bfloat16_keeps_the_cosine(make_embedder, photographs, expected):
    embedder = make_embedder(precision="bfloat16")
    some = slice(None, None, 2)
    found = embed_photographs(embedder, photographs[some])
    for name in DIMENSIONS:
        assert (found[name] * expected[name][some]).sum(1).min() >= 0.9999
        assert np.allclose((found[name] ** 2).sum(1), 1, atol=1e-6)


@pytest.mark.parametrize(("spoilt", "chosen"), [(0.0, "bfloat16"), (0.05, "float32")])
def test_auto_leaves_a_precision_that_loses_the_cosine(spoilt, chosen, weights, monkeypatch):
    def load(arrays, clip, device, dtype):
        noise = spoilt if dtype == torch.bfloat16 else 0.0

        def vectors(pixels):
            x = torch.ones(len(pixels), 100)
            x[:, ::2] += noise
            return torch.nn.functional.normalize(x)

        def resnet(pixels, sizes=None):
            return vectors(pixels), vectors(pixels), vectors(pixels)

        return Models(resnet=resnet, clip=vectors, largest_activation=lambda pixels: 1.0)

    monkeypatch.setitem(backends.BACKENDS, "fused", load)
    monkeypatch.setattr(embeddings, "fastest_precision", lambda on_gpu: Precision.BFLOAT16)
    loaded = embeddings.load_models("fused", {}, weights[1], CPU, None)
    assert loaded.precision == chosen
    assert (loaded.reason is None) is (chosen == "bfloat16")


def test_auto_leaves_a_precision_whose_range_a_layer_comes_near(weights, arrays, monkeypatch):
    """Weights of res3 are so large that one layer overflows in float16, and ReLU hides the NaN."""
    large = arrays | {"res3_1_branch2b_w": arrays["res3_1_branch2b_w"] * 1e5}
    monkeypatch.setattr(embeddings, "fastest_precision", lambda on_gpu: Precision.FLOAT16)
    with torch.inference_mode():
        loaded = embeddings.load_models("fused", large, weights[1], CPU, None)
    assert loaded.precision == "float32"
    assert "float16 was not chosen: with these weights a layer reaches" in loaded.reason


def test_auto_on_a_cpu_is_float32_and_arrays_that_were_read_are_not_read_again(
    make_embedder, monkeypatch
):
    monkeypatch.setattr(embeddings, "read_resnet_weights", None)
    embedder = make_embedder(precision="auto")
    assert (embedder.precision, embedder.device) == ("float32", "cpu")


def test_threads_may_share_an_embedder(embedder, photographs, expected):
    with ThreadPoolExecutor(4) as pool:
        rows = pool.map(lambda p: embed_photographs(embedder, [p]), photographs[4:9])
        for i, row in enumerate(rows, start=4):
            assert_close(row, expected, slice(i, i + 1))


@pytest.mark.parametrize("shape", [(1, 1), (1, 500), (500, 1), (17, 33), (31, 2)])
def test_tiny_images_have_vectors(shape, embedder):
    image = np.full((*shape, 3), 200, np.uint8)
    rows = embed(embedder, [image, image], [clip_input(Image.fromarray(image))] * 2)
    for name in DIMENSIONS:
        assert np.allclose((rows[name] ** 2).sum(1), 1, atol=1e-6)
    np.testing.assert_array_equal(rows["imagenet"][0], rows["imagenet"][1])


def test_read_only_pixels_are_left_alone(embedder):
    image = np.zeros((40, 50, 3), np.uint8)
    image.flags.writeable = False
    embed(embedder, [image], [np.broadcast_to(np.uint8(3), (224, 224, 3))])
    assert not image.any()


# The convolutions: fused where they are right, plain torch where not.


def built(arrays, dtype, operator):
    """ResNet-50 computed by an operator, and the kinds for which it was refused."""
    with torch.inference_mode():
        return resnet.with_operator(resnet.build_resnet(arrays, CPU, dtype), operator)


@pytest.mark.parametrize(
    "dtype", [torch.float32, pytest.param(torch.bfloat16, marks=needs_bfloat16)]
)
def test_the_fused_operator_works_here_for_every_kind_of_convolution(dtype, arrays):
    model, refused = built(arrays, dtype, onednn)
    assert not refused and model.stem.compute is onednn


def wrong(convolution, x, residual):
    return onednn(convolution, x, None)


def missing(convolution, x, residual):
    if residual is not None:
        return torch.ops.mkldnn.no_such_operator(x)
    return onednn(convolution, x, residual)


def not_a_number(convolution, x, residual):
    return onednn(convolution, x, residual) * (1 if residual is None else float("nan"))


def without_stem(convolution, x, residual):
    if x.shape[1] == 3:
        raise RuntimeError("unable to find an engine to execute this computation")
    return onednn(convolution, x, residual)


@pytest.mark.parametrize("operator", [wrong, missing, not_a_number])
def test_plain_torch_replaces_the_kinds_that_fail(operator, arrays, photographs, expected):
    model, refused = built(arrays, torch.float32, operator)
    with torch.inference_mode():
        imagenet, *_ = resnet.resnet_features(model, torch.tensor(photographs[7].pixels)[None])
    block = model.stages[0][0]
    assert (block.expand.compute, block.reduce.compute) == (plain, operator)
    assert refused[0] == "1x1/1 of 64 to 256 channels and an addition" and len(refused) == 4
    assert abs(imagenet[0].numpy() - expected["imagenet"][7]).max() < TOLERANCE


def test_kinds_that_fail_are_named(make_embedder, monkeypatch):
    monkeypatch.setattr(resnet, "onednn", without_stem)
    assert make_embedder().remarks == [
        "Convolutions that the fused operators here cannot compute: 7x7/2 of 3 to 64 channels."
    ]


def test_plain_torch_agrees_too(make_embedder, photographs, expected, monkeypatch):
    monkeypatch.setattr(resnet, "onednn", plain)
    monkeypatch.setattr("models.clip.onednn_linear_agrees", lambda dtype: False)
    assert_close(embed_photographs(make_embedder(), photographs[7:8]), expected, slice(7, 8))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_gpu_agrees(weights, photographs, expected):
    for precision, least in (("float32", 1 - 1e-6), ("auto", 0.9999)):
        embedder = Embedder(*weights, device="cuda", precision=precision)
        given = embed_photographs(embedder, photographs)
        made = embed(embedder, [photograph.pixels for photograph in photographs])
        named = *((name, given[name]) for name in DIMENSIONS), ("clip", made["clip"])
        for name, rows in named:
            assert (rows * expected[name]).sum(1).min() >= least
            if precision == "float32":
                assert abs(rows - expected[name]).max() < 1e-5
