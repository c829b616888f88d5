"""The newest image messages by stamp, bounded in bytes."""

from collections import OrderedDict
import threading
from typing import Any


class FrameRing:
    """Keeps images until their pose comes; the oldest goes first. One thread puts, any takes."""

    def __init__(self, max_bytes: int):
        """max_bytes: of picture data; a single larger image is still kept."""
        self._max_bytes = max_bytes
        self._bytes = 0
        self._messages: OrderedDict[int, Any] = OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._messages)

    def put(self, stamp_ns: int, message: Any):
        """Keep a message."""
        with self._lock:
            if stamp_ns in self._messages:
                return
            self._messages[stamp_ns] = message
            self._bytes += len(message.data)
            while self._bytes > self._max_bytes and len(self._messages) > 1:
                _, oldest = self._messages.popitem(last=False)
                self._bytes -= len(oldest.data)

    def take(self, stamp_ns: int) -> Any:
        """Give the message of exactly that stamp, or None; older ones are forgotten with it."""
        with self._lock:
            message = self._messages.get(stamp_ns)
            if message is None:
                return None
            for stamp in [stamp for stamp in self._messages if stamp <= stamp_ns]:
                self._bytes -= len(self._messages.pop(stamp).data)
            return message

    def clear(self):
        """Forget everything."""
        with self._lock:
            self._messages.clear()
            self._bytes = 0
