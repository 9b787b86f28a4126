"""What the page's API answers, in one place: JSON objects as typed dicts, arrays as bytes.

docs/page-api.md lists the addresses. A row is a position in the index: 0 is the first image. A
split is "train" or "val"; `by` is the embedding that is compared: "imagenet", "imagenet_early" or
"clip". A distance is 1 - cosine: 0 is the same direction, 2 the opposite one.
"""

from typing import TypedDict


class Problem(TypedDict):
    """Every answer with a status of 400 and more."""

    error: str  # one sentence for the person at the page


class DatasetCard(TypedDict):
    name: str
    num_train: int
    num_val: int
    opens: bool  # False for a name that no Forager can open, though it could be created


class DatasetList(TypedDict):
    generation: str  # "A" or "B"
    bucket: str  # the index bucket
    datasets: list[DatasetCard]


class IndexState(TypedDict):
    state: str  # "ready", "copying" or "missing"
    detail: str  # why it is missing, else ""
    done: int  # bytes copied from the bucket
    total: int  # bytes to copy; 0 while unknown


class ModeCount(TypedDict):
    mode: str
    count: int  # images


class CategoryCount(TypedDict):
    category: str
    count: int  # images with a label of this category, in any mode
    modes: list[ModeCount]


class Feature(TypedDict):
    available: bool
    reason: str  # why not, else ""


class EmbeddingInfo(TypedDict):
    by: str
    dimensions: int


class DatasetPage(TypedDict):
    """One dataset. What comes from the index is 0 or empty until index.state is "ready"."""

    name: str
    index_id: str
    train_path: str
    val_path: str
    num_train: int  # images, as the server counts them
    num_val: int
    index: IndexState
    rows: int  # images, as the index has them
    rows_train: int
    failed: int
    labelled: int  # images with any label
    categories: list[CategoryCount]
    embeddings: list[EmbeddingInfo]
    text_search: Feature
    umap: Feature
    version: int  # changes when labels do
    warnings: list[str]


class LabelText(TypedDict):
    category: str
    mode: str
    user: str


class ImageSummary(TypedDict):
    row: int
    name: str  # object name in the bucket
    identifier: str
    split: str
    failed: bool  # no vectors and no thumbnail
    imagenet_class: int | None
    labels: list[LabelText]


class ImageList(TypedDict):
    images: list[ImageSummary]


class ImageDetail(ImageSummary):
    path: str  # gs:// address
    bytes: int | None  # None where the image cannot be fetched or read, as problem says
    width: int | None
    height: int | None
    problem: str


class Neighbour(TypedDict):
    distance: float
    image: ImageSummary


class NeighbourList(TypedDict):
    by: str
    milliseconds: float  # that the search took
    neighbours: list[Neighbour]


class Working(TypedDict):
    """Status 202: the answer is being computed; ask again."""

    working: str


class Finding(TypedDict):
    set: str  # what to ask the list of rows for: set=...
    title: str
    about: str
    state: str  # "ready", "working", or "waiting" for start=1
    progress: float  # 0 to 1
    images: int
    groups: int  # 0 where the images do not form groups


class HealthReport(TypedDict):
    by: str
    findings: list[Finding]
