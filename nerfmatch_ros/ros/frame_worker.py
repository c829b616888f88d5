"""The thread that localizes: takes the newest image, and outlives whatever goes wrong with it."""

from collections import deque
from collections.abc import Callable
import gc
import threading
import time
import traceback
from typing import Any

from nerfmatch_ros.errors import NerfmatchError
from nerfmatch_ros.ros.newest_image import NewestImage
from nerfmatch_ros.ros.ros_logging import Complaints
import torch

JOIN_SECONDS = 4.0  # ros2 launch loses patience after 5
OUT_OF_MEMORY_LIMIT = 3  # frames in a row
ERRORS, ERROR_SECONDS = 10, 10.0  # so many exceptions in so many seconds are an ERROR state
# What CUDA says once its context cannot be used any more.
_LOST_GPU = ('CUDA error', 'device-side assert', 'unspecified launch failure')


class FrameWorker:
    """
    Calls `work(message)` for the newest message, on a thread of its own.

    A frame that raises is dropped: NerfmatchError with its `kind`, anything else with its
    traceback. Out of memory thrice in a row, or a lost GPU, is handed to `give_up`.
    """

    def __init__(
        self, work: Callable[[Any], None], logger, *, drop: Callable[[str, str], None],
        is_ready: Callable[[Any], bool], give_up: Callable[[str, bool], None],
        save_memory: Callable[[], None],
    ):
        """
        Start the thread.

        drop: counts a kind with its text; is_ready: a message that is not waits; give_up: gets
        the reason and whether the process cannot go on; save_memory: makes frames smaller.
        """
        self._work, self._drop, self._give_up = work, drop, give_up
        self._save_memory = save_memory
        self._logger, self._complaints = logger, Complaints(logger)
        self.slot = NewestImage(is_ready)
        self.errors = 0  # exceptions that nobody expected
        self.out_of_memory = 0
        self.busy_since: float | None = None  # time.monotonic() of the frame being worked on
        self._recent_errors: deque[float] = deque(maxlen=ERRORS)
        self._in_a_row = 0
        self._saved_memory = False
        self._thread = threading.Thread(target=self._run, name='localizer', daemon=True)
        self._thread.start()

    @property
    def failing(self) -> bool:
        """Tell whether frames keep raising what nobody expected."""
        recent = self._recent_errors
        return len(recent) == ERRORS and time.monotonic() - recent[0] < ERROR_SECONDS

    def stop(self, seconds: float = JOIN_SECONDS) -> bool:
        """End the thread after the frame it is at; False if that takes longer."""
        self.slot.close()
        if threading.current_thread() is not self._thread:
            self._thread.join(seconds)
        return not self._thread.is_alive()

    def _run(self):
        while (message := self.slot.take()) is not None:
            self.busy_since = time.monotonic()
            try:
                self._work(message)
                self._in_a_row = 0
            except torch.OutOfMemoryError as error:
                self._on_out_of_memory(error)
            except NerfmatchError as error:
                self._drop(getattr(error, 'kind', 'unusable'), str(error))
            except Exception as error:  # noqa: BLE001 - whatever it is, the next image may do
                self._on_error(error)
            finally:
                self.busy_since = None
                del message  # a picture is not held while the next one is waited for

    def _on_out_of_memory(self, error: Exception):
        self.out_of_memory += 1
        self._in_a_row += 1
        self._drop('out_of_memory', f'the GPU has no memory left for it: {error}')
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        if not self._saved_memory:
            self._saved_memory = True
            self._save_memory()
        if self._in_a_row >= OUT_OF_MEMORY_LIMIT:
            self._in_a_row = 0
            self._give_up(f'out of memory in {OUT_OF_MEMORY_LIMIT} frames in a row; free the GPU '
                          'or lower max_gpu_memory_fraction of others, then activate again', False)

    def _on_error(self, error: Exception):
        self.errors += 1
        self._recent_errors.append(time.monotonic())
        self._drop('exception', f'{type(error).__name__}: {error}')
        self._complaints.error('traceback', f'a frame failed:\n{traceback.format_exc()}')
        if any(text in str(error) for text in _LOST_GPU):
            self._give_up(f'the GPU is lost ({error}); the process ends so that it can be '
                          'started again', True)
