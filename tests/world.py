"""What an end-to-end test needs: images in a bucket, an index bucket, a server, the command."""

import asyncio
import io
import json
import pickle
import uuid
import zlib
from functools import partial

import numpy as np
from click.testing import CliRunner
from PIL import Image

import gcs
import ingest
from common.names import GsPath
from dataset.arrays import DIMENSIONS
from storage.async_client import AsyncStorage
from storage.listing import listed
from testing.embedders import LoaderWithoutModels
from testing.photographs import picture


def pixels_of(data):
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


def put(bucket, *names, data=b"data"):
    for name in names:
        gcs.make_client().bucket(bucket).blob(name).upload_from_string(data)


def listing(bucket, prefix=""):
    return sorted(found for page in listed(GsPath(bucket, prefix)) for found in page)


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
        self.embedder = None  # the real models

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
        return self.invoke(self.arguments(*options, **paths))

    def invoke(self, arguments):
        loader = self.embedder and partial(LoaderWithoutModels, embedder=self.embedder)
        result = CliRunner().invoke(ingest.main, arguments, obj=loader)
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
