"""A slot for one image: the newest one waits."""

from collections.abc import Callable
import threading
from typing import Any


class NewestImage:
    """
    Hands messages from the executor to one worker, of which only the newest is kept.

    Inference is slower than a camera; a queue would make every pose older than it need be.
    """

    def __init__(self, is_ready: Callable[[Any], bool]):
        """is_ready: tells whether a message can be worked on; until then it waits in the slot."""
        self._is_ready = is_ready
        self._changed = threading.Condition()
        self._message: Any = None
        self.closed = False

    def put(self, message: Any) -> Any:
        """
        Store a message; give the one that is dropped for it, or None.

        That is the older one, but for a message that is not ready while the waiting one is: a
        camera that nothing is known of does not keep the pictures of another one back.
        """
        with self._changed:
            if self.closed:
                return None
            if (self._message is not None and self._is_ready(self._message)
                    and not self._is_ready(message)):
                return message
            replaced, self._message = self._message, message
            self._changed.notify()
            return replaced

    def look_again(self):
        """Say that the waiting message may have become ready."""
        with self._changed:
            self._changed.notify()

    def waiting(self) -> Any:
        """Give the message that waits, without taking it, or None."""
        with self._changed:
            return self._message

    def take(self) -> Any:
        """Wait for a message that is ready and take it; None once the slot is closed."""
        with self._changed:
            self._changed.wait_for(lambda: self.closed or (
                self._message is not None and self._is_ready(self._message)))
            message, self._message = self._message, None
            return None if self.closed else message

    def clear(self):
        """Drop the message that waits."""
        with self._changed:
            self._message = None

    def close(self):
        """End the waiting of the worker; what is in the slot is dropped."""
        with self._changed:
            self.closed = True
            self._message = None
            self._changed.notify_all()
