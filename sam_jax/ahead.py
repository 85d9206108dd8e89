"""Reading ahead: what comes next is read in the background while this is worked on."""

from __future__ import annotations

import collections
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

Item = TypeVar("Item")


def read_ahead(
    read: Callable[[Item], Any], items: Iterable[Item], ahead: int
) -> Iterator[tuple[Item, Any]]:
    """Items with what `read` gives of each, in their order.

    Args:
      read: called in other threads; what it raises is raised here, at its item.
      items: of anything.
      ahead: how many are read beyond the one that is worked on, at most.
    """
    with ThreadPoolExecutor(min(max(ahead, 1), 4)) as pool:
        waiting: collections.deque[tuple[Item, Future]] = collections.deque()
        try:
            for item in items:
                waiting.append((item, pool.submit(read, item)))
                if len(waiting) > ahead:
                    first, future = waiting.popleft()
                    yield first, future.result()
            while waiting:
                first, future = waiting.popleft()
                yield first, future.result()
        finally:
            for _, future in waiting:
                future.cancel()
