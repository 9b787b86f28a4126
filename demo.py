"""The whole ingest on this machine alone: an emulated bucket, a local Forager, sample photographs.

`make demo` runs it. It prints the two commands as a person would type them, then what they left in
the bucket and on the server. It serves the page until Ctrl-C.
"""

from __future__ import annotations

from common.guard import DEMO_PACKAGES, guard

if __name__ == "__main__":
    guard(DEMO_PACKAGES, install="make demo")

import contextlib
import fcntl
import itertools
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import click

from common.errors import IngestError, WeightsError
from common.options import CONTEXT_SETTINGS, Command
from common.program import ROOT
from testing.photographs import crops, encoded
from testing.servers.guarded import guarded
from testing.servers.processes import Service, local_forager, storage_emulator
from testing.weights import seeded_clip, seeded_weights

if TYPE_CHECKING:
    from google.cloud import storage

WORK = ROOT / ".demo"
NAME, BUCKET, INDEX_BUCKET = "demo", "demo-images", "foragerml"
INGEST, INGEST_LABELS = "ingest.py", "ingest_labels.py"
PORT = 8000  # of the page, if no other program has it
RANDOM = (  # of the page, where weights are seeded
    "The weights of this demo are random numbers: similar images, the map, ImageNet classes and "
    "answers to a text search are random too."
)
DURATION = "This takes about a minute."


class Weights(NamedTuple):
    """The options for weights, with paths in ROOT: of ingest.py, and of local_forager."""

    ingest: list[str]
    server: list[str]


def choose_weights() -> Weights:
    """The real weights if they are on this machine, or else the seeded ones; prints which."""
    from weights.clip import CLIP_CACHED, CLIP_ID, check_clip_weights
    from weights.resnet50 import RESNET_DOWNLOAD

    options, server = [], []
    if (ROOT / "R-50.pkl").exists():
        click.echo("ResNet-50: the real weights, R-50.pkl.")
    else:
        options += ["--resnet_weights", _shown(seeded_weights() / "R-50.pkl")]
        click.echo(f"ResNet-50: seeded random weights; for the real ones `{RESNET_DOWNLOAD}`.")
    try:
        server += ["--clip_weights", str(check_clip_weights(CLIP_ID))]
        click.echo(f"CLIP: the real weights, {CLIP_ID}.")
    except WeightsError:
        options += ["--clip_weights", _shown(seeded_clip())]
        click.echo(f"CLIP: seeded random weights; for the real ones `{CLIP_CACHED}`.")
    if options:
        click.echo("With random weights everything works, but neighbours mean little.")
        server += ["--note", RANDOM]
    return Weights(options, [*options, *server])


@contextlib.contextmanager
def work_directory() -> Iterator[Path]:
    """An empty directory that no other demo uses while the `with` block runs; it is kept."""
    for number in itertools.count(1):
        path = WORK / str(number)
        path.mkdir(parents=True, exist_ok=True)
        with open(f"{path}.lock", "w") as lock:  # the lock is released with this process
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                continue
            shutil.rmtree(path)
            path.mkdir()
            yield path
            return


def start_server(directory: Path, port: int | None, *options: str) -> Service:
    """A local Forager of this demo, at this port; None is PORT, or a free one if that is in use.

    Raises:
        IngestError: the port is in use.
    """
    try:
        chosen = PORT if port is None else port
        log = directory / "server.log"
        return local_forager(directory / "server", log, *options, port=chosen)
    except RuntimeError as error:
        in_use = re.search("Cannot listen on .*", str(error))
        if not in_use:
            raise
        if port is not None:
            raise IngestError(in_use[0]) from error
    click.echo(f"Another program uses port {PORT}, so the page gets a free port.")
    return start_server(directory, 0, *options)


def use_this_machine_only() -> None:
    """Drop settings of the environment that lead to another bucket, or away from 127.0.0.1."""
    os.environ.pop("FORAGER_BUCKET", None)
    os.environ["no_proxy"] = os.environ["NO_PROXY"] = "127.0.0.1"
    os.environ["HF_HUB_OFFLINE"] = "1"


def _shown(path: Path) -> str:
    return os.path.relpath(path, ROOT)


def fill_bucket(client: storage.Client) -> int:
    """Upload the samples to gs://demo-images/{train,val}; returns how many there are."""
    client.create_bucket(INDEX_BUCKET)
    bucket = client.create_bucket(BUCKET)
    images = list(crops())
    for split, name, image in images:
        data = encoded(image, "PNG" if name.endswith(".png") else "JPEG")
        bucket.blob(f"{split}/{name}").upload_from_string(data)
    return len(images)


def write_labels(path: Path) -> None:
    """Write a label file with annotations in all three forms."""
    labels: dict[str, list[object]] = {}
    for split, name, image in crops():
        photograph = name.rpartition("-")[0]
        annotations: list[object] = [photograph]
        if photograph in ("cat", "astronaut"):
            annotations.append({"category": "face"})
        else:
            annotations.append({"category": "face", "value": "NEGATIVE"})
        if image.width > image.height:
            annotations.append({"category": "shape", "value": "landscape"})
        labels[f"{split}/{name}"] = annotations
    path.write_text(json.dumps(labels, indent=1) + "\n")


def run(arguments: list[str], settings: dict[str, str]) -> None:
    """Run one command in a process of its own, and print it as a person would type it."""
    shown = " ".join((*(f"{key}={value}" for key, value in settings.items()), "python"))
    click.secho(f"\n$ {shown} {shlex.join(arguments)}", bold=True)
    environment = {**os.environ, **settings}
    code = subprocess.run(
        **guarded([sys.executable, *arguments]), cwd=ROOT, env=environment
    ).returncode
    if code:
        raise SystemExit(code)


def run_commands(directory: Path, weights: Weights, emulator: str, server: str) -> None:
    """Run both commands, which keep their files in this directory."""
    settings = {"STORAGE_EMULATOR_HOST": emulator, "SERVER_URL": server}
    paths = [f"gs://{BUCKET}/train", f"gs://{BUCKET}/val"]
    work = ["--work_dir", _shown(directory / NAME)]
    run([INGEST, NAME, *paths, *weights.ingest, *work], settings)
    labels = directory / "labels.json"
    write_labels(labels)
    run([INGEST_LABELS, NAME, _shown(labels), "--user", "you@example.org"], settings)


def show_results(client: storage.Client, server_url: str) -> None:
    """Print what the commands left: the objects of the index, and what the server says."""
    info = json.load(urllib.request.urlopen(f"{server_url}/api/get_dataset_info_v2/{NAME}"))
    click.secho("\nIn the index bucket", bold=True)
    thumbnails = []  # their sizes
    for blob in client.list_blobs(INDEX_BUCKET):
        if blob.name.startswith("thumbnails/"):
            thumbnails.append(blob.size)
        else:
            click.echo(f"{blob.size:>12,}  gs://{INDEX_BUCKET}/{blob.name}")
    directory = f"gs://{INDEX_BUCKET}/thumbnails/{info['index_id']}/"
    click.echo(f"{sum(thumbnails):>12,}  {directory} ({len(thumbnails):,} thumbnails)")
    click.secho("\nOn the server", bold=True)
    click.echo(json.dumps(info))


@click.command(cls=Command, context_settings=CONTEXT_SETTINGS)
@click.option("--serve/--no-serve", default=True, help="Serve the page until Ctrl-C, or end.")
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    help=f"Port of the page.  [default: {PORT}, or a free one if that is in use]",
)
@click.option(
    "--screenshots", type=click.Path(), help="Write pictures of the page to DIR, and end."
)
@click.option("--generation", type=click.Choice(["A", "B"]), default="B", show_default=True)
def main(serve: bool, port: int | None, screenshots: str | None, generation: str) -> None:
    """Try the ingest on this machine: sample images, an emulated bucket, a local Forager."""
    click.echo(f"Both commands with sample photographs, on this machine alone. {DURATION}")
    use_this_machine_only()
    if screenshots or not serve:
        serve, port = False, port or 0
    with contextlib.ExitStack() as stack:
        directory = stack.enter_context(work_directory())
        weights = choose_weights()
        emulator = stack.enter_context(storage_emulator(directory / "emulator.log")).url
        os.environ["STORAGE_EMULATOR_HOST"] = emulator
        options = "--generation", generation, *weights.server
        server = stack.enter_context(start_server(directory, port, *options)).url
        import gcs

        client = gcs.make_client()
        click.echo(f"Uploaded {fill_bucket(client)} sample photographs to gs://{BUCKET}/.")
        run_commands(directory, weights, emulator, server)
        show_results(client, server)
        if screenshots:
            page = ["-m", "testing.browser", "page", f"{server}/{NAME}", "--out", screenshots]
            run(page, {})
        if serve:
            export = [_shown(Path(sys.executable)), "-m", "local_forager", "export"]
            choice = [_shown(directory / NAME), "--set", "diverse", "--count", "5"]
            click.secho("\nTo choose images, in another terminal:", bold=True)
            click.echo(shlex.join([*export, *choice]))
            click.secho("\nThe page is ready; Ctrl-C ends the demo. Look at", bold=True)
            click.secho(f"{server}/{NAME}", bold=True)
            with contextlib.suppress(KeyboardInterrupt):
                while True:
                    time.sleep(3600)


if __name__ == "__main__":
    main.run()
