"""The thread that localizes: takes the newest image, and outlives whatever goes wrong with it."""

from collections.abc import Callable
import gc
import threading
import time
import traceback
from typing import Any

from nerfmatch_ros.errors import NerfmatchError
from nerfmatch_ros.ros.newest_image import NewestImage
from nerfmatch_ros.ros.unexpected_errors import UnexpectedErrors
import torch

OUT_OF_MEMORY_LIMIT = 3  # frames in a row
# What CUDA says once its context cannot be used any more.
_LOST_GPU = ('CUDA error', 'device-side assert', 'unspecified launch failure')


def drop_kind(error: Exception) -> str:
    """Give the word under which a frame that raised is counted."""
    if isinstance(error, torch.cuda.OutOfMemoryError):  # the name that every PyTorch has
        return 'out_of_memory'
    if isinstance(error, NerfmatchError):
        return getattr(error, 'kind', 'unusable')
    return 'exception'


class FrameWorker:
    """
    Calls `work(message)` for the newest message, on a thread of its own.

    A frame that raises is dropped: NerfmatchError with its `kind`, anything else with its
    traceback. Out of memory thrice in a row, or a lost GPU, is handed to `give_up`. What a frame
    raises after `stop` was called, as parts of the node are gone, is nobody's concern.
    """

    def __init__(
        self, work: Callable[[Any], None], unexpected: UnexpectedErrors, *,
        drop: Callable[[str, str], None], is_ready: Callable[[Any], bool],
        give_up: Callable[[str, bool], None], save_memory: Callable[[], None],
    ):
        """
        Start the thread.

        unexpected: gets what nobody expected; drop: counts a kind with its text; is_ready: a
        message that is not waits; give_up: gets the reason and whether the process cannot go on;
        save_memory: makes frames smaller.
        """
        self._work, self._drop, self._give_up = work, drop, give_up
        self._save_memory = save_memory
        self._unexpected = unexpected
        self.slot = NewestImage(is_ready)
        self.out_of_memory = 0
        self.busy_since: float | None = None  # time.monotonic() of the frame being worked on
        self.busy_seconds = 0.0  # with all frames so far
        self._in_a_row = 0
        self._saved_memory = False
        self.thread = threading.Thread(target=self._run, name='localizer', daemon=True)
        self.thread.start()

    def stop(self, seconds: float):
        """End the thread after the frame it is at, and wait for that for so long."""
        self.slot.close()
        self.thread.join(seconds)

    def _run(self):
        while not self.slot.closed:
            try:
                self._work_on_next()
            except Exception:  # noqa: BLE001 - the thread lives on, whatever its parts raise
                self._unexpected.note('taking an image')
                self.slot.clear()  # it may be this image that cannot be taken

    def _work_on_next(self):
        message = self.slot.take()
        if message is None:
            return
        self.busy_since = time.monotonic()
        try:
            self._work(message)
            self._in_a_row = 0
        except Exception as error:  # noqa: BLE001 - whatever it is, the next image may do
            if not self.slot.closed:
                self._on_failure(error)
        finally:
            self.busy_seconds += time.monotonic() - self.busy_since
            self.busy_since = None

    def _on_failure(self, error: Exception):
        kind = drop_kind(error)
        if kind != 'out_of_memory':
            self._in_a_row = 0
        if kind == 'out_of_memory':
            self._on_out_of_memory(error)
        elif kind == 'exception':
            self._on_unexpected(error)
        else:
            self._drop(kind, str(error))

    def _on_out_of_memory(self, error: Exception):
        self.out_of_memory += 1
        self._in_a_row += 1
        self._drop('out_of_memory', f'the GPU has no memory left for it: {error}')
        # What the failed computation holds would stay until the error is forgotten.
        traceback.clear_frames(error.__traceback__)
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

    def _on_unexpected(self, error: Exception):
        self._unexpected.note('a frame')
        self._drop('exception', f'{type(error).__name__}: {error}')
        if any(text in str(error) for text in _LOST_GPU):
            self._give_up(f'the GPU is lost ({error}); the process ends so that it can be '
                          'started again', True)
