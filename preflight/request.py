"""What the command line of ingest.py asks for."""

from pathlib import Path
from typing import NamedTuple

from common.names import parse_gs_path
from common.options import Limit
from engine.loading import ModelOptions


class Request(NamedTuple):
    """One ingest, as the user describes it."""

    name: str
    train_path: str
    val_path: str
    server_url: str
    bucket: str
    models: ModelOptions
    work_dir: Path | None = None
    allow_empty_val: bool = False
    skip_bad_images: bool = False
    max_bad: Limit | None = None
    restart: bool = False
    relist: bool = False
    as_listed: bool = False
    dry_run: bool = False
    write_renames: Path | None = None
    as_json: bool = False
    trial: int | None = None  # images; the ingest is not begun
    prices: Path | None = None
    viewer_url: str | None = None
    decode_workers: int = 1
    decode_in: str = "auto"
    engine: str = "local"
    ray_address: str | None = None
    reuse: tuple[str, ...] = ()  # datasets and work directories

    def identity(
        self, resnet_digest: str | None = None, clip_digest: str | None = None
    ) -> dict[str, str]:
        """What an ingest that is continued must have in common with the earlier run.

        The digests of the weights are part of it where they are given.
        """
        digests = {"resnet_weights": resnet_digest, "clip_weights": clip_digest}
        identity = {
            "dataset": self.name,
            "train_path": str(parse_gs_path(self.train_path)),
            "val_path": str(parse_gs_path(self.val_path)),
            "bucket": self.bucket,
            **{name: digest for name, digest in digests.items() if digest is not None},
            "backend": self.models.backend,
        }
        if self.models.precision != "auto":
            identity["precision"] = self.models.precision
        return identity
