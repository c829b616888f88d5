"""What callbacks and threads raise although nobody expected it: logged, counted, survived."""

from collections import deque
from collections.abc import Callable
import functools
import threading
import time
import traceback
from typing import Any

from nerfmatch_ros.ros.ros_logging import Complaints

LIMIT, SECONDS = 10, 10.0  # so many in so many seconds are more than bad luck


class UnexpectedErrors:
    """Takes note of errors from any thread."""

    def __init__(self, logger):
        """Log to this logger of a node."""
        self.count = 0
        self.in_callbacks = 0  # of them
        self._complaints = Complaints(logger)
        self._recent: deque[float] = deque(maxlen=LIMIT)
        self._lock = threading.Lock()

    @property
    def failing(self) -> bool:
        """Tell whether there were 10 in the last 10 seconds."""
        with self._lock:
            return (len(self._recent) == LIMIT
                    and time.monotonic() - self._recent[0] < SECONDS)

    def note(self, what: str):
        """Count the exception that is being handled and log its traceback; what: failed."""
        with self._lock:
            self.count += 1
            self._recent.append(time.monotonic())
        self._complaints.error(what, f'{what} failed:\n{traceback.format_exc()}')

    def guard(self, callback: Callable[..., Any]) -> Callable[..., Any]:
        """
        Give a callback that notes what it raises: out of an executor it would end the process.

        A service that fails answers with what its response holds so far.
        """
        # rclpy looks at the parameters of a callback; `wraps` shows it those of the guarded one.
        @functools.wraps(callback)
        def guarded(*arguments: Any) -> Any:
            try:
                return callback(*arguments)
            except Exception:  # noqa: BLE001 - the next message may do
                self.in_callbacks += 1
                self.note(f'callback {callback.__name__.strip("_")}')
                return arguments[-1] if arguments else None
        return guarded
