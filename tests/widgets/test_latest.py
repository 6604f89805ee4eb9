"""Only the newest request is worked on, and what was used last is kept."""

from __future__ import annotations

import threading

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mhvae_kit.widgets.latest import Latest, RecentlyUsed


def test_while_one_is_worked_on_only_the_newest_request_is_kept():
    done, may_go, begun = [], threading.Event(), threading.Event()

    def work(request: int) -> None:
        begun.set()
        assert may_go.wait(10)
        done.append(request)

    latest = Latest(work)
    latest.ask(0)
    assert begun.wait(10)
    for request in range(1, 50):
        latest.ask(request)
    assert latest.waiting and not latest.wait(0)
    may_go.set()
    assert latest.wait(10)
    assert done == [0, 49]
    assert (latest.asked, latest.done, latest.waiting) == (50, 2, False)


def test_requests_that_come_one_by_one_are_all_worked_on():
    done: list[int] = []
    latest = Latest(done.append)
    for request in range(5):
        latest.ask(request)
        assert latest.wait(10)
    assert done == list(range(5))


@settings(max_examples=30)
@given(st.lists(st.integers(0, 5), max_size=40), st.integers(1, 4))
def test_the_cache_holds_what_was_used_last(keys, capacity):
    cache, order = RecentlyUsed(capacity), []
    for key in keys:
        assert cache.get(key, lambda made=key: made) == key
        order = [k for k in order if k != key] + [key]
    assert len(cache) == min(len(set(keys)), capacity)
    misses = cache.misses
    for key in order[-capacity:]:
        cache.get(key, lambda: pytest.fail("a recent entry was forgotten"))
    assert cache.misses == misses and cache.hits + cache.misses == len(keys) + len(order[-capacity:])
