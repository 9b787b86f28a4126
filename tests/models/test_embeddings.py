"""Both models against what the original packages computed, in any batch, order and size."""

import json
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import click
import numpy as np
import pytest
import torch

import embeddings
from bench import original
from embeddings import Embedder
from engine.decode import open_image, prepare
from models import convolutions, devices
from models.convolutions import OneDnnOperations, PlainOperations
from models.devices import DeviceError
from weights.files import WeightsError
from weights.resnet50 import read_resnet_weights

REFERENCE = Path(__file__).parents[1] / "reference"
NAMES = json.loads((REFERENCE / "expected" / "names.json").read_text())
TOLERANCE = 1e-6  # of elements of unit vectors; the contract is 1e-5


@pytest.fixture(scope="module")
def expected():
    names = ("imagenet", "imagenet_early", "clip")
    return {name: np.load(REFERENCE / "expected" / f"{name}.npy") for name in names}


@pytest.fixture(scope="module")
def photographs():
    files = [(REFERENCE / "images" / name).read_bytes() for name in NAMES]
    return [prepare(open_image(data)) for data in files]


@pytest.fixture(scope="module")
def weights(weights_dir):
    return weights_dir / "R-50.pkl", weights_dir / "clip-vit-base-patch32"


@pytest.fixture(scope="module")
def embedder(weights):
    return Embedder(*weights, device="cpu", precision="float32")


def resnet_rows(embedder, images):
    """The rows of images of any sizes, in their order, by batches of one size."""
    rows = {}
    sizes = {image.shape[:2] for image in images}
    for size in sizes:
        group = [i for i, image in enumerate(images) if image.shape[:2] == size]
        step = embedder.resnet_batch_size(*size)
        for start in range(0, len(group), step):
            batch = group[start : start + step]
            result = embedder.start_resnet([images[i] for i in batch])()
            rows.update(zip(batch, zip(*result, strict=True), strict=True))
    return [np.stack(parts) for parts in zip(*(rows[i] for i in range(len(images))), strict=True)]


@pytest.mark.parametrize(("batch_size", "reverse"), [(1, False), (4, True), (None, True)])
def test_resnet_agrees_with_detectron2(
    batch_size, reverse, embedder, photographs, expected, monkeypatch
):
    monkeypatch.setattr(embedder, "_resnet_batch_size", batch_size)
    step = -1 if reverse else 1
    imagenet, early, classes = resnet_rows(embedder, [p.pixels for p in photographs][::step])
    assert abs(imagenet - expected["imagenet"][::step]).max() < TOLERANCE
    assert abs(early - expected["imagenet_early"][::step]).max() < TOLERANCE
    assert imagenet.dtype == early.dtype == np.float32 and classes.dtype == np.int64


@pytest.mark.parametrize("batch_size", [1, 5, 12])
def test_clip_agrees_with_openai(batch_size, embedder, photographs, expected):
    inputs = [photograph.clip_input for photograph in photographs]
    parts = [
        embedder.start_clip(inputs[start : start + batch_size])()
        for start in range(0, len(inputs), batch_size)
    ]
    assert abs(np.concatenate(parts) - expected["clip"]).max() < TOLERANCE
    assert parts[0].dtype == np.float32


def test_clip_inputs_made_on_the_device_give_the_same_vectors(embedder, photographs, expected):
    for i, photograph in enumerate(photographs):
        *resnet, clip = embedder.start_both([photograph.pixels] * 2)()
        assert abs(clip - expected["clip"][i]).max() < 1e-5
        for rows, others in zip(resnet, embedder.start_resnet([photograph.pixels])(), strict=True):
            np.testing.assert_array_equal(rows[1], others[0])


def test_class_is_of_the_mean_before_scaling(embedder, photographs, weights, monkeypatch):
    """fc1000 has a bias, so a vector scaled to unit length could give another class."""
    arrays = read_resnet_weights(weights[0])
    monkeypatch.setattr(torch.nn.functional, "normalize", lambda x: x)
    for photograph in photographs[5:8]:
        rows = embedder.start_resnet([photograph.pixels])()
        logits = rows.imagenet @ arrays["fc1000_w"].T + arrays["fc1000_b"]
        assert logits.argmax() == rows.classes[0]


def test_other_backend_agrees(weights, photographs, expected):
    pytest.importorskip("transformers")
    embedder = Embedder(*weights, backend="transformers", device="cpu", precision="float32")
    rows = embedder.start_resnet([photographs[7].pixels])()
    vector = embedder.start_clip([photographs[7].clip_input])()
    assert abs(rows.imagenet[0] - expected["imagenet"][7]).max() < TOLERANCE
    assert abs(rows.imagenet_early[0] - expected["imagenet_early"][7]).max() < TOLERANCE
    assert abs(vector[0] - expected["clip"][7]).max() < TOLERANCE


def test_original_packages_agree(weights, photographs, embedder):
    pytest.importorskip("detectron2.modeling")
    pytest.importorskip("clip")
    original = Embedder(*weights, backend="original", device="cpu")
    for photograph in photographs[6:8]:
        ours, theirs = (e.start_resnet([photograph.pixels])() for e in (embedder, original))
        assert abs(ours.imagenet - theirs.imagenet).max() < TOLERANCE
        assert abs(ours.imagenet_early - theirs.imagenet_early).max() < TOLERANCE
        np.testing.assert_array_equal(ours.classes, theirs.classes)
        ours, theirs = (e.start_clip([photograph.clip_input])() for e in (embedder, original))
        assert abs(ours - theirs).max() < TOLERANCE


def test_the_original_way_of_the_benchmarks_gives_the_same_numbers(
    weights_dir, photographs, expected
):
    models = original.load(weights_dir, torch.device("cpu"))
    pixels, inputs = (torch.from_numpy(np.array(part)[None]) for part in photographs[7][:2])
    with torch.inference_mode():
        imagenet, early, *_ = models.resnet(pixels)
        clip = models.clip(inputs)
    for name, rows in (("imagenet", imagenet), ("imagenet_early", early), ("clip", clip)):
        assert abs(rows[0].numpy() - expected[name][7]).max() < TOLERANCE


def test_original_packages_missing_names_the_commands(weights, monkeypatch):
    monkeypatch.setitem(sys.modules, "clip.model", None)  # also where it is installed
    with pytest.raises(click.ClickException, match="pip install") as caught:
        Embedder(*weights, backend="original", device="cpu")
    assert "clip" in caught.value.message


needs_bfloat16 = pytest.mark.skipif(
    not getattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", bool)(),
    reason="needs a CPU with AVX-512",
)


@needs_bfloat16
def test_bfloat16_keeps_the_cosine(weights, photographs, expected):
    embedder = Embedder(*weights, device="cpu", precision="bfloat16")
    imagenet, early, _ = resnet_rows(embedder, [p.pixels for p in photographs])
    clip = embedder.start_clip([p.clip_input for p in photographs])()
    for name, rows in (("imagenet", imagenet), ("imagenet_early", early), ("clip", clip)):
        assert (rows * expected[name]).sum(1).min() >= 0.9999
        assert np.allclose((rows**2).sum(1), 1, atol=1e-6)


def test_auto_on_a_cpu_is_float32(weights):
    embedder = Embedder(*weights, device="cpu")
    assert (embedder.precision, embedder.device) == ("float32", "cpu")


@pytest.mark.parametrize(("spoilt", "chosen"), [(0.0, "bfloat16"), (0.05, "float32")])
def test_auto_leaves_a_precision_that_loses_the_cosine(spoilt, chosen, weights, monkeypatch):
    def load(arrays, clip, device, dtype):
        noise = spoilt if dtype == torch.bfloat16 else 0.0

        def vectors(pixels):
            x = torch.ones(len(pixels), 100)
            x[:, ::2] += noise
            return torch.nn.functional.normalize(x)

        return lambda pixels: (vectors(pixels), vectors(pixels), vectors(pixels)), vectors

    module = type("Backend", (), {"load": staticmethod(load)})
    monkeypatch.setattr(embeddings.importlib, "import_module", lambda name: module)
    monkeypatch.setattr(devices, "fastest_precision", lambda device: "bfloat16")
    _, precision = embeddings.load_models("fused", {}, weights[1], torch.device("cpu"), "auto")
    assert precision == chosen


def test_arrays_that_were_read_are_not_read_again(weights, monkeypatch):
    arrays = read_resnet_weights(weights[0])
    monkeypatch.setattr(embeddings, "read_resnet_weights", None)
    Embedder(*weights, device="cpu", precision="float32", resnet_arrays=arrays)


def test_threads_may_share_an_embedder(embedder, photographs, expected):
    with ThreadPoolExecutor(4) as pool:
        rows = list(pool.map(lambda p: embedder.start_resnet([p.pixels])(), photographs[4:9]))
    for i, row in enumerate(rows, start=4):
        assert abs(row.imagenet[0] - expected["imagenet"][i]).max() < TOLERANCE


@pytest.mark.parametrize("shape", [(1, 1), (1, 500), (500, 1), (17, 33), (31, 2)])
def test_tiny_images_have_vectors(shape, embedder):
    image = np.full((*shape, 3), 200, np.uint8)
    rows = embedder.start_resnet([image, image])()
    assert np.allclose((rows.imagenet**2).sum(1), 1, atol=1e-6)
    assert np.allclose((rows.imagenet_early**2).sum(1), 1, atol=1e-6)
    np.testing.assert_array_equal(rows.imagenet[0], rows.imagenet[1])


def test_read_only_pixels_are_left_alone(embedder):
    image = np.zeros((40, 50, 3), np.uint8)
    image.flags.writeable = False
    embedder.start_resnet([image])()
    embedder.start_clip([np.broadcast_to(np.uint8(3), (224, 224, 3))])()
    assert not image.any()


# The convolutions: fused where they are right, plain torch where not.


@pytest.mark.parametrize(
    "dtype", [torch.float32, pytest.param(torch.bfloat16, marks=needs_bfloat16)]
)
def test_fused_operations_work_here(dtype):
    assert convolutions.agree(OneDnnOperations(), torch.device("cpu"), dtype)


class Wrong(OneDnnOperations):
    def convolve_add_relu(self, x, convolution, residual):
        return super().convolve_relu(x, convolution)


class Missing(OneDnnOperations):
    def convolve(self, x, convolution):
        return torch.ops.mkldnn.no_such_operator(x)


class NotANumber(OneDnnOperations):
    def convolve_relu(self, x, convolution):
        return super().convolve_relu(x, convolution) * float("nan")


@pytest.mark.parametrize("operations", [Wrong, Missing, NotANumber])
def test_plain_torch_replaces_operations_that_fail(operations, monkeypatch):
    monkeypatch.setattr(convolutions, "OneDnnOperations", operations)
    chosen = convolutions.choose_operations(torch.device("cpu"), torch.float32)
    assert isinstance(chosen, PlainOperations)


def test_plain_torch_agrees_too(weights, photographs, expected, monkeypatch):
    monkeypatch.setattr(convolutions, "OneDnnOperations", Missing)
    monkeypatch.setattr("models.vision_tower.onednn_linear_agrees", lambda dtype: False)
    embedder = Embedder(*weights, device="cpu", precision="float32")
    rows = embedder.start_resnet([photographs[7].pixels])()
    assert abs(rows.imagenet[0] - expected["imagenet"][7]).max() < TOLERANCE
    vector = embedder.start_clip([photographs[7].clip_input])()
    assert abs(vector[0] - expected["clip"][7]).max() < TOLERANCE


# Devices, precision and memory.


def test_bfloat16_needs_a_cpu_that_has_it(monkeypatch):
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: False)
    with pytest.raises(DeviceError, match="bfloat16 needs a CPU with AVX-512, or a GPU"):
        devices.check_precision("bfloat16", torch.device("cpu"))
    devices.check_precision("auto", torch.device("cpu"))


@pytest.mark.parametrize(
    ("device", "said"),
    [
        ("gpu", "none of auto"),
        ("cuda:x", "none of auto"),
        ("cpu:1", "none of auto"),
        ("", "none of"),
    ],
)
def test_unknown_devices(device, said):
    with pytest.raises(DeviceError, match=said):
        devices.choose_device(device)


def test_cuda_in_a_build_without_it(monkeypatch):
    monkeypatch.setattr(torch.version, "cuda", None)
    monkeypatch.setattr(torch.version, "hip", None)
    with pytest.raises(DeviceError, match="CUDA build of torch"):
        devices.choose_device("cuda")


def test_cuda_without_a_gpu(monkeypatch):
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert devices.choose_device("auto") == torch.device("cpu")
    with pytest.raises(DeviceError, match="finds no CUDA GPU"):
        devices.choose_device("cuda:0")


def test_cuda_index_that_does_not_exist(monkeypatch):
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert devices.choose_device("auto") == torch.device("cuda:0")
    assert devices.choose_device("cuda") == torch.device("cuda:0")
    with pytest.raises(DeviceError, match="cuda:1: this machine has 1 GPU"):
        devices.choose_device("cuda:1")


@pytest.mark.parametrize(("name", "said"), [("half", "none of auto"), ("float16", "needs a GPU")])
def test_precisions_that_a_cpu_has_not(name, said):
    with pytest.raises(DeviceError, match=said):
        devices.check_precision(name, torch.device("cpu"))


def test_available_memory_honours_a_cgroup(tmp_path, monkeypatch):
    monkeypatch.setattr(devices, "CGROUP", tmp_path)
    without = devices.available_memory()
    (tmp_path / "memory.max").write_text("3000000\n")
    (tmp_path / "memory.current").write_text("2500000\n")
    (tmp_path / "memory.stat").write_text("anon 1\ninactive_file 500000\n")
    assert devices.available_memory() == 1_000_000 < without
    (tmp_path / "memory.max").write_text("max\n")
    assert devices.available_memory() > 1_000_000


def test_cores_honour_a_quota(tmp_path, monkeypatch):
    monkeypatch.setattr(devices, "CGROUP", tmp_path)
    monkeypatch.setattr(devices, "TORCH_THREADS", 64)
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: set(range(32)), raising=False)
    assert devices.cores() == 32
    (tmp_path / "cpu.max").write_text("150000 100000\n")
    assert devices.cores() == 2
    (tmp_path / "cpu.max").write_text("max 100000\n")
    assert devices.cores() == 32


def test_pixel_budget_lets_a_large_image_go_alone():
    budget = devices.PixelBudget(100)
    order = []

    def large():
        with budget.spend(500):
            order.append("large")

    with budget.spend(60):
        thread = threading.Thread(target=large)
        thread.start()
        with budget.spend(40):
            order.append("small")
    thread.join(10)
    assert order == ["small", "large"] and not thread.is_alive()


def test_batch_size_follows_memory_on_a_gpu(embedder, monkeypatch):
    monkeypatch.setattr(embedder, "_on_gpu", True)
    monkeypatch.setattr(embedder, "dtype", torch.float16)
    monkeypatch.setattr(devices, "pixels_that_fit", lambda device, dtype: 10_000_000)
    assert embedder.resnet_batch_size(480, 640) == 32
    assert embedder.resnet_batch_size(5000, 5000) == 1
    monkeypatch.setattr(embedder, "_resnet_batch_size", 8)
    assert embedder.resnet_batch_size(480, 640) == 8
    monkeypatch.setattr(devices, "pixels_that_fit", lambda device, dtype: 10**9)
    monkeypatch.setattr(embedder, "_resnet_batch_size", None)
    assert embedder.resnet_batch_size(480, 640) == devices.BATCH_PIXELS // (480 * 640)


@pytest.mark.parametrize("largest", [0, 1, 3])
def test_gpu_out_of_memory_splits_the_batch_then_takes_the_cpu(largest, weights, monkeypatch):
    embedder = Embedder(*weights, device="cpu", precision="float32")
    sizes = []

    def start_on_gpu(model, images):
        sizes.append(len(images))
        if len(images) > largest:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        arrays = tuple(tensor.numpy() for tensor in model(torch.from_numpy(np.stack(images))))
        return lambda: arrays

    images = [np.full((32, 32, 3), value, np.uint8) for value in range(0, 250, 50)]
    expected_rows = embedder.start_resnet(images)()
    monkeypatch.setattr(embedder, "_on_gpu", True)
    monkeypatch.setattr(embedder, "_device", torch.device("cuda:0"))
    monkeypatch.setattr(embedder, "_start_on_gpu", start_on_gpu)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    rows = embedder.start_resnet(images)()
    assert abs(rows.imagenet - expected_rows.imagenet).max() < TOLERANCE
    np.testing.assert_array_equal(rows.classes, expected_rows.classes)
    assert sizes[0] == 5 and (embedder._fallback is not None) == (largest == 0)


def test_other_errors_of_a_gpu_are_not_hidden(embedder, monkeypatch):
    def broken(model, images):
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(embedder, "_on_gpu", True)
    monkeypatch.setattr(embedder, "_device", torch.device("cuda:0"))
    monkeypatch.setattr(embedder, "_start_on_gpu", broken)
    with pytest.raises(RuntimeError, match="illegal"):
        embedder.start_resnet([np.zeros((8, 8, 3), np.uint8)])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_gpu_agrees(weights, photographs, expected):
    for precision, least in (("float32", 1 - 1e-6), ("auto", 0.9999)):
        embedder = Embedder(*weights, device="cuda", precision=precision)
        imagenet, early, _ = resnet_rows(embedder, [p.pixels for p in photographs])
        clip = embedder.start_clip([p.clip_input for p in photographs])()
        both = np.concatenate([embedder.start_both([p.pixels])()[3] for p in photographs])
        named = ("imagenet", imagenet), ("imagenet_early", early), ("clip", clip), ("clip", both)
        for name, rows in named:
            assert (rows * expected[name]).sum(1).min() >= least
            if precision == "float32":
                assert abs(rows - expected[name]).max() < 1e-5


def test_missing_weights_are_said_before_anything_else(weights, tmp_path):
    with pytest.raises(WeightsError, match="is missing"):
        Embedder(tmp_path / "R-50.pkl", weights[1], device="cpu")
