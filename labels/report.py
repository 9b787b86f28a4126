"""What ingest_labels.py prints about labels: what would be sent, what was stored, what differs."""

from __future__ import annotations

import enum
import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from common.errors import IngestError
from common.terminal import count, first_lines, print_result, printable, say, table
from forager.client import Forager
from forager.generation import Generation, Group, Kind, amount
from labels.journal import Journal, State
from labels.plan import Counts, Plan, notes_on_categories, show_notes

TABLE_LINES = 30  # that are shown of a table
DRY_RUN = "This was a dry run: nothing was sent."


class Outcome(str, enum.Enum):
    """What became of the labels of a file."""

    DRY_RUN = "dry_run"
    STORED = "stored"
    INCOMPLETE = "incomplete"  # the server stored other numbers than were sent
    SENT_EARLIER = "sent_earlier"  # so nothing was sent now
    STOPPED = "stopped"


@dataclass(frozen=True, kw_only=True)
class Result:
    """What a run did or would do; the columns are numbers of labels by category and mode."""

    outcome: Outcome
    columns: Mapping[str, Counter[Group]]
    message: str
    complete: bool = True  # whether all that was asked for is done

    def text(self, table_file: Path) -> str:
        """A table and the message. The whole of a long table goes to a file."""
        whole = numbers_table(self.columns)
        lines = first_lines(
            whole.splitlines(), table_file, f"{whole}\n", most=1 + TABLE_LINES, indent=""
        )
        return f"{lines}\n\n{self.message}"

    def json(self) -> str:
        """The same for programs: an object for each category and mode."""
        counts = [
            {
                "category": group[0],
                "mode": group[1],
                **{name.replace(" ", "_"): column[group] for name, column in self.columns.items()},
            }
            for group in sorted(set().union(*self.columns.values()))
        ]
        content = {"outcome": self.outcome, "message": self.message, "counts": counts}
        return json.dumps(content, indent=1)


def stopped(error: IngestError) -> Result:
    """The result of a run that an error ended."""
    return Result(outcome=Outcome.STOPPED, columns={}, message=error.message, complete=False)


async def dry_run_result(
    server: Forager, name: str, plan: Plan, journal: Journal, again: bool
) -> Result:
    """What would be sent, beside what the server has of these categories, if it tells.

    `again` is whether that does not depend on what an earlier run sent.
    """
    asked, generation = plan.counts(), await server.generation()
    categories = {category for counter in asked.values() for category, _ in counter}
    there = await server.category_counts(name, sorted(categories))
    columns = {"labels": asked[Kind.LABELS]}
    if asked[Kind.BOXES]:
        columns["boxes"] = asked[Kind.BOXES]
    if there is None:
        say("The server does not tell which labels it has.")
    else:
        show_notes(notes_on_categories(categories, {category for category, _ in there}))
        columns["on the server"] = Counter(
            {group: number for group, number in there.items() if number and group[0] in categories}
        )
        modes = {mode for _, mode in columns["on the server"]}
        if generation is Generation.A and "CUSTOM" in modes:
            say("Note: this server counts your own modes together, as CUSTOM.")
    labels = amount({kind: counter.total() for kind, counter in asked.items()})
    done = 0 if again else sent_earlier(journal, plan)
    requests = count(len(plan.requests), "request")
    if done == len(plan.requests):
        said = (
            f"An earlier run finished sending this file ({labels}) to {server.shown}, so nothing "
            f"would be sent without --again{plan.skipped()}. {DRY_RUN}"
        )
    else:
        said = f"{labels} in {requests} would be sent to {server.shown}{plan.skipped()}."
        if done:
            said += f" An interrupted run has stored {done:,} of {requests}: they are not sent."
        said += f" {DRY_RUN}{consequence(generation, asked)}"
    return Result(outcome=Outcome.DRY_RUN, columns=columns, message=said)


def consequence(generation: Generation, asked: Counts) -> str:
    """What the server does with labels and boxes that it has already."""
    said = ""
    if asked[Kind.LABELS] and not generation.stores_twice(Kind.LABELS):
        said = " Where an image has the category already, the server replaces its mode."
    if appended := [kind.value for kind in Kind if asked[kind] and generation.stores_twice(kind)]:
        said += f" What it has already of the {' and '.join(appended)} is stored a second time."
    return said


def sent_earlier(journal: Journal, plan: Plan) -> int:
    """How many requests of the plan an earlier run has sent, according to its journal."""
    if journal.differences() or not journal.has(plan):
        return 0
    return len(journal.numbers(State.STORED))


def count_mismatch(asked: Counts, created: Counts, index_known: bool) -> str | None:
    """The categories of which the server stored more or fewer than asked, if there are any."""
    wrong = [
        f"{printable(category)!r} ({printable(mode)}): {created[kind][category, mode]:,} of "
        f"{number:,}{' boxes' if kind is Kind.BOXES else ''}"
        for kind in Kind
        for (category, mode), number in asked[kind].items()
        if created[kind][category, mode] != number
    ]
    if not wrong:
        return None
    why = (
        "More labels than asked: two images of the dataset have the same identifier. Fewer: the "
        "server lacks images that are in the index."
        if index_known
        else "The dataset does not have all of these images. Only its index would tell which."
    )
    return f"The numbers of labels sent and stored differ:\n{first_lines(wrong)}\n{why}"


def numbers_table(columns: Mapping[str, Counter[Group]]) -> str:
    """A named column of numbers for each counter, a line for each category and mode."""
    rows = [
        (
            *(printable(text, 60) for text in group),
            *(f"{counter[group]:,}" for counter in columns.values()),
        )
        for group in sorted(set().union(*columns.values()))
    ]
    return table(("category", "mode", *columns), rows, text_columns=2)


def stored_twice(journal: Journal, plan: Plan, generation: Generation) -> str | None:
    """What an earlier run stored, or may have, and the server would store again."""
    kinds = {request.kind for request in plan.requests if generation.stores_twice(request.kind)}
    if journal.damaged and not journal.entries:
        return "everything" if kinds else None
    stored = journal.sizes(State.SENT, State.STORED)
    stored = Counter({kind: number for kind, number in stored.items() if kind in kinds})
    return amount(stored) if stored else None


def refuse_other_selection(path: Path, twice: str | None) -> None:
    """Raise an IngestError if an earlier run finished sending other labels of the same file.

    `twice` is what the server would store a second time; if that is nothing, there is no error.
    """
    if twice:
        raise IngestError(
            f"According to {printable(str(path))}, an earlier run finished sending other labels of "
            "this file (because of --skip_unknown or --skip_boxes, because one of the runs could "
            "not read the index, or because this program was updated). This server would store "
            f"{twice} a second time: add --again if you want that."
        )


def warn_of_second_copies(
    journal: Journal, twice: str | None, generation: Generation, start_over: bool
) -> None:
    """Say what the server stores a second time."""
    if not twice:
        return
    if start_over:
        said = (
            f"Starting over: this server stores {twice} of an earlier run a second time, as far as "
            "that run stored it"
        )
    elif journal.finished and not journal.differences().keys() & {"server", "dataset", "index_id"}:
        said = (
            f"An earlier run finished sending another version of this label file, with {twice}. "
            "What is in both versions is stored twice by this server"
        )
    else:
        return
    newest = generation.stores_twice(Kind.LABELS)
    say(f"{said}; {'the newest counts' if newest else 'Forager shows both copies of a box'}.")


def earlier_result(label_file: str, plan: Plan, journal: Journal, twice: str | None) -> Result:
    """That an earlier run sent these labels, so that nothing is to be done.

    `twice` is what the server would store a second time.
    """
    asked, created = plan.counts(), plan.counts(journal.created())
    again = f": this server then stores {twice} a second time" if twice else ""
    said = (
        f"An earlier run finished sending {label_file}: {parts(asked, created)} created. Nothing "
        f"was sent now. To send them again, add --again{again}."
    )
    return Result(
        outcome=Outcome.SENT_EARLIER,
        columns=_columns(asked, created),
        message=said,
        complete=asked == created,
    )


def parts(asked: Counts, created: Counts) -> str:
    """How many of the labels and boxes, in words."""
    return " and ".join(
        f"{created[kind].total():,} of {kind.counted(asked[kind].total())}"
        for kind in Kind
        if kind is Kind.LABELS or asked[kind]
    )


def sent_result(plan: Plan, journal: Journal, page: str) -> Result:
    """What was stored of what was sent."""
    asked, created = plan.counts(), plan.counts(journal.created())
    problem = count_mismatch(asked, created, plan.index_known)
    if problem:
        say(f"Error: {problem}")
    return Result(
        outcome=Outcome.INCOMPLETE if problem else Outcome.STORED,
        columns=_columns(asked, created),
        message=(
            f"{parts(asked, created)} created in {count(len(plan.requests), 'request')}"
            f"{plan.skipped()}. Look at them at {page}"
        ),
        complete=not problem,
    )


def _columns(asked: Counts, created: Counts) -> dict[str, Counter[Group]]:
    columns = {"asked": asked[Kind.LABELS], "created": created[Kind.LABELS]}
    if asked[Kind.BOXES]:
        columns |= {"boxes": asked[Kind.BOXES], "boxes created": created[Kind.BOXES]}
    return columns


def show(result: Result, table_file: Path, *, as_json: bool) -> None:
    """Print a result on stdout; what an earlier run sent is a message, not a result."""
    if result.outcome == Outcome.SENT_EARLIER and not as_json:
        say(result.message)
        return
    print_result(result.json() if as_json else result.text(table_file), result.message)
