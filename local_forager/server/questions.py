"""Questions about images and their annotations, answered as generation A or B does.

Real servers number images by themselves, and only tell the numbers on pages of results.
"""

from typing import Any

from aiohttp import web

from local_forager.server.api import (
    DATABASE,
    GENERATION,
    SLUG,
    add_views,
    dataset_of,
    read_body,
)

RESULTS = 500  # images on a page of results, if the request does not say


async def query_images(request: web.Request) -> web.Response:
    """All images of a split as a set of results, in the order of their numbers."""
    dataset = await dataset_of(request)
    split = (await read_body(request)).get("split", "train")
    counts = await request.app[DATABASE].counts(dataset.id)
    number = counts.num_val if split == "val" else counts.num_train
    # The name of the set says what is in it, so nothing needs to be kept.
    results = {"id": "val" if split == "val" else "train", "num_results": number, "type": "query"}
    return web.json_response(results)


async def get_results(request: web.Request) -> web.Response:
    """A page of results: addresses and numbers of images. They are not clustered."""
    dataset = await dataset_of(request)
    query = request.query
    is_val = {"train": False, "val": True}[query["result_set_id"]]
    bucket = dataset.train_path.removeprefix("gs://").partition("/")[0]
    offset, num = int(query.get("offset", 0)), int(query.get("num", RESULTS))
    items = await request.app[DATABASE].page_of_items(dataset.id, is_val, offset, num)
    return web.json_response(
        {
            "paths": [f"https://storage.googleapis.com/{bucket}/{path}" for _, path in items],
            "identifiers": [number for number, _ in items],
            "distances": [-1] * len(items),
            "clustering": [],
        }
    )


async def get_annotations(request: web.Request) -> web.Response:
    """The annotations of images by their numbers; A is asked by GET, and B by POST."""
    by_number: dict[int, dict[str, Any]] = {}
    if request.app[GENERATION] == "A":
        numbers = [int(text) for text in request.query["identifiers"].split(",") if text]
    else:
        numbers = [number for number in (await read_body(request))["identifiers"] if number]
    tags, boxes = await request.app[DATABASE].annotations_of(numbers)
    for number, category, mode in sorted(tags):
        found = by_number.setdefault(number, {"tags": [], "boxes": []})
        found["tags"].append({"category": category, "value": mode})
    for number, category, mode, x1, y1, x2, y2 in sorted(boxes):
        found = by_number.setdefault(number, {"tags": [], "boxes": []})
        corners = {"x1": x1, "y1": y1, "x2": x2, "y2": y2}
        found["boxes"].append({"category": category, "value": mode, **corners})
    if request.app[GENERATION] == "A":
        return web.json_response({number: found["tags"] for number, found in by_number.items()})
    return web.json_response(by_number)


def add_questions(app: web.Application) -> None:
    method = "GET" if app[GENERATION] == "A" else "POST"
    add_views(
        app,
        [
            ("POST", f"query_images_v2/{{name:{SLUG}}}", query_images),
            ("GET", f"get_results_v2/{{name:{SLUG}}}", get_results),
            (method, "get_annotations_v2", get_annotations),
        ],
    )
