"""Listings and states of few images, for the tests of everything that reads them."""

import numpy as np

from dataset.arrays import DIMENSIONS
from dataset.listing import Listing, Split
from dataset.state import State
from gcs import ListedObject

INDEX_ID = "12345678-1234-4234-8234-123456789abc"


def vectors(seed):
    """A vector of each embedding, float32."""
    rng = np.random.default_rng(seed)
    return [rng.standard_normal(d).astype(np.float32) for d in DIMENSIONS.values()]


def listed(name, size=10, crc32c=2**32 - 1, generation=1):
    return ListedObject(name, size, crc32c, generation)


def listing_of(directory, train=(), val=(), name="listing.sqlite"):
    """A listing of these objects, given as names or as ListedObject."""
    listing = Listing(directory / name)
    for split, objects in zip(Split, (train, val), strict=True):
        listing.add(split, [listed(o) if isinstance(o, str) else o for o in objects])
    return listing


def state_of(directory, train=(), val=(), name="state.sqlite"):
    """A state that has taken such a listing."""
    listing = listing_of(directory, train, val)
    state = State.create(directory / name)
    state.take(listing.path)
    listing.close()
    return state


def take(state, train=(), val=()):
    """Take a newer listing; returns what it changed."""
    listing = listing_of(state.directory, train, val)
    changes = state.changes(listing.path)
    state.take(listing.path)
    listing.close()
    return changes


def images(state):
    """What the state knows: object -> slot, status, of the listed images."""
    query = "SELECT object, slot, status FROM images WHERE split IS NOT NULL"
    return {name: (slot, status) for name, slot, status in state._db.execute(query)}
