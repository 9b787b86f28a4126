"""What an end-to-end test needs: images in a bucket, an index bucket, a server, the command."""

import asyncio
import io
import json
import pickle
import uuid
import zlib

import numpy as np
from click.testing import CliRunner
from PIL import Image

import gcs
import ingest
from common.names import GsPath
from dataset.arrays import DIMENSIONS
from engine import loading
from storage.async_client import AsyncStorage


def picture(seed, width=40, height=30, kind="JPEG"):
    """The bytes of an image file, and no two seeds give the same."""
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind)
    return file.getvalue()


def pixels_of(data):
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


def unit_vectors(pixels):
    """Random but for the pixels: three unit vectors and a class."""
    rng = np.random.default_rng(zlib.crc32(pixels.tobytes()))
    rows = [rng.standard_normal(d).astype(np.float32) for d in DIMENSIONS.values()]
    return [row / np.linalg.norm(row) for row in rows], int(rng.integers(1000))


class FastEmbedder:
    """As embeddings.Embedder, in no time; remembers the sizes of the batches it was given."""

    workers = 1
    clip_batch_size = 8
    makes_clip_inputs = False
    device, precision = "cpu", "float32"
    max_pixels = 100_000_000

    def __init__(self):
        self.batches = []

    def resnet_batch_size(self, height, width):
        return 4

    def start_resnet(self, images):
        assert len({image.shape for image in images}) == 1
        self.batches.append(len(images))
        rows = [unit_vectors(image) for image in images]
        arrays = [np.stack([vectors[i] for vectors, _ in rows]) for i in range(2)]
        return lambda: (*arrays, np.array([number for _, number in rows]))

    def start_clip(self, inputs):
        assert {image.shape for image in inputs} == {(224, 224, 3)}
        rows = np.stack([unit_vectors(image)[0][2] for image in inputs])
        return lambda: rows

    def start_both(self, images):
        rows = *self.start_resnet(images)(), np.stack([unit_vectors(i)[0][2] for i in images])
        return lambda: rows


def use_fast_models(monkeypatch, tmp_path):
    """Put FastEmbedder in the place of both models, and of the checks of their weights."""
    embedder = FastEmbedder()
    monkeypatch.setattr(loading, "load_models", lambda *_: embedder)
    reader = FoundWeights(tmp_path)
    monkeypatch.setattr("preflight.plan.WeightsReader", lambda *_: reader)
    return embedder


class FoundWeights:
    """Stands for a WeightsReader that found nothing wrong."""

    def __init__(self, clip):
        self.clip_directory, self.arrays = lambda: clip, {}

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def resnet_arrays(self):
        return self.arrays

    def digests(self):
        return "0" * 64, "0" * 64


def put(bucket, *names, data=b"data"):
    for name in names:
        gcs.make_client().bucket(bucket).blob(name).upload_from_string(data)


def listing(bucket, prefix=""):
    pages = gcs.list_objects(gcs.make_client(), GsPath(bucket, prefix))
    return sorted(listed for page in pages for listed in page)


def with_objects(function, *args):
    """What a method of AsyncStorage returns."""

    async def run():
        async with AsyncStorage(4) as objects:
            return await getattr(objects, function)(*args)

    return asyncio.run(run())


class World:
    """One image bucket, one index bucket, one server, and the command to run between them."""

    def __init__(self, bucket, index, server):
        self.bucket, self.index, self.server = bucket, index, server
        self.name = f"set-{uuid.uuid4().hex[:12]}"
        self.client = gcs.make_client()

    def put(self, *names, **contents):
        """Put objects into the image bucket, an image of its own where no content is given."""
        for name in names:
            kind = "PNG" if name.endswith(".png") else "JPEG"
            contents[name] = picture(zlib.crc32(name.encode()), kind=kind)
        for name, content in contents.items():
            self.client.bucket(self.bucket).blob(name).upload_from_string(content)
        return contents

    def arguments(self, *options, name=None, train=None, val=None):
        train = f"gs://{self.bucket}/t" if train is None else train
        val = f"gs://{self.bucket}/v" if val is None else val
        named = ["--bucket", self.index, "--server_url", self.server, "--work_dir", "work"]
        return [name or self.name, train, val, *named, *options]

    def run(self, *options, **paths):
        """The command in this process: exit_code, stdout, stderr."""
        result = CliRunner().invoke(ingest.main, self.arguments(*options, **paths))
        if result.exception and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result

    def objects(self):
        """Every object in the index bucket: name -> bytes."""
        bucket = self.client.bucket(self.index)
        names = [blob.name for blob in self.client.list_blobs(self.index)]
        return {name: bucket.blob(name).download_as_bytes() for name in names}


class Index:
    """What an ingest left in the index bucket, read as the server and the web page do."""

    def __init__(self, objects):
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
            for name, dimension in DIMENSIONS.items()
        }
        start = f"thumbnails/{self.id}/"
        self.thumbnails = {
            name.removeprefix(start): data
            for name, data in objects.items()
            if name.startswith(start)
        }
