"""Every error of the local Forager that callers tell apart, as one tree.

    IngestError (common/errors.py)  the export command prints it as one sentence
    └── PageError                   what cannot be answered: a status and a sentence for a person
        └── NoSuchDataset           real servers answer this 404 in JSON, that of an address in HTML

    StillWorking                    what is not computed yet: the page asks again

Two more are named after what real servers raise, because their error pages show the name:

    DataError                       a value does not fit its column
    RequestDataTooBig               the body is larger than real servers read
"""

from common.errors import IngestError
from common.terminal import printable


class PageError(IngestError):
    """A request that cannot be answered, or an index or image that cannot be used."""

    def __init__(self, status: int, sentence: str) -> None:
        super().__init__(sentence)
        self.status = status


class NoSuchDataset(PageError):
    def __init__(self, name: str) -> None:
        super().__init__(404, f"There is no dataset named {printable(str(name))} here.")


class StillWorking(Exception):
    """The answer is still being computed; the message says how far it is."""


class DataError(Exception):
    """The value does not fit its column; the message is worded as the database's own."""


class RequestDataTooBig(Exception):
    """The body is larger than real servers accept: they answer 400 without reading it."""
