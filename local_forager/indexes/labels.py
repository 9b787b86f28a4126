"""The labels of a dataset, by row of its index."""

from typing import NamedTuple

import numpy as np

from local_forager.indexes.index import Index
from local_forager.types import BoxText, CategoryCount, LabelText

POSITIVE = "POSITIVE"


class LabelTable(NamedTuple):
    of_row: dict[int, list[LabelText]]
    rows: dict[str, dict[str, np.ndarray]]  # category -> mode -> rows, int64 ascending
    boxes: dict[int, list[BoxText]]

    def select(self, category: str, mode: str | None) -> np.ndarray:
        """Rows with a label of the category in this mode; None is any mode."""
        modes = self.rows.get(category, {})
        chosen = [rows for name, rows in modes.items() if mode is None or name == mode]
        return np.unique(np.concatenate([np.zeros(0, np.int64), *chosen]))

    def positive(self) -> dict[str, np.ndarray]:
        return {
            category: modes[POSITIVE] for category, modes in self.rows.items() if POSITIVE in modes
        }

    def counts(self) -> list[CategoryCount]:
        """Categories sorted by name, each with its modes: POSITIVE first, the others by name."""
        return [
            {
                "category": category,
                "count": len(self.select(category, None)),
                "modes": [
                    {"mode": mode, "count": len(modes[mode])}
                    for mode in sorted(modes, key=lambda mode: (mode != POSITIVE, mode))
                ],
            }
            for category, modes in sorted(self.rows.items())
        ]


def table_of(
    labels: list[tuple[str, LabelText]], boxes: list[tuple[str, BoxText]], index: Index
) -> LabelTable:
    """The labels of the images in the index, as the database has them; others have no row."""
    of_row: dict[int, list[LabelText]] = {}
    found: dict[str, dict[str, set[int]]] = {}
    for known, label in labels:
        for row in index.rows_of.get(known, ()):
            texts = of_row.setdefault(row, [])
            if label not in texts:  # on A, images that share an identifier have each label twice
                texts.append(label)
            modes = found.setdefault(label["category"], {})
            modes.setdefault(label["mode"], set()).add(row)
    boxes_of: dict[int, list[BoxText]] = {}
    for known, box in boxes:
        for row in index.rows_of.get(known, ()):
            boxes_of.setdefault(row, []).append(box)
    rows = {
        category: {mode: np.array(sorted(places), np.int64) for mode, places in modes.items()}
        for category, modes in found.items()
    }
    return LabelTable(of_row, rows, boxes_of)
