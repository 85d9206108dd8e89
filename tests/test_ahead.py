"""Reading ahead: in order, not too far, and errors where they belong."""

import threading
import time

import pytest

from sam_jax.ahead import read_ahead


def test_items_come_in_order_and_only_a_few_are_read_ahead():
    started, lock = [], threading.Lock()

    def read(item):
        with lock:
            started.append(item)
        time.sleep(0.001 * (item % 3))
        return item * item

    found = []
    for item, value in read_ahead(read, range(20), 3):
        assert max(started) <= item + 4
        found.append((item, value))
    assert found == [(k, k * k) for k in range(20)]
    assert list(read_ahead(read, [], 3)) == []


def test_an_error_is_raised_at_its_item_and_the_rest_is_not_read():
    def read(item):
        if item == 2:
            raise ValueError("two")
        return item

    seen = []
    with pytest.raises(ValueError, match="two"):
        for item, _ in read_ahead(read, range(100), 1):
            seen.append(item)
    assert seen == [0, 1]
