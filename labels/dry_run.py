"""What --dry_run tells: what would be sent, and what the server has already."""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from common.terminal import count, printable, say
from forager.answers import DatasetInfo
from forager.client import Forager
from forager.payloads import Box, Group, Label
from forager.stored import (
    NOTHING,
    CannotTell,
    Stored,
    category_counts,
    server_ids,
    stored_annotations,
)
from labels.journal import STORED, Journal
from labels.report import amount, count_asked, numbers_table, shortened
from labels.requests import Plan
from labels.similar import notes_on_categories, show_notes

# Images per question. A server of generation B with 1.6 million annotations took 1 s for 1,000 or
# 2,000 images. From 7,000 images on, PostgreSQL looked for boxes with a nested loop, and took 36 s.
# Generation A is asked by GET, and some proxies accept only 4 kB of address.
IMAGES = {"A": 400, "B": 2000}
MAX_LISTED = 100_000  # labels that would be replaced


class Comparison(NamedTuple):
    """Numbers of labels and boxes, by what the server has on their images."""

    created: Counter[Group]
    replaced: Counter[Group]  # the image has the category with another mode
    equal: Counter[Group]
    equal_boxes: Counter[Group]
    listed: list[str]  # a line for each of the first labels that would be replaced

    def add(self, annotation: Label | Box, there: Stored) -> None:
        """Count a label or a box; `there` is what its image has."""
        image, category, mode, *corners = annotation
        modes = there.labels.get(category)
        if corners:
            self.equal_boxes[category, mode] += (category, mode, *corners) in there.boxes
        elif not modes:
            self.created[category, mode] += 1
        elif modes == {mode}:
            self.equal[category, mode] += 1
        else:
            self.replaced[category, mode] += 1
            if len(self.listed) < MAX_LISTED:
                now = ", ".join(map(printable, sorted(modes)))
                self.listed.append(
                    f"{printable(image)}: {printable(category)!r} is {now}, would be "
                    f"{printable(mode)}"
                )


async def compare(server: Forager, name: str, info: DatasetInfo, plan: Plan) -> Comparison:
    """What sending the labels and boxes of the plan would change.

    Raises:
        CannotTell: the server does not tell what its images have.
    """
    if plan.known is None:
        raise CannotTell("the index, which tells the order of the images, cannot be read")
    ids = await server_ids(server.connection, name, info.index_id, *plan.known)
    annotations = [each for request in plan.requests for each in request.annotations()]
    numbers = np.fromiter((ids.of(each.identifier) for each in annotations), np.int64)
    order = np.argsort(numbers, kind="stable")
    numbers = numbers[order]
    asked = np.unique(numbers)
    generation = await server.generation()
    comparison = Comparison(Counter(), Counter(), Counter(), Counter(), [])
    with tqdm(
        total=len(asked), desc="Comparing", unit=" images", file=sys.stderr, disable=None
    ) as progress:
        for start in range(0, len(asked), IMAGES[generation]):
            part = asked[start : start + IMAGES[generation]]
            found = await stored_annotations(server.connection, generation, part.tolist())
            first, end = np.searchsorted(numbers, [part[0], part[-1] + 1])
            places = zip(numbers[first:end].tolist(), order[first:end].tolist(), strict=True)
            for number, place in places:
                comparison.add(annotations[place], found.get(number, NOTHING))
            progress.update(len(part))
    return comparison


async def report_dry_run(
    server: Forager, name: str, info: DatasetInfo, plan: Plan, replaced_file: Path
) -> None:
    """Print what would be sent, and what the server has already, as far as it tells."""
    counts = await category_counts(
        server.connection, name, sorted({category for category, _ in plan.groups()})
    )
    show_notes(notes_on_categories(plan.groups(), {category for category, _ in counts or ()}))
    comparison = None
    try:
        comparison = await compare(server, name, info, plan)
    except CannotTell as error:
        say(f"It is not known what the images have already: {printable(str(error), 300)}.")
    print(plan_table(plan, counts, comparison), flush=True)
    asked = count_asked(plan.requests)
    print(
        f"\n{amount(asked.labels.total(), asked.boxes.total())} in "
        f"{count(len(plan.requests), 'request')} would be sent to {server.shown}{plan.skipped()}. "
        "This was a dry run: nothing was sent.",
        flush=True,
    )
    if comparison:
        appends = await server.generation() == "A"
        for sentence in consequences(comparison, appends, replaced_file):
            print(sentence, flush=True)


def report_earlier_run(path: Path, belongs_to: dict[str, str], plan: Plan) -> None:
    """Print what an earlier run has sent of the plan, according to its journal."""
    if not path.exists():
        return
    with Journal(path, belongs_to) as journal:
        if journal.differs_in(*belongs_to) or not journal.has(plan.requests):
            return
        done = sum(entry.state == STORED for entry in journal.entries)
        if journal.finished:
            print(
                "An earlier run finished sending these: they are only sent with --again.",
                flush=True,
            )
        elif done:
            requests = count(len(plan.requests), "request")
            print(
                f"An interrupted run has stored {done:,} of {requests}: they are not sent.",
                flush=True,
            )


def plan_table(
    plan: Plan, counts: dict[Group, int] | None = None, comparison: Comparison | None = None
) -> str:
    """Labels and boxes by category and mode, and what the server has already."""
    asked = count_asked(plan.requests)
    columns = [("labels", asked.labels)]
    if comparison:
        columns += [
            ("created", comparison.created),
            ("replaced", comparison.replaced),
            ("equal", comparison.equal),
        ]
    if asked.boxes:
        columns += [("boxes", asked.boxes)]
        if comparison:
            columns += [("equal boxes", comparison.equal_boxes)]
    if counts is not None:
        columns += [("on the server", Counter(counts))]
    return numbers_table(columns, asked.groups())


def consequences(comparison: Comparison, appends: bool, replaced_file: Path) -> list[str]:
    """Sentences about labels and boxes of which the server has something already."""
    lines = []
    if (replaced := comparison.replaced.total()) != 0:
        label = "label is" if replaced == 1 else "labels are"
        lines.append(f"{replaced:,} {label} on the server with another mode:")
        more = replaced - len(comparison.listed)
        listed = comparison.listed + ([f"and {more:,} more"] if more else [])
        lines.append(shortened(listed, replaced_file))
    if (equal := comparison.equal.total()) != 0:
        label = "label is" if equal == 1 else "labels are"
        again = ", and would be stored a second time" if appends else ""
        lines.append(f"{equal:,} {label} on the server already{again}.")
    if (boxes := comparison.equal_boxes.total()) != 0:
        box = "box is" if boxes == 1 else "boxes are"
        lines.append(f"{boxes:,} {box} on the server already, and would be stored a second time.")
    return lines
