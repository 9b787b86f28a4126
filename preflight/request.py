"""What the command line of ingest.py asks for, by concern; what two runs must have in common."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from common.names import GsPath, parse_gs_path
from common.options import Limit
from engine.loading import ModelOptions


@dataclass(frozen=True, kw_only=True)
class Target:
    """What is ingested, and where the result goes."""

    name: str
    train_path: str
    val_path: str
    bucket: str  # of the index
    server_url: str
    viewer_url: str | None

    @property
    def paths(self) -> tuple[GsPath, GsPath]:
        """Both directories. Raises ValueError if they were not checked."""
        return parse_gs_path(self.train_path), parse_gs_path(self.val_path)


@dataclass(frozen=True, kw_only=True)
class Mode:
    """Which run this is: a dry run, a trial, a continuation; and what it may leave out."""

    work_dir: Path | None
    dry_run: bool
    write_renames: Path | None
    trial: int | None  # images; the ingest is not begun
    prices: Path | None
    as_json: bool
    reuse: tuple[str, ...]  # datasets and work directories
    restart: bool
    accept_changes: bool
    allow_empty_val: bool
    skip_bad_images: bool
    max_bad: Limit | None


@dataclass(frozen=True, kw_only=True)
class Workers:
    """What fetches, decodes and computes."""

    decode_workers: int
    decode_in: str
    engine: str
    ray_address: str | None


@dataclass(frozen=True, kw_only=True)
class Request:
    """One command."""

    target: Target
    mode: Mode
    models: ModelOptions
    workers: Workers

    @property
    def work_dir(self) -> Path:
        """The work directory: beside the caller by default."""
        return self.mode.work_dir or Path(self.target.name)


Part = TypeVar("Part")


def parse_request(parameters: Mapping[str, Any]) -> Request:
    """The request of a command line, whose parameters have the names of the fields."""

    def part(kind: type[Part]) -> Part:
        names = [field.name for field in dataclasses.fields(kind)]  # type: ignore[arg-type]
        return kind(**{name: parameters[name] for name in names})

    return Request(
        target=part(Target), mode=part(Mode), models=part(ModelOptions), workers=part(Workers)
    )


def without_validation(train_path: str) -> str:
    """The directory that takes the place of VAL_PATH where there are training images alone.

    It is beside TRAIN_PATH, and has no images. Raises ValueError with one sentence for the user.
    """
    bucket, prefix = parse_gs_path(train_path)
    return f"gs://{bucket}/{prefix.rstrip('/')}{'-' if prefix else ''}no-validation/"


def identity_of(
    target: Target, models: ModelOptions, digests: tuple[str, str] | None = None
) -> dict[str, str]:
    """What an ingest that is continued must have in common with the earlier run.

    `digests` are those of both weights files, once they are known.
    """
    train, val = target.paths
    identity = {
        "dataset": target.name,
        "train_path": str(train),
        "val_path": str(val),
        "bucket": target.bucket,
        "backend": models.backend,
    }
    if digests:
        identity["resnet_weights"], identity["clip_weights"] = digests
    if models.precision != "auto":
        identity["precision"] = models.precision
    return identity
