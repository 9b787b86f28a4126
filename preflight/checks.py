"""Everything that can be known before the first image is fetched, checked at once.

Each check adds a finding, one sentence for the user, or none; nothing stops at the first.
"""

from __future__ import annotations

import difflib
import json
import shutil
from pathlib import Path
from typing import Any

import gcs
from common import names
from common.addresses import check_server_url
from common.errors import Findings, StorageError
from common.names import GsPath
from common.terminal import count, first_lines, printable, say, size
from dataset import arrays
from dataset.listing import Listing, Split
from dataset.work_directory import WorkDirectory
from engine.loading import ModelLoader
from forager.client import DatasetInfo, ask_for_dataset
from preflight.request import Request, without_validation
from preflight.sources import check_reuse
from storage.async_client import AsyncStorage
from storage.listing import listed

SHOWN_DIRECTORIES = 3
STATE_BYTES_PER_ROW = 800  # of state.sqlite, the lists and the manifest; an upper bound
WORK_BYTES_PER_ROW = arrays.BYTES_PER_ROW + STATE_BYTES_PER_ROW  # of a work directory
PUBLIC_COMMAND = (
    "gcloud storage buckets add-iam-policy-binding gs://{bucket} "
    "--member=allUsers --role=roles/storage.objectViewer"
)


def check_arguments(request: Request, loader: ModelLoader) -> None:
    """What can be judged from the command line alone, before any request and before torch.

    Raises:
        IngestError: everything that is wrong, in one message.
    """
    findings, target = Findings(), request.target
    if error := names.dataset_name_error(target.name):
        findings.add(error)
    check_paths(findings, target.train_path, target.val_path)
    if target.server_url or not request.mode.trial:
        findings.collect(check_server_url, target.server_url)
    script = request.mode.write_renames
    if script and not script.absolute().parent.is_dir():
        findings.add(f"--write_renames {printable(str(script))}: there is no such directory.")
    check_reuse(findings, request)
    loader.check_files(findings)
    findings.raise_if_any()


def check_paths(findings: Findings, train: str, val: str) -> None:
    """That both paths are well-formed, in one bucket, and neither within the other."""
    paths = []
    for text in (train, val):
        try:
            paths.append(names.parse_gs_path(text))
        except ValueError as error:
            findings.add(str(error))
    if len(paths) < 2:
        return
    one, other = paths
    if one.bucket != other.bucket:
        findings.add(
            f"{printable(train)} and {printable(val)} are in two buckets: the web page builds "
            "every image address from the training bucket, so put both in one."
        )
    elif one == other:
        findings.add(
            f"{printable(str(one))} is named for both splits: name one directory for the training "
            "images, and another one for the validation images."
        )
    elif val == without_validation(train):
        return  # it may be within a whole bucket: it has no images
    elif one.prefix.startswith(other.prefix) or other.prefix.startswith(one.prefix):
        outer, inner = sorted(paths, key=lambda path: len(path.prefix))
        findings.add(
            f"{printable(str(outer))} contains {printable(str(inner))}, whose images would be in "
            "both splits: name two directories of which neither contains the other."
        )


async def check_server(
    findings: Findings, server_url: str, name: str, index_id: str | None
) -> str | None:
    """That the server answers as a Forager server does, and has no other dataset of this name.

    `index_id` is that of an earlier run of this ingest, which may have registered it already.
    Returns the index id of the dataset of this name, or None.
    """
    found: DatasetInfo | None = await findings.gather(ask_for_dataset(server_url, name))
    if found is None or found.index_id == index_id:
        return found and found.index_id
    findings.add(
        f"The dataset {name} is already there, with {found.num_train:,} training and "
        f"{found.num_val:,} validation images (index {printable(found.index_id)}): "
        "choose another name."
    )
    return found.index_id


def announce_listing(paths: tuple[GsPath, GsPath]) -> None:
    """Say what is listed now, which may take a minute."""
    say(f"Listing {' and '.join(printable(str(path)) for path in paths)} ...")


def list_images(paths: tuple[GsPath, GsPath], work: WorkDirectory) -> Listing:
    """All images of both splits, in a new listing of the work directory.

    Raises:
        StorageError: a directory cannot be listed.
    """
    listing = work.new_listing()
    try:
        for split, path in zip(Split, paths, strict=True):
            for page in listed(path):
                listing.add(split, page)
    except StorageError as error:
        if error.status != 404:
            raise
        raise StorageError(no_bucket(paths[0].bucket, "TRAIN_PATH and VAL_PATH")) from error
    return listing


def no_bucket(bucket: str, named_by: str) -> str:
    """That there is no such bucket, and which ones there are."""
    return f"There is no bucket gs://{bucket}: correct {named_by}. {gcs.buckets_like(bucket)}"


def check_listing(
    findings: Findings, listing: Listing, paths: tuple[GsPath, GsPath], allow_empty_val: bool
) -> None:
    """That there are images of both splits, no identifier is there twice, and the server takes all.

    Blocks: it reads all images, and may look for directories of like names.

    Raises:
        StorageError: storage cannot be reached.
    """
    for split, path in zip(Split, paths, strict=True):
        if listing.counts(split).images == 0 and not (split == Split.VAL and allow_empty_val):
            beside = gcs.directories_beside(gcs.make_client(), path)
            near = difflib.get_close_matches(str(path), beside, SHOWN_DIRECTORIES) or beside
            others = ", ".join(map(printable, near[:SHOWN_DIRECTORIES]))
            hint = "; --allow_empty_val continues without them" if split == Split.VAL else ""
            findings.add(
                f"No {split.word} images under {printable(str(path))}: images are objects that "
                f"end in {', '.join(names.IMAGE_SUFFIXES)}, in lower case{hint}."
                + (f" Directories beside it: {others}." if others else "")
            )
    if duplicates := dict(listing.duplicates()):
        pairs = [f"{name}: {o}" for name, objects in duplicates.items() for o in objects]
        findings.add(
            f"{count(len(duplicates), 'duplicate basename')}: each must be unique over training "
            "and validation, without the extension. Rename or remove all but one of each. The "
            "script of --dry_run --write_renames FILE puts the directories into the names, such as "
            "cat/cat_0001.jpg for cat/0001.jpg.\n" + _shown(pairs, "duplicates.json", duplicates)
        )
    if too_long := listing.longer_than(names.MAX_IDENTIFIER_LENGTH, names.MAX_OBJECT_NAME_LENGTH):
        findings.add(
            f"Too long for the server, which takes {names.MAX_OBJECT_NAME_LENGTH} characters, and "
            f"{names.MAX_IDENTIFIER_LENGTH} in basenames: {count(len(too_long), 'name')}. Rename "
            f"these objects.\n{_shown(too_long, 'too_long.json', too_long)}"
        )
    if unchecked := listing.without_crc32c():
        findings.add(
            f"The listing has no crc32c of {count(len(unchecked), 'image')}, so what is read "
            "cannot be checked. Objects that are encrypted with a key of your own have none: copy "
            f"them without such a key.\n{_shown(unchecked, 'without_crc32c.json', unchecked)}"
        )


def _shown(lines: list[str], file: str, content: Any) -> str:
    """The first of many lines; all of the content is in a file of the current directory."""
    return first_lines(list(map(printable, lines)), Path(file).absolute(), json.dumps(content))


async def check_public(findings: Findings, listing: Listing, bucket: str) -> None:
    """That one image of each split can be read without credentials, as the web page does."""
    async with AsyncStorage(connections=2) as objects:
        for split in Split:
            first = listing.first(split)
            if first is None:
                continue
            name = first.name
            refused = await findings.gather(objects.public_refusal(bucket, name))
            if refused is None:
                continue
            reason = f" ({refused})" if str(refused) else ""
            if refused.status in (401, 403):
                findings.add(
                    f"gs://{bucket}/{printable(name)} cannot be read without credentials{reason}, "
                    "which the web page needs. To make the bucket public: "
                    + PUBLIC_COMMAND.format(bucket=bucket)
                )
            elif refused.is_requester_pays:
                findings.add(f"gs://{bucket}: {gcs.REQUESTER_PAYS}")
            else:
                findings.add(
                    f"gs://{bucket}/{printable(name)} gives HTTP {refused.status}{reason} without "
                    "credentials, and the web page needs it: open "
                    f"{printable(gcs.public_address(bucket, name), 1000)} in a browser."
                )


def check_write_access(bucket: str) -> None:
    """That the index bucket can be written.

    Raises:
        StorageError: it cannot, and who can change that.
    """
    try:
        missing = gcs.missing_write_permissions(gcs.make_client(), bucket)
    except StorageError as error:
        if error.status != 404:
            raise
        named_by = "--bucket (or FORAGER_BUCKET), the bucket of indexes, or create it"
        raise StorageError(no_bucket(bucket, named_by)) from error
    if missing:
        raise StorageError(
            f"The credentials in use lack {', '.join(missing)} on gs://{bucket}: ask its owner for "
            "the role Storage Object User, or name a bucket of your own with --bucket."
        )


def check_disk(findings: Findings, slots: int, work_dir: Path) -> None:
    """That arrays with so many slots fit on the disk, with what of them is already there."""
    there = sum(
        path.stat().st_blocks * 512
        for name in arrays.DIMENSIONS
        if (path := arrays.array_path(work_dir, name)).exists()
    )
    needed = slots * WORK_BYTES_PER_ROW - there
    free = shutil.disk_usage(work_dir).free
    if needed > free:
        findings.add(
            f"The arrays need {size(needed)} more in {work_dir}, and {size(free)} are free: free "
            "some space, or choose another disk with --work_dir."
        )
