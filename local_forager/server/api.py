"""The calls of a Forager server that the two commands make, answered as generation A or B does.

Also which requests are answered, this machine's and this page's, and how errors look.
"""

import html
import ipaddress
import json
import math
import sys
from collections.abc import Awaitable, Callable
from typing import Any
from urllib.parse import urlsplit

from aiohttp import web

from common.names import IMAGE_SUFFIXES
from common.terminal import printable
from local_forager.server.buckets import Buckets
from local_forager.server.database import (
    MAX_TEXT_LENGTH,
    Database,
    Dataset,
    NewAnnotation,
    ServerGeneration,
    fit,
)
from local_forager.types import PageError

BODY_LIMIT = 2_621_440  # bytes of a request with a Content-Length; real servers refuse more
CHUNKED_LIMIT = 64 * 1024 * 1024  # bytes of a request without a Content-Length
SLUG = "[-a-zA-Z0-9_]+"
CORNERS = ("x1", "y1", "x2", "y2")
DATABASE: web.AppKey[Database] = web.AppKey("database", Database)
BUCKETS: web.AppKey[Buckets] = web.AppKey("buckets", Buckets)
Endpoint = Callable[[web.Request], Awaitable[web.StreamResponse]]


class RequestDataTooBig(Exception):
    """The body is larger than real servers accept: they answer 400 without reading it."""


def is_loopback(host: str) -> bool:
    """Whether host, a name or an address without port, always means this machine."""
    host = host.strip("[]").rstrip(".").lower()
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


def host_in(header: str) -> str | None:
    """The host of a Host header without its port; None if the header is malformed."""
    try:
        parts = urlsplit(f"//{header}")
        return parts.hostname if parts.netloc == header and parts.port != 0 else None
    except ValueError:
        return None


def is_same_origin(origin: str, host: str) -> bool:
    """Whether an Origin header names the address in the Host header."""
    try:
        return urlsplit(origin).netloc.lower() == host.lower()
    except ValueError:
        return False


def html_page(status: int, title: str, detail: str) -> web.Response:
    """An error page as real servers send it: its title names the exception and the address."""
    text = (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        f"<title>{html.escape(title)}</title></head>\n"
        f"<body><h1>{html.escape(title)}</h1><pre>{html.escape(detail)}</pre></body></html>\n"
    )
    return web.Response(status=status, text=text, content_type="text/html")


@web.middleware
async def refuse_other_hosts(request: web.Request, handler: Endpoint) -> web.StreamResponse:
    """Refuse a Host header that does not name this machine, as real servers do.

    Another site's name can be made to resolve to this machine; its pages could then read data here.
    """
    if not is_loopback(host_in(request.host) or ""):
        title = f"DisallowedHost at {request.path}"
        return html_page(400, title, "Unknown host in the Host header.")
    return await handler(request)


@web.middleware
async def refuse_other_sites(request: web.Request, handler: Endpoint) -> web.StreamResponse:
    """Refuse a POST that another site's page makes the browser send.

    Browsers name the page's origin in every POST; scripts such as ingest.py send no Origin.
    """
    origin = request.headers.get("Origin")
    if request.method == "POST" and origin is not None and not is_same_origin(origin, request.host):
        return html_page(403, "Forbidden", "Another site's page sent this request.")
    return await handler(request)


@web.middleware
async def answer_errors(request: web.Request, handler: Endpoint) -> web.StreamResponse:
    """Answer every error of the API, and every unknown address, as a real server does."""
    try:
        return await handler(request)
    except web.HTTPNotFound:
        return html_page(404, f"Page not found at {request.path}", "There is no such address here.")
    except web.HTTPMethodNotAllowed as error:
        allow = {"Allow": ", ".join(sorted({"OPTIONS", *error.allowed_methods}))}
        if request.method == "OPTIONS":
            return web.json_response({}, headers=allow)
        detail = f'Method "{request.method}" not allowed.'
        return web.json_response({"detail": detail}, status=405, headers=allow)
    except web.HTTPException:
        raise
    except PageError:  # there is no such dataset
        return web.json_response({"detail": "Not found."}, status=404)
    except Exception as error:
        name = type(error).__name__
        status = 400 if isinstance(error, RequestDataTooBig) else 500
        if status == 500:
            print(f"{request.method} {request.path!a} 500 {name}: {error!a}", file=sys.stderr)
        return html_page(status, f"{name} at {request.path}", str(error))


async def read_body(request: web.Request) -> Any:
    """The body as JSON, whatever its Content-Type says."""
    if (request.content_length or 0) > BODY_LIMIT:
        raise RequestDataTooBig(f"Request body exceeded {BODY_LIMIT:,} bytes.")
    return json.loads(await request.read())


async def dataset_named(app: web.Application, name: str) -> Dataset:
    dataset = await app[DATABASE].dataset(name)
    if dataset is None:
        raise PageError(404, f"There is no dataset named {printable(str(name))} here.")
    return dataset


async def dataset_of(request: web.Request) -> Dataset:
    """The dataset in the address."""
    return await dataset_named(request.app, request.match_info["name"])


def imitates_a(request: web.Request) -> bool:
    return request.app[DATABASE].generation is ServerGeneration.A


async def get_datasets(request: web.Request) -> web.Response:
    return web.json_response({"dataset_names": await request.app[DATABASE].dataset_names()})


async def get_dataset_info(request: web.Request) -> web.Response:
    dataset = await dataset_of(request)
    counts = await request.app[DATABASE].counts(dataset.id)
    return web.json_response({"index_id": dataset.index_id, **counts._asdict()})


async def list_images(buckets: Buckets, path: str) -> list[str]:
    """Object names of the images under a gs:// path, which counts as a plain string prefix."""
    if not path.startswith("gs://"):
        raise AssertionError(f"not a gs:// path: {path!r}")
    return [name for name in await buckets.sizes(path) if name.endswith(IMAGE_SUFFIXES)]


async def create_dataset(request: web.Request) -> web.Response:
    """List both prefixes, save the dataset, then its images; if they do not fit, it stays empty."""
    payload = await read_body(request)
    name, index_id = payload["dataset"], payload["index_id"]
    train_path, val_path = payload["train_path"], payload["val_path"]
    train = await list_images(request.app[BUCKETS], train_path)
    val = await list_images(request.app[BUCKETS], val_path)
    database = request.app[DATABASE]
    dataset = await database.create_dataset(name, train_path, val_path, index_id)
    await database.add_items(dataset, train, val)
    return web.json_response({"status": "success"})


def read_annotation(payload: Any, is_a: bool, images: int) -> tuple[str, str, str, str]:
    """(user, category, mode, created_by) of a label payload, as the generation reads it.

    A reads the label's mode from "value", and "mode" as created_by. B reads "mode" and
    "created_by". So B accepts A's payload, but stores the mode "ingest".
    """
    mode, created_by = ("value", "mode") if is_a else ("mode", "created_by")
    return (
        fit("user", payload["user"], MAX_TEXT_LENGTH),
        fit("category", payload["category"], MAX_TEXT_LENGTH),
        fit("mode", payload[mode], MAX_TEXT_LENGTH),
        str(payload.get(created_by, "tag" if images == 1 else "tag-bulk")),
    )


async def add_annotations(request: web.Request) -> web.Response:
    dataset = await dataset_of(request)
    payload = await read_body(request)
    database = request.app[DATABASE]
    items = await database.items(dataset.id, payload["identifiers"])
    if items:  # real servers read the rest of the payload only then
        label = read_annotation(payload, imitates_a(request), len(items))
        user, category, mode, created_by = label
        annotations = [NewAnnotation(item, category, mode) for item, _ in items]
        await database.add_annotations(user, created_by, annotations)
    return web.json_response({"created": len(items)})


def corner(value: str | float) -> float:
    number = float(value)
    if not math.isfinite(number):
        raise ValueError(f"a corner of a box is {number}")
    return number


async def add_annotations_multi(request: web.Request) -> web.Response:
    """Several annotations of one dataset at once, boxes among them; generation B only."""
    payload = await read_body(request)
    database, dataset = request.app[DATABASE], await dataset_named(request.app, payload["dataset"])
    found = await database.items(dataset.id, [one["identifier"] for one in payload["annotations"]])
    item_of = {known: item for item, known in found}
    annotations = [
        NewAnnotation(
            item=item_of[str(one["identifier"])],
            category=fit("category", one["category"], MAX_TEXT_LENGTH),
            mode=fit("mode", one["mode"], MAX_TEXT_LENGTH),
            box=tuple(corner(one[name]) for name in CORNERS) if one.get("is_box") else None,
        )
        for one in payload["annotations"]
    ]
    user = fit("user", payload["user"], MAX_TEXT_LENGTH)
    created_by = str(payload.get("created_by", "tag-bulk"))
    await database.add_annotations(user, created_by, annotations)
    return web.json_response({"created": len(annotations)})


async def get_category_counts(request: web.Request) -> web.Response:
    """Generation A is asked for categories by POST; B tells all of them by GET."""
    dataset = await dataset_of(request)
    counts = await request.app[DATABASE].category_counts(dataset.id)
    if not imitates_a(request):
        return web.json_response(counts)
    wanted = (await read_body(request))["categories"]
    return web.json_response({"numLabeled": {name: counts.get(name, {}) for name in wanted}})


def add_api(app: web.Application) -> None:
    """Let the application answer the calls of its generation, below /api/."""
    is_a = app[DATABASE].generation is ServerGeneration.A
    name = f"{{name:{SLUG}}}"
    add = app.router.add_route
    add("GET", "/api/get_datasets_v2", get_datasets)
    add("GET", f"/api/get_dataset_info_v2/{name}", get_dataset_info)
    add("POST", "/api/create_dataset_v2", create_dataset)
    add("POST", f"/api/add_annotations_by_internal_identifiers_v2/{name}", add_annotations)
    add("POST" if is_a else "GET", f"/api/get_category_counts_v2/{name}", get_category_counts)
    if not is_a:
        add("POST", "/api/add_annotations_multi_v2", add_annotations_multi)
