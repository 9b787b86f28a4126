"""Distributions of what images measure, as histograms with logarithmic bins."""

import numpy as np

BINS = 40


def edges_of(values: np.ndarray) -> np.ndarray:
    """int64, ascending: bin i has the values from edges[i] up to, not including, edges[i + 1].

    Up to BINS bins hold all values of 0 or more; empty if there are none.
    """
    known = values[values >= 0]
    if not len(known):
        return np.zeros(0, np.int64)
    low, after = int(known.min()), int(known.max()) + 1
    spaced = np.rint(np.geomspace(max(low, 1), after, BINS + 1)).astype(np.int64)
    return np.unique([low, *spaced[1:-1], after])


def counts_of(values: np.ndarray, edges: np.ndarray, masks: list[np.ndarray]) -> list[list[int]]:
    """For each mask, the number of values in each bin."""
    bins = np.searchsorted(edges, values, side="right")  # 0 for values below the first edge
    return [np.bincount(bins[mask], minlength=len(edges))[1:].tolist() for mask in masks]
