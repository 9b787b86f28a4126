"""A local Forager with buckets of its own, and requests to it."""

import json
import typing
import uuid
from contextlib import contextmanager
from urllib.error import HTTPError
from urllib.parse import urlsplit
from urllib.request import Request, urlopen

import numpy as np

import gcs
from local_forager import types as page_types
from local_forager.indexes.index import Index, class_name
from testing import synthetic
from testing.servers.processes import LONGEST_S, local_forager
from tests.harness import wait_for

NAMES = [f"d/train/t{row:02}.jpg" for row in range(60)] + [
    f"d/val/v{row:02}.jpg" for row in range(20)
]
SHAPES = {10: (300, 150), 11: (300, 100), 12: (100, 200)}  # of rows that are not 200x150
FAILED, COPY = 4, 65  # rows of NAMES; COPY, in validation, has the picture of row 2


def fetch(url, headers=None, body=None, method=None):
    """(status, headers, body) of a request, by default GET, or POST with a body."""
    try:
        request = Request(url, body, headers or {}, method=method)
        response = urlopen(request, timeout=LONGEST_S)
    except HTTPError as error:
        response = error
    with response:
        return response.status, response.headers, response.read()


def ask(url, payload=None, method=None, headers=None):
    """(status, media type, body, parsed where it is JSON) of a request with a payload as JSON."""
    body = payload if isinstance(payload, bytes) else payload and json.dumps(payload).encode()
    status, headers, answer = fetch(url, headers, body, method)
    kind = headers.get_content_type()
    return status, kind, json.loads(answer) if "json" in kind else answer.decode()


def get(url):
    """(status, parsed body) of a GET request that is answered in JSON."""
    status, kind, answer = ask(url)
    assert kind == "application/json", (url, status, answer[:200])
    return status, answer


def conforms(value, kind, where="answer"):
    """Fail unless value has exactly the keys and types of the typed dict."""
    if typing.is_typeddict(kind):
        hints = typing.get_type_hints(kind)
        assert isinstance(value, dict) and set(value) == set(hints), (where, value)
        for key, hint in hints.items():
            conforms(value[key], hint, f"{where}.{key}")
    elif typing.get_origin(kind) is list:
        assert isinstance(value, list), where
        for item in value:
            conforms(item, typing.get_args(kind)[0], where)
    elif typing.get_args(kind):
        assert type(value) in typing.get_args(kind), (where, value)
    else:
        assert type(value) is kind, (where, value)


def made_index(names, num_train, **more):
    """An index in memory, of class 3, without vectors."""
    rows = len(names)
    fields = {"classes": np.full(rows, 3, np.int32), "failed": np.zeros(rows, bool)}
    fields |= {"directory": None, "not_finite": [], "embeddings": {}, "rows_of": {}}
    fields |= {"fields": {}, "lacks": {}}
    return Index(names=names, num_train=num_train, **(fields | more))


def serve_map(page, server, points, classes, labels=None, val=None):
    """Let a page see dataset "d" as so many images, at these places, with these columns.

    labels: places in the dataset's categories, -1 where there is none; val: rows of validation.
    """
    rows = len(points)
    numbers, counts = np.unique(classes, return_counts=True)

    def describe(route):
        description = server.dataset("d") | {"rows": rows, "rows_train": rows}
        description["classes"] = [
            {"imagenet_class": number, "name": class_name(number), "count": count}
            for number, count in zip(numbers.tolist(), counts.tolist(), strict=True)
        ]
        route.fulfill(json=description)

    def answer_rows(route):
        chosen = val if "split=val" in route.request.url else np.arange(rows)
        route.fulfill(body=np.asarray(chosen, "<i4").tobytes())

    columns = {
        "class": classes,
        "label": np.full(rows, -1) if labels is None else labels,
        "split": np.zeros(rows),
    }

    def answer_column(route):
        name = urlsplit(route.request.url).path.rpartition("/")[2]
        route.fulfill(body=np.asarray(columns[name], "<i4").tobytes())

    places = np.asarray(points).clip(-1, 1).astype("<f4").tobytes()
    page.route("**/page/d/dataset", describe)
    page.route("**/page/d/map*", lambda route: route.fulfill(body=places))
    page.route("**/page/d/column/*", answer_column)
    page.route("**/page/d/rows*", answer_rows)
    page.route("**/thumbnail/*", lambda route: route.fulfill(status=204))


class PageServer:
    """A server at url, its image bucket, its index bucket and its data directory."""

    def __init__(self, service, images, index, data_dir):
        self.url, self.process = service.url, service.process
        self.images, self.index, self.data_dir = images, index, data_dir

    def publish(self, name, names, num_train=None, change=None, **more):
        """Put images and index into the buckets, create the dataset, wait for the index copy.

        names: of objects, or how many images NAME/train/0.jpg, NAME/train/1.jpg and so on.
        change: called with a function from the name of a file of the index to its blob.
        """
        names = [f"{name}/train/{row}.jpg" for row in range(names)] if type(names) is int else names
        index_id, client = str(uuid.uuid4()), gcs.make_client()
        num_train = len(names) if num_train is None else num_train
        synthetic.publish(client, self.images, self.index, index_id, names, num_train, **more)
        if change:
            change(lambda file: client.bucket(self.index).blob(f"indexes/{index_id}/{file}"))
        self.create(name, index_id, names[0].partition("/")[0] if names else name)
        self.wait_until_copied(name)
        return index_id

    def create(self, name, index_id, directory):
        base = f"gs://{self.images}/{directory}"
        paths = {"train_path": f"{base}/train/", "val_path": f"{base}/val/"}
        payload = {"dataset": name, "index_id": index_id, **paths}
        assert ask(f"{self.url}/api/create_dataset_v2", payload)[0] == 200

    def dataset(self, name):
        return get(f"{self.url}/page/{name}/dataset")[1]

    def typed(self, path, kind):
        """An answer of the page's API, which has this type."""
        status, answer = get(f"{self.url}/page/{path}")
        assert status == 200, answer
        conforms(answer, kind)
        return answer

    def array(self, path, kind):
        """An array from the page's API, asked for again while it is being computed."""
        while (answer := fetch(f"{self.url}/page/{path}"))[0] == 202:
            conforms(json.loads(answer[2]), page_types.Working)
        assert answer[0] == 200, answer[2]
        return np.frombuffer(answer[2], kind)

    def rows(self, query="", name="d"):
        """The rows of the page's view, those of a group as they are sent."""
        return self.array(f"{name}/rows?{query}", "<i4").tolist()

    def wait_until_copied(self, name):
        """The dataset's description once its index is no longer being copied."""

        def described():
            dataset = self.dataset(name)
            return dataset["index"]["state"] != "copying" and dataset

        return wait_for(described)

    def label(self, name, identifiers, category, mode="POSITIVE", user="a@b.c"):
        payload = {"identifiers": identifiers, "user": user, "category": category, "mode": mode}
        path = f"api/add_annotations_by_internal_identifiers_v2/{name}"
        assert ask(f"{self.url}/{path}", payload)[2] == {"created": len(identifiers)}

    def box(self, name, identifier, category, corners, mode="POSITIVE"):
        annotation = {"identifier": identifier, "category": category, "mode": mode, "is_box": True}
        annotation |= dict(zip(("x1", "y1", "x2", "y2"), corners, strict=True))
        payload = {"dataset": name, "user": "a@b.c", "annotations": [annotation]}
        return ask(f"{self.url}/api/add_annotations_multi_v2", payload)[0]


@contextmanager
def page_server(directory, *options):
    """A PageServer of generation B; STORAGE_EMULATOR_HOST must be set."""
    client = gcs.make_client()
    images, index = (client.create_bucket(f"page-{uuid.uuid4()}").name for _ in range(2))
    service = local_forager(directory, directory / "log", "--bucket", index, *options)
    with service:
        yield PageServer(service, images, index, directory)
