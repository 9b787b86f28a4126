"""Made-up datasets in the real formats, for the benchmarks and the tests of the page."""

import colorsys
import hashlib
import io
import json
import os
import pickle
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

import numpy as np
import pyarrow as pa
from google.cloud import storage
from PIL import Image, ImageDraw
from pyarrow import parquet

from common.names import identifier
from dataset import manifest
from dataset.arrays import DIMENSIONS
from testing.photographs import encoded

CLUSTERS = 12  # kinds of images
SPREAD = 0.6  # distance of an image from the centre of its kind, as a share of the vector
CHUNK_ROWS = 10_000
EMBEDDING_CHUNK_ROWS = 50_000
KINDS, GROUPS, LATENTS = 2_000, 40, 32  # of embeddings
SIDES = (480, 640, 1024)  # pixels that half of the made-up images of write_copy have on each side


def kind_of(rows: np.ndarray) -> np.ndarray:
    """The kind of each row, int64 (n,): well mixed, and the same in every run."""
    return rows.astype(np.int64) * 2_654_435_761 % 2**32 * CLUSTERS >> 32


def vectors(rows: int, dimensions: int, seed: int = 0) -> Iterator[np.ndarray]:
    """Unit vectors around the centres of their kinds, float32, in chunks of up to CHUNK_ROWS."""
    rng = np.random.default_rng((seed, dimensions))
    centres = rng.standard_normal((CLUSTERS, dimensions), dtype=np.float32)
    centres /= np.linalg.norm(centres, axis=1, keepdims=True)
    for start in range(0, rows, CHUNK_ROWS):
        kinds = kind_of(np.arange(start, min(start + CHUNK_ROWS, rows)))
        noise = rng.standard_normal((len(kinds), dimensions), dtype=np.float32)
        noise *= SPREAD / np.sqrt(dimensions)
        chunk = centres[kinds] + noise
        yield chunk / np.linalg.norm(chunk, axis=1, keepdims=True)


def embeddings(rows: int, dimensions: int = 512, seed: int = 0) -> Iterator[np.ndarray]:
    """Unit vectors that are distributed as those of photographs, float32, in chunks.

    KINDS of unequal frequency in GROUPS share a common direction. Within its kind an image varies
    in LATENTS directions, of decreasing variance; four of ten images are between two kinds. One of
    a hundred is a near duplicate of another. The median cosine distance of two images is 0.5, to
    the nearest one some 0.1.
    """
    rng = np.random.default_rng((seed, dimensions))

    def directions(count: int) -> np.ndarray:
        found = rng.standard_normal((count, dimensions), dtype=np.float32)
        return found / np.linalg.norm(found, axis=1, keepdims=True)

    centres = 0.7 * directions(1) + 0.5 * directions(GROUPS)[rng.integers(0, GROUPS, KINDS)]
    centres += 0.35 * directions(KINDS)
    spectrum = (1 + np.arange(LATENTS, dtype=np.float32)) ** -0.5
    spectrum *= 0.5 / np.linalg.norm(spectrum)
    bases = [directions(LATENTS) * spectrum[:, None] for _ in range(KINDS)]
    frequency = (1 + np.arange(KINDS)) ** -0.7
    for start in range(0, rows, EMBEDDING_CHUNK_ROWS):
        count = min(EMBEDDING_CHUNK_ROWS, rows - start)
        kinds, others = rng.choice(KINDS, (2, count), p=frequency / frequency.sum())
        own = np.where(rng.random(count) < 0.6, 1, rng.uniform(0.5, 1, count))
        own = own.astype(np.float32)[:, None]
        chunk = own * centres[kinds] + (1 - own) * centres[others]
        chunk += rng.standard_normal((count, dimensions), np.float32) * (0.15 / dimensions**0.5)
        for kind in np.unique(kinds):
            of_kind = np.flatnonzero(kinds == kind)
            chunk[of_kind] += rng.standard_normal((len(of_kind), LATENTS), np.float32) @ bases[kind]
        copies, originals = rng.choice(count, (2, count // 100), replace=False)
        noise = rng.standard_normal((len(copies), dimensions), np.float32)
        chunk[copies] = chunk[originals] + noise * (0.1 / dimensions**0.5)
        yield chunk / np.linalg.norm(chunk, axis=1, keepdims=True)


def landscape(row: int, width: int = 200, height: int = 150) -> bytes:
    """A JPEG of a made-up landscape; images of one kind share their colours."""
    kind = int(kind_of(np.array([row]))[0])
    rng = np.random.default_rng(row)
    hue = kind / CLUSTERS + float(rng.uniform(-0.02, 0.02))

    def color(turn: float, saturation: float, value: float) -> tuple[int, int, int]:
        red, green, blue = colorsys.hsv_to_rgb((hue + turn) % 1, saturation, value)
        return int(255 * red), int(255 * green), int(255 * blue)

    image = Image.new("RGB", (width, height), color(0, 0.18, 0.95))
    draw = ImageDraw.Draw(image)
    x, y = rng.uniform(0.15, 0.85) * width, rng.uniform(0.1, 0.45) * height
    size = rng.uniform(0.06, 0.13) * height
    draw.ellipse((x - size, y - size, x + size, y + size), fill=color(0.08, 0.35, 1.0))
    for layer in range(3):
        base = height * (0.45 + 0.18 * layer)
        heights = base + np.cumsum(rng.uniform(-1, 1, 9)) * height * 0.05
        points = [(width * i / 8, float(y)) for i, y in enumerate(heights)]
        draw.polygon(
            [(0, height), *points, (width, height)],
            fill=color(0, 0.3 + 0.2 * layer, 0.8 - 0.22 * layer),
        )
    return encoded(image, quality=80)


def lists(names: list[str], num_train: int) -> dict[str, object]:
    """labels.json, identifiers.json and val_identifiers.json for these object names."""
    rows = {identifier(name): row for row, name in enumerate(names)}
    return {
        "labels.json": names,
        "identifiers.json": {key: row for key, row in rows.items() if row < num_train},
        "val_identifiers.json": {key: row for key, row in rows.items() if row >= num_train},
    }


def manifest_of(
    names: list[str],
    sizes: list[tuple[int, int | None, int | None]],
    measured: Mapping[str, Sequence[float | None]] = MappingProxyType({}),
) -> bytes:
    """The columns of a manifest that the page reads. sizes: bytes, width and height per image.

    measured: columns with the quality of the images.
    """
    table = pa.table(
        {"object": names}
        | {name: [size[i] for size in sizes] for i, name in enumerate(("size", "width", "height"))}
    )
    for name, values in measured.items():
        table = table.append_column(name, pa.array(values, pa.float32()))
    assert set(table.column_names) <= set(manifest.schema({}).names)
    file = io.BytesIO()
    parquet.write_table(table, file, write_page_checksum=True)
    return file.getvalue()


def made_up_sizes(rows: int) -> list[tuple[int, int | None, int | None]]:
    """Bytes, width and height as collections of photographs have them."""
    rng = np.random.default_rng(0)
    sides = rng.choice(SIDES, (rows, 2)) * np.where(
        rng.random((rows, 1)) < 0.5, 1, rng.uniform(0.5, 1.5, (rows, 2))
    )
    bytes_ = sides.prod(axis=1) * rng.lognormal(-1.6, 0.4, rows)
    return [(int(b), int(w), int(h)) for b, (w, h) in zip(bytes_, sides, strict=True)]


def write_copy(data_dir: Path, index_id: str, names: list[str], num_train: int) -> None:
    """A complete index as local_forager stores it, without a bucket: 14 kB per image."""
    directory = data_dir / "indexes" / index_id
    directory.mkdir(parents=True, exist_ok=True)
    for name, content in lists(names, num_train).items():
        (directory / name).write_text(json.dumps(content))
    for name, dimensions in DIMENSIONS.items():
        with (directory / f"{name}.f32").open("wb") as file:
            for chunk in vectors(len(names), dimensions):
                chunk.tofile(file)
    classes = (kind_of(np.arange(len(names))) * 80).tolist()
    by_name = {os.path.basename(name): number for name, number in zip(names, classes, strict=True)}
    (directory / "imagenet.pickle").write_bytes(pickle.dumps(by_name))
    (directory / manifest.NAME).write_bytes(manifest_of(names, made_up_sizes(len(names))))
    (directory / "complete").touch()


def publish(
    client: storage.Client,
    image_bucket: str,
    index_bucket: str,
    index_id: str,
    names: list[str],
    num_train: int,
    failed: Collection[int] = (),
    same: Mapping[int, int] = MappingProxyType({}),
    shapes: Mapping[int, tuple[int, int]] = MappingProxyType({}),
    with_manifest: bool = True,
    measured: Mapping[str, Sequence[float | None]] = MappingProxyType({}),
) -> None:
    """Put images and a complete index into buckets.

    Args:
        failed: rows without vectors and without thumbnail.
        same: rows that get the image and the vectors of another row.
        shapes: rows whose images have this width and height instead of 200 and 150.
        measured: columns of the manifest with the quality of the images.
    """
    images, index = client.bucket(image_bucket), client.bucket(index_bucket)
    sizes: list[tuple[int, int | None, int | None]] = []
    for row, name in enumerate(names):
        width, height = shapes.get(row, (200, 150))
        data = landscape(same.get(row, row), width, height)
        sizes.append((0, None, None) if row in failed else (len(data), width, height))
        images.blob(name).upload_from_string(b"" if row in failed else data, "image/jpeg")
        if row not in failed:
            thumbnail = f"thumbnails/{index_id}/{identifier(name)}.jpg"
            index.blob(thumbnail).upload_from_string(data, "image/jpeg")
    for name, content in lists(names, num_train).items():
        index.blob(f"indexes/{index_id}/{name}").upload_from_string(json.dumps(content))
    if with_manifest:
        blob = index.blob(f"indexes/{index_id}/{manifest.NAME}")
        blob.upload_from_string(manifest_of(names, sizes, measured))
    for name, dimensions in DIMENSIONS.items():
        rows = np.concatenate([np.zeros((0, dimensions), "<f4"), *vectors(len(names), dimensions)])
        for row, other in same.items():
            rows[row] = rows[other]
        rows[list(failed)] = 0
        path = f"indexes/{index_id}/local/{name}/embeddings.npy"
        index.blob(path).upload_from_string(rows.astype("<f4").tobytes())
    classes = kind_of(np.arange(len(names))) * 80
    by_name = {
        os.path.basename(name): int(classes[same.get(row, row)])
        for row, name in enumerate(names)
        if row not in failed
    }
    index.blob(f"aux_labels/{index_id}/imagenet.pickle").upload_from_string(pickle.dumps(by_name))


def write_thumbnails(data_dir: Path, index_id: str, names: list[str], different: int = 240) -> None:
    """Thumbnails as local_forager stores them: `different` images, linked for all the rows."""
    pictures: dict[int, Path] = {}
    by_kind: dict[int, list[int]] = {}
    for row in range(different):
        by_kind.setdefault(int(kind_of(np.array([row]))[0]), []).append(row)
    kinds = kind_of(np.arange(len(names)))
    for row, name in enumerate(names):
        choices = by_kind[int(kinds[row])]
        shown = choices[row % len(choices)]
        text = f"{index_id}\0{identifier(name)}".encode()
        digest = hashlib.sha256(text).hexdigest()
        path = data_dir / "thumbnails" / digest[:2] / f"{digest}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        if shown not in pictures:
            path.write_bytes(landscape(shown))
            pictures[shown] = path
        elif not path.exists():
            os.link(pictures[shown], path)
