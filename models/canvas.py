"""Images of several sizes in one batch, each at the top left of a common canvas.

An image's numbers are those of the image alone. Every stage of ResNet-50 halves a side to
ceil(side / 2), on the canvas as on the image, so each map of an image is at the top left of the map
of its canvas. What a convolution or the max pool reads beyond that part is one row and one column,
which `zero_strip` sets to zero: the padding that the image alone would have. Nothing further out is
read. The averages over space are taken over the image's part alone.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

STEP = 64  # pixels; canvases have 6.5% more pixels than the images of COCO, with 32 3.3%


def rounded_up(side: int) -> int:
    """The side of the canvas for an image's side: few canvases are needed for all images."""
    return -(-side // STEP) * STEP


@dataclass(frozen=True, kw_only=True)
class Region:
    """The part of a map (n, channels, height, width) that belongs to each image."""

    inside: Tensor  # bool (n, 1, height, width)
    # Row h and column w of each image, the first that are not its own: int64 (n * (height + width))
    image: Tensor
    row: Tensor
    column: Tensor
    outside: Tensor  # bool (n * (height + width), 1): False where an image fills the canvas

    def zero_outside(self, x: Tensor) -> Tensor:
        """x with zeros outside the images."""
        return x.masked_fill(~self.inside, 0)

    def zero_strip(self, x: Tensor) -> Tensor:
        """x with zeros in the row and the column that follow each image, in place."""
        maps = x.permute(0, 2, 3, 1)
        strip = self.image, self.row, self.column
        maps[strip] = maps[strip].masked_fill_(self.outside, 0)
        return x

    def mean(self, x: Tensor) -> Tensor:
        """The mean over each image's part, float32 (n, channels)."""
        return self.zero_outside(x).sum((2, 3), dtype=torch.float32) / self.inside.sum((2, 3))


def regions(sizes: Tensor, height: int, width: int, count: int) -> list[Region]:
    """The parts of images of `sizes`, int64 (n, 2), on a canvas and on maps of half the size each.

    All is computed on the device of `sizes`, by tensors whose shapes depend on n and the canvas.
    """
    found = []
    for _ in range(count):
        found.append(_region(sizes, height, width))
        sizes, height, width = (sizes + 1) // 2, -(-height // 2), -(-width // 2)
    return found


def _region(sizes: Tensor, height: int, width: int) -> Region:
    n = len(sizes)
    rows, columns = (torch.arange(side, device=sizes.device) for side in (height, width))
    h, w = sizes[:, :1], sizes[:, 1:]  # (n, 1) each
    inside = (rows < h)[:, :, None] & (columns < w)[:, None, :]
    row = torch.cat([h.expand(n, width), rows.expand(n, height)], 1).clamp(max=height - 1)
    column = torch.cat([columns.expand(n, width), w.expand(n, height)], 1).clamp(max=width - 1)
    image = torch.arange(n, device=sizes.device)[:, None].expand_as(row)
    outside = (row >= h) | (column >= w)
    return Region(
        inside=inside[:, None],
        image=image.reshape(-1),
        row=row.reshape(-1),
        column=column.reshape(-1),
        outside=outside.reshape(-1, 1),
    )
