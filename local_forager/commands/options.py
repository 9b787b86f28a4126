"""The options that several commands of the local Forager have."""

from pathlib import Path

import click

from common.options import DEFAULT_BUCKET, bucket_name

data_dir_option = click.option(
    "--data_dir",
    type=click.Path(file_okay=False, path_type=Path),
    default="forager-data",
    help="Directory for the database and for copies of indexes and thumbnails.",
)
bucket_option = click.option(
    "--bucket",
    default=DEFAULT_BUCKET,
    envvar="FORAGER_BUCKET",
    type=bucket_name,
    metavar="NAME",
    help="Index bucket.",
)
clip_weights_option = click.option(
    "--clip_weights",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Directory of CLIP ViT-B/32, to search by text or by a picture; text needs its text tower "
    "and tokenizer.",
)
resnet_weights_option = click.option(
    "--resnet_weights",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Detectron2's R-50.pkl, to search by a picture.  [default: R-50.pkl beside ingest.py]",
)
