"""The answers of the page's API, JSON objects as typed dicts, and the errors of the local Forager.

docs/page-api.md lists the addresses. A row is a position in the index: 0 is the first image. A
split is "train" or "val"; `by` names the embedding to compare by: "imagenet", "imagenet_early" or
"clip". A distance is 1 - cosine: 0 is the same direction, 2 the opposite one.
"""

from typing import TypedDict

from common.errors import IngestError


class PageError(IngestError):
    """A request that cannot be answered, or an index or image that cannot be used."""

    def __init__(self, status: int, sentence: str) -> None:
        super().__init__(sentence)
        self.status = status


class StillWorking(Exception):
    """The answer is still being computed; the message says how far it is."""


class Problem(TypedDict):
    """Every answer with a status of 400 or more."""

    error: str  # one sentence for the person at the page


class DatasetCard(TypedDict):
    name: str
    num_train: int
    num_val: int
    opens: bool  # False if the name can be created, but no Forager can open it


class DatasetList(TypedDict):
    generation: str  # "A" or "B"
    bucket: str  # the index bucket
    datasets: list[DatasetCard]


class DeletionPlan(TypedDict):
    """What the deletion of a dataset deletes, and what it leaves."""

    name: str
    num_train: int
    num_val: int
    annotations: int  # labels and boxes
    train_path: str  # the images here stay
    val_path: str
    shared_with: list[str]  # datasets with the same index: then its copies here stay
    command: str  # deletes the index from its bucket; "" if shared_with needs it


class IndexState(TypedDict):
    state: str  # "ready", "copying" or "missing"
    detail: str  # why it is missing, or ""
    done: int  # bytes copied from the bucket
    total: int  # bytes to copy; 0 until this is known


class ModeCount(TypedDict):
    mode: str
    count: int  # images


class CategoryCount(TypedDict):
    category: str
    count: int  # images with a label of this category in any mode
    modes: list[ModeCount]


class Feature(TypedDict):
    available: bool
    reason: str  # why it is not available, or ""


class ClassCount(TypedDict):
    imagenet_class: int
    name: str
    count: int  # images


class EmbeddingInfo(TypedDict):
    by: str
    about: str  # what it compares


class SetTitle(TypedDict):
    """A set of images that a health check finds."""

    set: str
    title: str


class FieldInfo(TypedDict):
    """One value per image: limited by min_FIELD and max_FIELD, and sorted by FIELD or -FIELD."""

    field: str
    title: str
    unit: str  # or ""
    group: str  # "size", "quality" or "column", which is one's own
    kind: str  # "whole", "number" or "date", in seconds since 1970
    step: float  # two values that differ by less are compared as equal


class TextColumnInfo(TypedDict):
    """A column of one's own: limited by is_COLUMN."""

    column: str
    values: list[str]  # the commonest first; empty if there are too many to choose from


class FacetCounts(TypedDict):
    """What a choice of a filter would show: images that pass all filters but those of its kind."""

    train: int
    val: int
    labelled: int
    unlabelled: int
    categories: list[CategoryCount]
    classes: list[ClassCount]  # the commonest first


class DatasetPage(TypedDict):
    """One dataset. What is read from the index is 0 or empty until index.state is "ready"."""

    name: str
    index_id: str
    train_path: str
    num_train: int  # images according to the server
    num_val: int
    index: IndexState
    rows: int  # images in the index
    rows_train: int
    labelled: int  # images with at least one label
    boxed: int  # images with at least one box
    categories: list[CategoryCount]
    classes: list[ClassCount]  # ImageNet classes, the commonest first
    embeddings: list[EmbeddingInfo]  # the default first
    sets: list[SetTitle]
    text_search: Feature
    picture_search: Feature  # by one embedding at least
    umap: Feature
    neighbour_sorts: Feature  # the orders "outliers" and "typical"
    layout: str  # of the map unless another is chosen: "umap" or "pca"
    fields: list[FieldInfo]  # that are known; bytes always is
    columns: list[TextColumnInfo]
    sizes: Feature  # width, height and aspect
    quality: Feature  # brightness, contrast, sharpness and colourfulness
    version: str  # of labels and columns: it changes whenever some are written
    warnings: list[str]


class LabelText(TypedDict):
    category: str
    mode: str
    user: str


class BoxText(LabelText):
    """A box; corners in pixels of the full-size image, before any rotation."""

    x1: float
    y1: float
    x2: float
    y2: float


class ImageSummary(TypedDict):
    row: int
    name: str  # object name in the bucket
    split: str
    failed: bool  # at ingest: it has no vectors and no thumbnail
    imagenet_class: int | None
    class_name: str  # or ""
    width: int | None  # pixels; None if the index does not say
    height: int | None
    labels: list[LabelText]
    boxes: list[BoxText]


class ImageList(TypedDict):
    images: list[ImageSummary]


class ValueText(TypedDict):
    title: str
    text: str


class ImageDetail(ImageSummary):
    """Width and height are those of the image in the bucket, if it can be read."""

    bytes: int | None  # None if the image cannot be read; see problem
    orientation: int  # EXIF: 1 is upright; the models and thumbnails ignore it
    values: list[ValueText]  # quality, and columns of one's own, as far as they are known
    problem: str  # why the image cannot be read, or ""


class PictureQuestion(TypedDict):
    """A picture that someone gave, to sort by: its vectors are there until the server ends."""

    like: str  # for like=... in a request for rows
    by: list[str]  # the embeddings that it can be compared by
    reason: str  # why there are none, or ""


class Histogram(TypedDict):
    """Bin i holds the values from edges[i] up to, not including, edges[i + 1]."""

    field: str
    step: float  # the least difference of two values: edges[i + 1] - step is the last one of bin i
    edges: list[float]
    images: list[int]  # of the whole dataset, in each bin
    chosen: list[int]  # of them, those that pass the filters of all other fields


class TextCounts(TypedDict):
    """Images with each of the values of a TextColumnInfo."""

    column: str
    images: list[int]  # of the whole dataset
    chosen: list[int]  # of them, those that pass the filters of all other fields and columns


class HistogramList(TypedDict):
    histograms: list[Histogram]
    texts: list[TextCounts]


class Neighbour(TypedDict):
    distance: float
    image: ImageSummary


class SearchState(TypedDict):
    """How neighbours are searched for in an index."""

    state: str  # "exact": among all images; "building" what is faster; "ready": with that
    progress: float  # of building, 0 to 1
    reason: str  # why nothing faster can be had, or ""


class NeighbourList(TypedDict):
    milliseconds: float  # the search took
    exact: bool  # False if only images in the lists nearest to the image were compared
    search: SearchState
    neighbours: list[Neighbour]


class Working(TypedDict):
    """Status 202: the answer is still being computed. Ask again."""

    working: str


class Finding(TypedDict):
    set: str  # for set=... in a request for rows
    title: str
    about: str
    state: str  # "ready", "working", or "waiting" for start=1
    progress: float  # 0 to 1
    images: int
    groups: int  # 0 if the images do not form groups
    field: str  # whose range the images are in, or ""
    least: float | None  # of this range
    most: float | None


class AllPairs(TypedDict):
    """The comparison of all pairs of a large index, for near duplicates."""

    # "none": every comparison is of all pairs; "waiting" for exact=1; "working", "ready"
    state: str
    progress: float  # 0 to 1
    duration: str  # about how long it takes, in words


class ExamplePair(TypedDict):
    distance: float
    images: list[ImageSummary]  # two


class NearDistances(TypedDict):
    """The distances at which near duplicates can be shown; all are 0 until they are known."""

    distance: float  # of the findings "near" and "leak": what the request names, or the default
    default: float
    limit: float  # no larger one can be shown
    reach: str  # why, in one sentence
    examples: list[ExamplePair]  # pairs within the distance, the farthest first


class HealthReport(TypedDict):
    by: str
    findings: list[Finding]
    all_pairs: AllPairs
    near: NearDistances
