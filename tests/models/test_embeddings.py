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
from PIL import Image

import embeddings
from bench import original
from dataset.arrays import DIMENSIONS
from embeddings import Embedder
from engine.decode import clip_input, open_image, prepare
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
    return {name: np.load(REFERENCE / "expected" / f"{name}.npy") for name in DIMENSIONS}


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


def embed(embedder, images, clip_inputs=None):
    """{name: rows} of images of any sizes, in their order, and their classes as "classes"."""
    clip_inputs = clip_inputs or [None] * len(images)
    found = {}
    groups = {}
    for i, image in enumerate(images):
        groups.setdefault(embedder.group(*image.shape[:2]), []).append(i)
    for group in groups.values():
        step = embedder.batch_size(*images[group[0]].shape[:2])
        for start in range(0, len(group), step):
            batch = group[start : start + step]
            started = embedder.start([images[i] for i in batch], [clip_inputs[i] for i in batch])
            found.update(zip(batch, started.finish(), strict=True))
    in_order = [found[i] for i in range(len(images))]
    rows = zip(*(embedding.vectors for embedding in in_order), strict=True)
    arrays = {name: np.stack(row) for name, row in zip(DIMENSIONS, rows, strict=True)}
    return {**arrays, "classes": np.array([e.imagenet_class for e in in_order])}


def embed_photographs(embedder, photographs):
    return embed(embedder, [p.pixels for p in photographs], [p.clip_input for p in photographs])


def assert_expected(rows, expected, order=slice(None)):
    for name in DIMENSIONS:
        assert rows[name].dtype == np.float32
        assert abs(rows[name] - expected[name][order]).max() < TOLERANCE, name


@pytest.mark.parametrize(("batch_size", "reverse"), [(1, False), (5, True), (12, True)])
def test_reference_photographs(batch_size, reverse, embedder, photographs, expected, monkeypatch):
    monkeypatch.setattr(embedder, "_clip_batch_size", batch_size)
    order = slice(None, None, -1 if reverse else 1)
    assert_expected(embed_photographs(embedder, photographs[order]), expected, order)


def test_clip_inputs_made_on_the_device_give_the_same_vectors(embedder, photographs, expected):
    rows = embed(embedder, [photograph.pixels for photograph in photographs])
    assert abs(rows["clip"] - expected["clip"]).max() < 1e-5
    given = embed_photographs(embedder, photographs)
    np.testing.assert_array_equal(rows["imagenet"], given["imagenet"])


def test_class_is_of_the_mean_before_scaling(embedder, photographs, weights, monkeypatch):
    """fc1000 has a bias, so a vector scaled to unit length could give another class."""
    arrays = read_resnet_weights(weights[0])
    monkeypatch.setattr(torch.nn.functional, "normalize", lambda x: x)
    for photograph in photographs[5:8]:
        rows = embed_photographs(embedder, [photograph])
        logits = rows["imagenet"] @ arrays["fc1000_w"].T + arrays["fc1000_b"]
        assert logits.argmax() == rows["classes"][0]


def test_other_backend_agrees(weights, photographs, expected):
    pytest.importorskip("transformers")
    embedder = Embedder(*weights, backend="transformers", device="cpu", precision="float32")
    assert_expected(embed_photographs(embedder, photographs[7:8]), expected, slice(7, 8))


def test_original_packages_agree(weights, photographs, embedder):
    pytest.importorskip("detectron2.modeling")
    pytest.importorskip("clip")
    original = Embedder(*weights, backend="original", device="cpu")
    ours, theirs = (embed_photographs(e, photographs[6:8]) for e in (embedder, original))
    np.testing.assert_array_equal(ours.pop("classes"), theirs.pop("classes"))
    assert_expected(ours, theirs)


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
    found = embed_photographs(embedder, photographs)
    for name in DIMENSIONS:
        assert (found[name] * expected[name]).sum(1).min() >= 0.9999
        assert np.allclose((found[name] ** 2).sum(1), 1, atol=1e-6)


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
        rows = pool.map(lambda p: embed_photographs(embedder, [p]), photographs[4:9])
        for i, row in enumerate(rows, start=4):
            assert_expected(row, expected, slice(i, i + 1))


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
    assert_expected(embed_photographs(embedder, photographs[7:8]), expected, slice(7, 8))


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
    assert embedder.batch_size(480, 640) == 32
    assert embedder.batch_size(5000, 5000) == 1
    monkeypatch.setattr(embedder, "_resnet_batch_size", 8)
    assert embedder.batch_size(480, 640) == 8
    monkeypatch.setattr(devices, "pixels_that_fit", lambda device, dtype: 10**9)
    monkeypatch.setattr(embedder, "_resnet_batch_size", None)
    assert embedder.batch_size(480, 640) == devices.BATCH_PIXELS // (480 * 640)


class EmulatedGpu(Embedder):
    """An embedder that computes on the CPU what it would launch on a GPU of little memory."""

    def __init__(self, weights, largest):
        super().__init__(*weights, device="cpu", precision="float32")
        self.largest, self.sizes = largest, []
        self._on_gpu, self._device = True, torch.device("cuda:0")

    def _launch(self, images, clip_inputs):
        self.sizes.append(len(images))
        if len(images) > self.largest:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return self._compute_on_cpu(self._models, images, clip_inputs), None


@pytest.mark.parametrize("largest", [0, 1, 3])
def test_gpu_out_of_memory_splits_the_batch_then_takes_the_cpu(
    largest, embedder, weights, monkeypatch
):
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    images = [np.full((32, 32, 3), value, np.uint8) for value in range(0, 250, 50)]
    gpu = EmulatedGpu(weights, largest)
    monkeypatch.setattr(gpu, "batch_size", lambda height, width: 5)
    rows, exact = embed(gpu, images), embed(embedder, images)
    np.testing.assert_array_equal(rows.pop("classes"), exact.pop("classes"))
    assert_expected(rows, exact)
    assert gpu.sizes[0] == 5 and (gpu._cpu_models is not None) == (largest == 0)


def test_other_errors_of_a_gpu_are_not_hidden(embedder, monkeypatch):
    def broken(images, clip_inputs):
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(embedder, "_on_gpu", True)
    monkeypatch.setattr(embedder, "_launch", broken)
    with pytest.raises(RuntimeError, match="illegal"):
        embedder.start([np.zeros((8, 8, 3), np.uint8)], [None])


def test_overflow_in_half_precision_is_computed_again_in_float32(embedder, monkeypatch):
    """Two of three images overflow: those two are computed again, by the models in float32."""
    images = [np.full((32, 32, 3), value, np.uint8) for value in (10, 255, 20)]
    exact = embed(embedder, images)
    rows = embedder._compute_on_cpu(embedder._models, images, [None] * 3)
    rows[0][1], rows[2][2] = np.nan, np.inf
    again = []
    compute = embedder.compute_in_float32
    monkeypatch.setattr(
        embedder,
        "compute_in_float32",
        lambda *given: again.append(len(given[0])) or compute(*given),
    )
    monkeypatch.setattr(embedder, "dtype", torch.float16)
    finished = embeddings.Batch(embedder, images, [None] * 3, rows).finish()
    assert again == [1, 1]
    for i, embedding in enumerate(finished):
        for name, vector in zip(DIMENSIONS, embedding.vectors, strict=True):
            assert abs(vector - exact[name][i]).max() < TOLERANCE


def test_float32_is_never_computed_twice(embedder):
    images = [np.full((32, 32, 3), 10, np.uint8)]
    rows = embedder._compute_on_cpu(embedder._models, images, [None])
    rows[0][0] = np.nan
    (embedding,) = embeddings.Batch(embedder, images, [None], rows).finish()
    assert np.isnan(embedding.vectors[0]).all()


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


def test_missing_weights_are_said_before_anything_else(weights, tmp_path):
    with pytest.raises(WeightsError, match="is missing"):
        Embedder(tmp_path / "R-50.pkl", weights[1], device="cpu")
