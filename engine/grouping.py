"""Which images become a batch, and when: pure logic, without threads and without a clock."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Hashable
from typing import Generic, NamedTuple, TypeVar

T = TypeVar("T")


class Waiting(NamedTuple, Generic[T]):
    """One image that waits for a batch."""

    item: T
    since: float  # seconds, of any clock


class Groups(Generic[T]):
    """Images by group, each in order of arrival. Images of one group may share a batch."""

    def __init__(
        self,
        batch_size: Callable[[T], int],
        *,
        gather_s: float = 0.0,
        quiet_s: float = 0.0,
        max_wait_s: float = 5.0,
        few_sizes: bool = False,
    ) -> None:
        """
        Args:
            batch_size: the size of a full batch for an image's group; asked anew each time.
            gather_s: how long a batch that is not full waits for more images,
            quiet_s: but no longer than this after the last image of any group came.
            max_wait_s: after this time an image goes before fuller groups.
            few_sizes: a batch that is not full has a power of two of images, so that few shapes
                come and each recurs.
        """
        self._batch_size, self._few_sizes = batch_size, few_sizes
        self._gather_s, self._quiet_s, self._max_wait_s = gather_s, quiet_s, max_wait_s
        self._last_came = 0.0
        self._groups: dict[Hashable, deque[Waiting[T]]] = {}

    def __bool__(self) -> bool:
        return bool(self._groups)

    def add(self, group: Hashable, item: T, now: float) -> bool:
        """Let an image wait; whether `ready_at` may come earlier by that."""
        is_first = not self._groups
        waiting = self._groups.setdefault(group, deque())
        waiting.append(Waiting(item, now))
        self._last_came = now
        return is_first or self._group_ready_at(waiting) <= now

    def ready_at(self) -> float | None:
        """The earliest time at which `take` returns a batch; None while no image waits."""
        if not self._groups:
            return None
        return min(map(self._group_ready_at, self._groups.values()))

    def take(self, now: float, *, sharing: int = 1) -> list[T]:
        """The next batch: of the group that is overdue, or full, or the fullest.

        It is empty before `ready_at`. `sharing` is how many threads are to share the images if a
        single group waits.
        """
        ready = [
            (self._rank(group, now), key)
            for key, group in self._groups.items()
            if self._group_ready_at(group) <= now
        ]
        if not ready:
            return []
        _, key = max(ready, key=lambda pair: pair[0])
        group = self._groups[key]
        full = self._full(group)
        size = len(group) if len(self._groups) > 1 else -(-len(group) // sharing)
        if size >= full:
            size = full
        elif self._few_sizes:
            size = 1 << (size.bit_length() - 1)
        batch = [group.popleft().item for _ in range(size)]
        if not group:
            del self._groups[key]
        return batch

    def clear(self) -> list[T]:
        """Everything that waits, which is then forgotten."""
        items = [waiting.item for group in self._groups.values() for waiting in group]
        self._groups.clear()
        return items

    def _group_ready_at(self, group: deque[Waiting[T]]) -> float:
        if len(group) >= self._full(group):
            return group[0].since
        return min(group[0].since + self._gather_s, self._last_came + self._quiet_s)

    def _full(self, group: deque[Waiting[T]]) -> int:
        return max(1, self._batch_size(group[0].item))

    def _rank(self, group: deque[Waiting[T]], now: float) -> tuple[int, float, float]:
        """Overdue groups first, then full ones, then the fullest; among equals, the oldest."""
        since = group[0].since
        if now - since > self._max_wait_s:
            return 2, 0, -since
        filled = len(group) / self._full(group)
        return (1, 0, -since) if filled >= 1 else (0, filled, -since)
