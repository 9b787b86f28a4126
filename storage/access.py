"""Questions to Cloud Storage beside the path of images: what is there, and who may write it.

These functions block: call them in a thread without an event loop. They raise StorageError where
there is no such bucket or object (status 404), no access, or storage cannot be reached.
"""

from __future__ import annotations

import asyncio
import contextlib
import difflib
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import gcs
from common.errors import StorageError
from common.names import GsPath
from common.terminal import first_of, printable
from storage.async_client import AsyncStorage

WRITE_PERMISSIONS = ("storage.objects.create", "storage.objects.delete", "storage.objects.get")
SHOWN_BUCKETS = 5  # of a project

T = TypeVar("T")


def with_storage(work: Callable[[AsyncStorage], Awaitable[T]]) -> T:
    """The result of some work with storage."""

    async def run() -> T:
        async with AsyncStorage(1) as objects:
            return await work(objects)

    return asyncio.run(run())


def read(bucket: str, name: str) -> bytes:
    """One object, whole."""
    return with_storage(lambda objects: objects.read(bucket, name))


def ask(what: str, path: str, **query: object) -> dict[str, Any]:
    """The JSON that storage answers to a GET."""
    return with_storage(lambda objects: objects.ask(what, path, query))


def missing_write_permissions(bucket: str) -> list[str]:
    """Which of WRITE_PERMISSIONS the credentials lack on the bucket."""
    what, path = f"Checking write access to gs://{bucket}", f"/b/{bucket}/iam/testPermissions"
    granted = ask(what, path, permissions=WRITE_PERMISSIONS).get("permissions", ())
    return [permission for permission in WRITE_PERMISSIONS if permission not in granted]


def buckets_like(bucket: str) -> str:
    """A sentence: which buckets the project of the credentials has, or how to look.

    Those of similar names come first.
    """
    found = []
    with contextlib.suppress(StorageError):  # credentials for objects alone may not list buckets
        project = "emulator" if gcs.emulator_host() else gcs.credentials()[1]
        if project:
            answer = ask("Listing the buckets", "/b", project=project, fields="items(name)")
            found = [item["name"] for item in answer.get("items", ())]
    if not found:
        return "`gcloud storage ls` lists the buckets of your project."
    nearest_first = difflib.get_close_matches(bucket, found, len(found), cutoff=0)
    return f"Your project has {first_of(nearest_first, SHOWN_BUCKETS)}."


def directories_beside(path: GsPath) -> list[str]:
    """The directories that have the same parent as this one, each as gs://...; up to 1,000."""
    parent = path.prefix.rstrip("/").rpartition("/")[0]
    prefix = f"{parent}/" if parent else ""
    what = f"Listing gs://{path.bucket}/{printable(prefix)}"
    found = ask(what, f"/b/{path.bucket}/o", prefix=prefix, delimiter="/", fields="prefixes")
    names = sorted(found.get("prefixes", ()))
    return [f"gs://{path.bucket}/{name}" for name in names if name != path.prefix]
