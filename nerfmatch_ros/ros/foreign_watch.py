"""Notices somebody else who publishes the transforms that are ours to publish."""

from collections import deque
from collections.abc import Callable
import threading
import time

STAMPS_KEPT = 512  # of our own; more than are on their way, even to a listener that is starved
CHILDREN_KEPT = 16


class ForeignWatch:
    """
    Tells our own transforms, heard back, from those of others for the same child.

    Two publishers of one child make it flicker between two places, and no node reports that. Who
    sent a message cannot be told everywhere, so ours are known by their stamps. Thread safe.
    """

    def __init__(self, *children: str, clock: Callable[[], float] = time.monotonic):
        """children: frames that are ours from the start, before anything is sent for them."""
        self._clock = clock
        self._lock = threading.Lock()
        self._sent: dict[str, deque[int]] = {
            child: deque(maxlen=STAMPS_KEPT) for child in children}
        self._heard: dict[str, tuple[str, float]] = {}  # parent and time of the last foreign one
        self.count = 0  # foreign transforms so far

    def sent(self, child: str, stamp_ns: int):
        """Note a transform of ours, before it goes out."""
        with self._lock:
            if child not in self._sent:
                if len(self._sent) >= CHILDREN_KEPT:
                    del self._sent[next(iter(self._sent))]
                self._sent[child] = deque(maxlen=STAMPS_KEPT)
            self._sent[child].append(stamp_ns)

    def heard(self, parent: str, child: str, stamp_ns: int, static: bool) -> bool:
        """Take note of a transform on /tf or /tf_static; True if it is not ours but should be."""
        with self._lock:
            ours = self._sent.get(child)
            if ours is None or (not static and stamp_ns in ours):
                return False
            self._heard[child] = parent, self._clock()
            self.count += 1
            return True

    def foreign(self, within: float = 10.0) -> dict[str, str]:
        """Give child -> parent of foreign transforms of the last `within` seconds."""
        now = self._clock()
        with self._lock:
            return {child: parent for child, (parent, at) in self._heard.items()
                    if now - at <= within}
