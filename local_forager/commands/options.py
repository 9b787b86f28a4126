"""The options that several commands of the local Forager have."""

import click

from common.options import LocalPath

data_dir_option = click.option(
    "--data_dir",
    type=LocalPath(file_okay=False),
    default="forager-data",
    help="Directory for the database and for copies of indexes and thumbnails.",
)
clip_weights_option = click.option(
    "--clip_weights",
    type=LocalPath(exists=True, file_okay=False),
    help="Directory of CLIP ViT-B/32, to search by text or by a picture; text needs its text tower "
    "and tokenizer.",
)
resnet_weights_option = click.option(
    "--resnet_weights",
    type=LocalPath(exists=True, dir_okay=False),
    help="Detectron2's R-50.pkl, to search by a picture.  [default: R-50.pkl beside ingest.py]",
)
