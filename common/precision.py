"""The precisions that the models compute in, which is the more exact, and what auto tries first.

--precision auto is None where a `Precision | None` is asked for.
"""

from collections.abc import Iterable
from enum import Enum


class Precision(str, Enum):
    """From the least to the most exact, as --precision, the state and the manifest name them."""

    BFLOAT16 = "bfloat16"
    FLOAT16 = "float16"
    FLOAT32 = "float32"

    def __str__(self) -> str:
        return self.value


def least_exact(precisions: Iterable[Precision]) -> Precision:
    """The least exact of them."""
    return min(precisions, key=list(Precision).index)


def fastest_precision(on_gpu: bool) -> Precision:
    """The precision that auto tries first.

    On a GPU it is float16, whose mantissa has 3 bits more than bfloat16's. On a CPU it is float32,
    which keeps the numbers of the original packages to 1e-5.
    """
    return Precision.FLOAT16 if on_gpu else Precision.FLOAT32
