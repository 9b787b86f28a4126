"""States and listings that are closed after the test."""

from contextlib import ExitStack, closing

import pytest

from tests.dataset.states import listing_of, state_of


@pytest.fixture
def make_state(tmp_path):
    """Makes a state of these training and validation images in the directory of the test."""
    with ExitStack() as stack:
        yield lambda *images: stack.enter_context(closing(state_of(tmp_path, *images)))


@pytest.fixture
def make_listing(tmp_path):
    """Makes a listing of these training and validation images in the directory of the test."""
    with ExitStack() as stack:
        yield lambda *images: stack.enter_context(closing(listing_of(tmp_path, *images)))
