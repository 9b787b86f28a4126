"""The labels of a dataset, by row of its index."""

from typing import NamedTuple

import numpy as np

from local_forager.indexes.index import Index
from local_forager.server.database import Label, StoredBox
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


def table_of(labels: list[Label], boxes: list[StoredBox], index: Index) -> LabelTable:
    """The labels of the images in the index; other images have no row."""
    of_row: dict[int, list[LabelText]] = {}
    rows: dict[str, dict[str, set[int]]] = {}
    for label in labels:
        text: LabelText = {"category": label.category, "mode": label.mode, "user": label.user}
        for row in index.rows_of.get(label.identifier, ()):
            found = of_row.setdefault(row, [])
            if text not in found:  # on A, images that share an identifier have each label twice
                found.append(text)
            rows.setdefault(label.category, {}).setdefault(label.mode, set()).add(row)
    boxes_of: dict[int, list[BoxText]] = {}
    for identifier, category, mode, user, x1, y1, x2, y2 in boxes:
        for row in index.rows_of.get(identifier, ()):
            boxes_of.setdefault(row, []).append(
                BoxText(category=category, mode=mode, user=user, x1=x1, y1=y1, x2=x2, y2=y2)
            )
    return LabelTable(
        of_row,
        {
            category: {mode: np.array(sorted(found), np.int64) for mode, found in modes.items()}
            for category, modes in rows.items()
        },
        boxes_of,
    )
