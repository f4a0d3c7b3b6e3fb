"""A bounded memory: what was used last stays."""

from collections import OrderedDict
from collections.abc import Callable, Hashable
from threading import Lock
from typing import Any, Generic, TypeVar

V = TypeVar("V")


class Cache(Generic[V]):
    """Values by key, as many as fit; the ones that nobody asked for the longest go first.

    One value is kept however large it is.

    Args:
        room: bytes.
        size: of a value, in bytes.
    """

    def __init__(self, room: int, size: Callable[[V], int]):
        self.room, self.size = room, size
        self._values: OrderedDict[Hashable, V] = OrderedDict()
        self._lock = Lock()

    @property
    def used(self) -> int:
        """Bytes."""
        with self._lock:
            return sum(map(self.size, self._values.values()))

    @property
    def largest(self) -> int:
        """Bytes of the largest value."""
        with self._lock:
            return max(map(self.size, self._values.values()), default=0)

    def __len__(self) -> int:
        return len(self._values)

    def keys(self) -> list[Hashable]:
        with self._lock:
            return list(self._values)

    def get(self, key: Hashable) -> V | None:
        with self._lock:
            if key in self._values:
                self._values.move_to_end(key)
            return self._values.get(key)

    def put(self, key: Hashable, value: V) -> None:
        with self._lock:
            self._values[key] = value
            self._values.move_to_end(key)
        self.spare(0)

    def spare(self, room: int) -> None:
        """Throw away until another value of `room` bytes would fit; with 0, until what is there does."""
        with self._lock:
            used = sum(map(self.size, self._values.values()))
            while used + room > self.room and len(self._values) > (0 if room else 1):
                _, gone = self._values.popitem(last=False)
                used -= self.size(gone)

    def drop(self, unwanted: Callable[[Any], bool]) -> None:
        """Throw away the values of all keys that are not wanted any more."""
        with self._lock:
            for key in [key for key in self._values if unwanted(key)]:
                del self._values[key]
