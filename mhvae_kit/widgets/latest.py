"""Two things that keep a slider quick: only the newest request is worked on, and what was computed is kept."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Generic, TypeVar

from mhvae_kit.errors import InputError, explain

Request = TypeVar("Request")


class Latest(Generic[Request]):
    """Works on requests in one thread. While one is worked on, only the newest of those that come is kept.

    So a fast drag costs two computations (the one under way and the last), not one a value, and the last value always
    wins. `work` must not raise; what it raises nevertheless ends up in the thread's own report.

    Attributes:
        asked: How many requests came.
        done: How many were worked on; the others were overtaken.
    """

    def __init__(self, work: Callable[[Request], None]) -> None:
        self.asked = 0
        self.done = 0
        self._work = work
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="mhvae-picture")
        self._lock = threading.Lock()
        self._slot: list[Request] = []  # holds one request at most
        self._running = False
        self._idle = threading.Event()
        self._idle.set()

    def ask(self, request: Request) -> None:
        """Want this request worked on, in place of any that still waits. Returns at once."""
        with self._lock:
            self.asked += 1
            self._slot[:] = [request]
            if self._running:
                return
            self._running = True
            self._idle.clear()
            self._pool.submit(self._run)

    @property
    def waiting(self) -> bool:
        """Whether a newer request waits while one is worked on."""
        with self._lock:
            return bool(self._slot)

    def wait(self, timeout_s: float | None = None) -> bool:
        """Wait until nothing is under way or waiting; False when the time ran out first."""
        return self._idle.wait(timeout_s)

    def close(self) -> None:
        """Finish what is under way and take nothing more."""
        self._pool.shutdown(wait=True)

    def _run(self) -> None:
        while True:
            with self._lock:
                if not self._slot:
                    self._running = False
                    self._idle.set()
                    return
                request = self._slot.pop()
            try:
                self._work(request)
            finally:
                with self._lock:
                    self.done += 1


class RecentlyUsed:
    """A cache of bounded size that forgets what was used longest ago; threads may share it.

    Args:
        capacity: Entries that are kept.
    Attributes:
        hits, misses: How often an entry was there, and how often it had to be made.
    """

    def __init__(self, capacity: int) -> None:
        if capacity < 1:
            raise InputError(explain("a cache needs room for one entry", got=capacity))
        self.hits = 0
        self.misses = 0
        self._capacity = capacity
        self._entries: OrderedDict[Hashable, Any] = OrderedDict()
        self._lock = threading.RLock()

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, key: Hashable, make: Callable[[], Any]) -> Any:
        """The entry of that key, made now if it is not there."""
        with self._lock:
            if key in self._entries:
                self.hits += 1
                self._entries.move_to_end(key)
                return self._entries[key]
            self.misses += 1
            self._entries[key] = value = make()
            if len(self._entries) > self._capacity:
                self._entries.popitem(last=False)
            return value
