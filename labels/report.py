"""What ingest_labels.py prints about labels: tables, mismatches, shortened lists."""

from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from common.errors import IngestError
from common.terminal import count, printable, say, table
from forager.payloads import Group
from labels.journal import Entry, Journal
from labels.requests import BOXES, LABELS, BoxRequest, LabelRequest, Plan, Request

SHOWN_LINES = 10  # of a list, on the screen; all of them go to a file


class Tally(NamedTuple):
    """Numbers by category and mode."""

    labels: Counter[Group]
    boxes: Counter[Group]

    def groups(self) -> list[Group]:
        """All categories and modes."""
        return sorted(self.labels.keys() | self.boxes.keys())


def count_asked(requests: Iterable[Request]) -> Tally:
    """What the requests ask the server to store."""
    tally = Tally(Counter(), Counter())
    for request in requests:
        counter = tally.boxes if isinstance(request, BoxRequest) else tally.labels
        counter.update(request.groups())
    return tally


def count_created(requests: Sequence[Request], entries: Sequence[Entry]) -> Tally:
    """What the server stored.

    Of a request of several categories, the server does not say what it stored. So if it did not
    store all, this counts as nothing.
    """
    tally = Tally(Counter(), Counter())
    for request, entry in zip(requests, entries, strict=True):
        if isinstance(request, LabelRequest):
            tally.labels[request.category, request.mode] += entry.created
        elif entry.created == request.size():
            counter = tally.boxes if isinstance(request, BoxRequest) else tally.labels
            counter.update(request.groups())
    return tally


def count_mismatch(asked: Tally, created: Tally, index_known: bool) -> str:
    """The categories of which the server stored more or fewer than asked, or ""."""
    wrong = [
        (group, kind, there[group], wanted[group])
        for kind, there, wanted in (
            ("", created.labels, asked.labels),
            (" boxes", created.boxes, asked.boxes),
        )
        for group in wanted
        if there[group] != wanted[group]
    ]
    if not wrong:
        return ""
    lines = [
        f"  {printable(category)!r} ({printable(mode)}): {there:,} of {wanted:,}{kind}"
        for (category, mode), kind, there, wanted in wrong[:SHOWN_LINES]
    ]
    if len(wrong) > SHOWN_LINES:
        lines.append(f"  and {len(wrong) - SHOWN_LINES:,} more, in the table")
    why = (
        "More labels than asked: two images of the dataset have the same identifier. Fewer: the "
        "server lacks images that are in the index."
        if index_known
        else "The dataset does not have all of these images. Only its index would tell which."
    )
    return "The numbers of labels sent and stored differ:\n" + "\n".join([*lines, why])


def numbers_table(columns: Sequence[tuple[str, Counter[Group]]], groups: list[Group]) -> str:
    """A column of numbers for each counter, a line for each category and mode."""
    header = ("category", "mode", *(name for name, _ in columns))
    rows = [
        (
            *(printable(text, 60) for text in group),
            *(f"{counter[group]:,}" for _, counter in columns),
        )
        for group in groups
    ]
    return table(header, rows, text_columns=2)


def result_table(asked: Tally, created: Tally) -> str:
    """What was asked and what the server stored, by category and mode."""
    columns = [("asked", asked.labels), ("created", created.labels)]
    if asked.boxes:
        columns += [("boxes", asked.boxes), ("boxes created", created.boxes)]
    return numbers_table(columns, asked.groups())


def amount(labels: int, boxes: int) -> str:
    """Numbers of labels and of boxes in words, without one that is zero."""
    if not boxes:
        return count(labels, "label")
    return (f"{count(labels, 'label')} and " if labels else "") + count(boxes, "box", "boxes")


def shortened(lines: list[str], list_file: Path, always: bool = False) -> str:
    """The first lines, indented, and the file to which all of them are written.

    The file is written if there are more lines than shown, or `always`.
    """
    shown = "\n".join(f"      {line}" for line in lines[:SHOWN_LINES])
    if len(lines) <= SHOWN_LINES and not always:
        return shown
    more = len(lines) - SHOWN_LINES
    end = f"      ... and {more:,} more; all" if more > 0 else "      All"
    try:
        list_file.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    except OSError as error:
        where = f"could not be written to {printable(str(list_file))} ({error.strerror})."
    else:
        where = f"are in {printable(str(list_file))}"
    return f"{shown}\n{end} {where}"


def stored_twice(journal: Journal, plan: Plan, appends: bool) -> str:
    """What an earlier run stored, or may have, and the server would store again; or "".

    A server that `appends` does so with labels, and every server does so with boxes.
    """
    if journal.damaged and not journal.entries:
        return "everything"
    stored = journal.possibly_stored()
    labels = stored[LABELS] if appends else 0
    boxes = stored[BOXES] if any(request.kind == BOXES for request in plan.requests) else 0
    return amount(labels, boxes) if labels or boxes else ""


def refuse_other_selection(path: Path, twice: str) -> None:
    """Raise a IngestError if an earlier run finished sending other labels of the same file.

    `twice` is what the server would store a second time; if that is nothing, there is no error.
    """
    if twice:
        raise IngestError(
            f"According to {printable(str(path))}, an earlier run finished sending other labels of "
            "this file (because of --skip_unknown or --skip_boxes, because one of the runs could "
            "not read the index, or because this program was updated). This server would store "
            f"{twice} a second time: add --again if you want that."
        )


def warn_of_second_copies(journal: Journal, twice: str, appends: bool, start_over: bool) -> None:
    """Say what the server stores a second time."""
    if not twice:
        return
    counts = "the newest counts" if appends else "Forager shows both copies of a box"
    if start_over:
        say(
            f"Starting over: this server stores {twice} of an earlier run a second time, as far as "
            f"that run stored it; {counts}.",
        )
    elif journal.other_finished and not journal.differs_in("server", "dataset", "index_id"):
        say(
            f"An earlier run finished sending another version of this label file, with {twice}. "
            f"What is in both versions is stored twice by this server; {counts}.",
        )


def report_finished(label_file: Path, entries: Sequence[Entry], twice: str) -> bool:
    """Say that an earlier run sent these labels. Returns whether the server stored all.

    `twice` is what the server would store a second time.
    """
    asked: Counter[str] = Counter()
    created: Counter[str] = Counter()
    for entry in entries:
        asked[entry.kind] += entry.labels
        created[entry.kind] += entry.created
    consequence = f": this server then stores {twice} a second time" if twice else ""
    say(
        f"An earlier run finished sending {printable(str(label_file))}: "
        f"{parts(asked[LABELS], created[LABELS], asked[BOXES], created[BOXES])} created. Nothing "
        f"was sent now. To send them again, add --again{consequence}.",
    )
    return created == asked


def parts(labels: int, labels_created: int, boxes: int, boxes_created: int) -> str:
    """How many of the labels and boxes, in words."""
    of_labels = f"{labels_created:,} of {count(labels, 'label')}"
    of_boxes = f" and {boxes_created:,} of {count(boxes, 'box', 'boxes')}"
    return of_labels + (of_boxes if boxes else "")


def report_result(plan: Plan, entries: Sequence[Entry], page: str) -> bool:
    """Print what was stored. Returns whether that is all that was sent.

    Raises:
        IngestError: everything is recorded, but standard output cannot be written.
    """
    asked, created = count_asked(plan.requests), count_created(plan.requests, entries)
    problem = count_mismatch(asked, created, plan.known is not None)
    if problem:
        say(f"Error: {problem}")
    stored = parts(
        asked.labels.total(), created.labels.total(), asked.boxes.total(), created.boxes.total()
    )
    try:
        print(result_table(asked, created), flush=True)
        print(
            f"\n{stored} created in {count(len(plan.requests), 'request')}{plan.skipped()}. "
            f"Look at them at {page}",
            flush=True,
        )
    except OSError as error:
        raise IngestError(
            f"{stored} were created, which the journal records, but the table cannot be printed "
            f"({error.strerror})."
        ) from error
    return not problem
