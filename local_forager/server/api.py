"""The calls of a Forager server that an ingest makes, answered as generation A or B does."""

import html
import json
import sys
from collections.abc import Awaitable, Callable
from typing import Any, cast

from aiohttp import web

from common.names import IMAGE_SUFFIXES
from local_forager.server.buckets import Buckets
from local_forager.server.database import MAX_TEXT_LENGTH, Database, Dataset, fit

BODY_LIMIT = 2_621_440  # bytes, where the request says its length; real servers refuse more
CHUNKED_LIMIT = 64 * 1024 * 1024  # bytes, where it does not say
SLUG = "[-a-zA-Z0-9_]+"
GENERATION: web.AppKey[str] = web.AppKey("generation", str)
DATABASE: web.AppKey[Database] = web.AppKey("database", Database)
BUCKETS: web.AppKey[Buckets] = web.AppKey("buckets", Buckets)

Endpoint = Callable[[web.Request], Awaitable[web.StreamResponse]]


class RequestDataTooBig(Exception):
    """A body that real servers refuse with status 400 before they look into it."""


class NoSuchDataset(Exception):
    """An unknown dataset: a 404 in JSON, unlike that of an unknown address."""


def html_page(status: int, title: str, detail: str) -> web.Response:
    """An error as real servers send it: a page whose title names the exception and the address."""
    text = (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        f"<title>{html.escape(title)}</title></head>\n"
        f"<body><h1>{html.escape(title)}</h1><pre>{html.escape(detail)}</pre></body></html>\n"
    )
    return web.Response(status=status, text=text, content_type="text/html")


@web.middleware
async def answer_errors(request: web.Request, handler: Endpoint) -> web.StreamResponse:
    """Every error of the API and every unknown address as a real server answers it."""
    try:
        return await handler(request)
    except web.HTTPNotFound:
        return html_page(404, f"Page not found at {request.path}", "There is no such address here.")
    except web.HTTPException:
        raise
    except NoSuchDataset:
        return web.json_response({"detail": "Not found."}, status=404)
    except RequestDataTooBig as error:
        return html_page(400, f"RequestDataTooBig at {request.path}", str(error))
    except Exception as error:
        name = type(error).__name__
        print(f"{request.method} {request.path!a} 500 {name}: {error!a}", file=sys.stderr)
        return html_page(500, f"{name} at {request.path}", str(error))


def api_view(method: str, handler: Endpoint) -> Endpoint:
    """handler for one method, with the answers to OPTIONS and to any other method around it."""

    async def view(request: web.Request) -> web.StreamResponse:
        if request.method == method:
            return await handler(request)
        allow = {"Allow": ", ".join(sorted(("OPTIONS", method)))}
        if request.method == "OPTIONS":
            about = {"renders": ["application/json"], "parses": ["application/json"]}
            return web.json_response(about, headers=allow)
        detail = f'Method "{request.method}" not allowed.'
        return web.json_response({"detail": detail}, status=405, headers=allow)

    return view


async def read_json(request: web.Request) -> Any:
    """The body as JSON, whatever its Content-Type says."""
    if (request.content_length or 0) > BODY_LIMIT:
        raise RequestDataTooBig(f"Request body exceeded {BODY_LIMIT:,} bytes.")
    return json.loads(await request.read())


async def dataset_of(request: web.Request) -> Dataset:
    dataset = await request.app[DATABASE].dataset(request.match_info["name"])
    if dataset is None:
        raise NoSuchDataset(request.match_info["name"])
    return dataset


async def get_datasets(request: web.Request) -> web.Response:
    return web.json_response({"dataset_names": await request.app[DATABASE].dataset_names()})


async def get_dataset_info(request: web.Request) -> web.Response:
    dataset = await dataset_of(request)
    counts = await request.app[DATABASE].counts(dataset.id)
    info: dict[str, object] = {"index_id": dataset.index_id, **counts._asdict()}
    if request.app[GENERATION] == "A":
        info["categories"] = await request.app[DATABASE].custom_modes(dataset.id)
    return web.json_response(info)


async def list_images(buckets: Buckets, path: str) -> list[str]:
    """Object names of images whose names start with the rest of a gs:// path, as plain text."""
    if not path.startswith("gs://"):
        raise AssertionError(f"not a gs:// path: {path!r}")
    bucket, _, prefix = path.removeprefix("gs://").partition("/")
    return [name for name in await buckets.names(bucket, prefix) if name.endswith(IMAGE_SUFFIXES)]


async def create_dataset(request: web.Request) -> web.Response:
    """List both prefixes, save the dataset, then its images: where these fail it stays empty."""
    payload = await read_json(request)
    name, index_id = payload["dataset"], payload["index_id"]
    train_path, val_path = payload["train_path"], payload["val_path"]
    train = await list_images(request.app[BUCKETS], train_path)
    val = await list_images(request.app[BUCKETS], val_path)
    database = request.app[DATABASE]
    dataset = await database.create_dataset(name, train_path, val_path, index_id)
    await database.add_items(dataset, train, val)
    return web.json_response({"status": "success"})


def read_annotation(payload: Any, generation: str, images: int) -> tuple[str, str, str, str]:
    """user, category, mode and created_by of a label payload, as the generation reads it.

    B reads mode where A reads value, and A takes mode for what created the label: so A's payload
    goes through on B and stores the mode "ingest".
    """
    created_by = "tag" if images == 1 else "tag-bulk"
    if generation == "A":
        mode, created_by = payload["value"], payload.get("mode", created_by)
    else:
        mode, created_by = payload["mode"], payload.get("created_by", created_by)
    return (
        fit("user", payload["user"], MAX_TEXT_LENGTH),
        fit("category", payload["category"], MAX_TEXT_LENGTH),
        fit("mode", mode, MAX_TEXT_LENGTH),
        str(created_by),
    )


async def add_annotations(request: web.Request) -> web.Response:
    dataset = await dataset_of(request)
    payload = await read_json(request)
    generation = request.app[GENERATION]
    created = await request.app[DATABASE].add_labels(
        dataset.id,
        cast(list[str], payload["identifiers"]),
        lambda images: read_annotation(payload, generation, images),
    )
    return web.json_response({"created": created})


async def add_annotations_multi(request: web.Request) -> web.Response:
    """Generation B has this call, and is told from A by it; the ingest never uses it."""
    title = f"NotImplementedError at {request.path}"
    return html_page(501, title, "The local Forager does not offer this call.")


def add_api(app: web.Application) -> None:
    views: list[tuple[str, str, Endpoint]] = [
        ("GET", "get_datasets_v2", get_datasets),
        ("GET", f"get_dataset_info_v2/{{name:{SLUG}}}", get_dataset_info),
        ("POST", "create_dataset_v2", create_dataset),
        (
            "POST",
            f"add_annotations_by_internal_identifiers_v2/{{name:{SLUG}}}",
            add_annotations,
        ),
    ]
    if app[GENERATION] == "B":
        views.append(("POST", "add_annotations_multi_v2", add_annotations_multi))
    for method, path, handler in views:
        app.router.add_route("*", f"/api/{path}", api_view(method, handler))
