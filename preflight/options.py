"""The options of ingest.py, and which of them go together."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from common.options import BatchSizeType, LimitType, TrialType, default_decode_workers
from common.program import ROOT
from preflight.request import Request

RESNET_WEIGHTS = ROOT / "R-50.pkl"
CLIP_WEIGHTS = "openai/clip-vit-base-patch32"
OPTION_GROUPS = {
    "Usual options": (
        *("server_url", "dry_run", "write_renames", "work_dir", "bucket", "viewer_url", "reuse"),
        *("trial", "prices", "as_json"),
    ),
    "Failures and going on": (
        *("skip_bad_images", "max_bad", "allow_empty_val"),
        *("relist", "as_listed", "restart"),
    ),
    "Models": ("resnet_weights", "clip_weights", "backend", "precision"),
    "Speed": ("device", "resnet_batch_size", "clip_batch_size", "decode_workers", "decode_in"),
    "Several GPUs or machines": ("engine", "ray_address"),
}
OPTIONS = (
    click.option(
        "--resnet_batch_size",
        type=BatchSizeType(),
        default="auto",
        metavar="N",
        show_default=True,
        help="Images per ResNet forward pass, at most; their sizes may differ. The numbers never "
        "depend on it.",
    ),
    click.option(
        "--clip_batch_size",
        type=BatchSizeType(),
        default="auto",
        metavar="N",
        show_default=True,
        help="Images per CLIP forward pass, at most. The numbers never depend on it.",
    ),
    click.option(
        "--resnet_weights",
        type=click.Path(path_type=Path),
        default=RESNET_WEIGHTS,
        metavar="FILE",
        help="Detectron2's R-50.pkl.  [default: R-50.pkl beside ingest.py]",
    ),
    click.option(
        "--clip_weights",
        default=CLIP_WEIGHTS,
        show_default=True,
        metavar="ID_OR_DIR",
        help="CLIP ViT-B/32: a hub id, or a local directory in the hub's layout.",
    ),
    click.option(
        "--backend",
        type=click.Choice(["fused", "transformers", "original"]),
        default="fused",
        show_default=True,
        help="Model implementation: built-in, transformers, or Detectron2 and CLIP.",
    ),
    click.option(
        "--device",
        default="auto",
        show_default=True,
        metavar="DEVICE",
        help="auto, cuda, cuda:1 or cpu.",
    ),
    click.option(
        "--precision",
        type=click.Choice(["auto", "float32", "float16", "bfloat16"]),
        default="auto",
        show_default=True,
        help="Precision of the models. auto stays within cosine 0.9999 of float32.",
    ),
    click.option(
        "--work_dir",
        type=click.Path(path_type=Path, file_okay=False),
        metavar="DIR",
        help="Directory for embeddings and resume state.  [default: a directory named NAME]",
    ),
    click.option(
        "--decode_workers",
        type=click.IntRange(min=1),
        default=default_decode_workers,
        show_default="1.5 x CPU cores",
        help="Threads or processes that decode images.",
    ),
    click.option(
        "--decode_in",
        type=click.Choice(["auto", "threads", "processes"]),
        default="auto",
        show_default=True,
        help="auto fetches and decodes in processes where a GPU computes, else in threads.",
    ),
    click.option(
        "--allow_empty_val", is_flag=True, help="Accept a dataset without validation images."
    ),
    click.option(
        "--skip_bad_images",
        is_flag=True,
        help="Continue although some images cannot be embedded. Their rows hold zeros.",
    ),
    click.option(
        "--max_bad",
        type=LimitType(),
        metavar="N|N%",
        help="With --skip_bad_images: stop if more images than this cannot be embedded.",
    ),
    click.option(
        "--relist",
        is_flag=True,
        help="Where images appeared, vanished or changed since an earlier run listed them: take "
        "today's list. Unchanged images keep what is computed.",
    ),
    click.option(
        "--as_listed",
        is_flag=True,
        help="In that case, keep the list of the earlier run. What vanished or changed becomes a "
        "failed image.",
    ),
    click.option(
        "--restart",
        is_flag=True,
        help="Start over: delete the earlier run's local files and, unless it was registered, its "
        "uploaded objects.",
    ),
    click.option(
        "--write_renames",
        type=click.Path(path_type=Path, dir_okay=False),
        metavar="FILE",
        help="With --dry_run: write a script that renames .JPG and other objects to names that the "
        "server takes.",
    ),
    click.option(
        "--reuse",
        multiple=True,
        metavar="NAME|DIR",
        help="Copy what a dataset or a work directory (./birds) has already computed, and embed "
        "only the rest. May be repeated.",
    ),
    click.option(
        "--engine",
        type=click.Choice(["local", "ray"]),
        default="local",
        show_default=True,
        help="ray: all GPUs of this machine, or a cluster. See docs/scaling.md.",
    ),
    click.option(
        "--ray_address",
        metavar="auto|HOST:PORT",
        help="The Ray cluster to join.  [default: --engine ray starts one on this machine]",
    ),
    click.option(
        "--json",
        "as_json",
        is_flag=True,
        help="Print the report of the run on stdout instead of a table: what report.json in the "
        "work directory holds. See docs/report.md.",
    ),
    click.option(
        "--trial",
        type=TrialType(),
        is_flag=False,
        flag_value="200",
        metavar="[N]",
        help="Embed N images (200 without N) of both splits, upload and register nothing, and "
        "forecast time, requests, disk and cost of all.",
    ),
    click.option(
        "--prices",
        type=click.Path(path_type=Path),
        metavar="FILE",
        help="With --trial: your prices, as JSON. See docs/report.md.",
    ),
)


def ingest_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a click command the options of ingest.py, except those that ingest_labels.py shares."""
    return functools.reduce(lambda decorated, option: option(decorated), reversed(OPTIONS), command)


def check_combinations(request: Request) -> None:
    """Raise UsageError for options that do not go together."""
    if request.max_bad and not request.skip_bad_images:
        raise click.UsageError("--max_bad goes with --skip_bad_images.")
    if request.ray_address and request.engine != "ray":
        raise click.UsageError("--ray_address goes with --engine ray.")
    if request.relist + request.as_listed + request.restart > 1:
        raise click.UsageError("--relist, --as_listed and --restart exclude each other.")
    if request.write_renames and not request.dry_run:
        raise click.UsageError("--write_renames goes with --dry_run.")
    _check_trial(request)


def _check_trial(request: Request) -> None:
    """The same for --trial."""
    if request.prices and not request.trial:
        raise click.UsageError("--prices goes with --trial.")
    given = {
        "--dry_run": request.dry_run,
        "--restart": request.restart,
        "--relist": request.relist,
        "--as_listed": request.as_listed,
        "--reuse": request.reuse,
        "--engine ray": request.engine == "ray",
    }
    if request.trial and (others := [option for option, value in given.items() if value]):
        raise click.UsageError(
            f"--trial measures how this machine embeds images: leave out {', '.join(others)}."
        )
