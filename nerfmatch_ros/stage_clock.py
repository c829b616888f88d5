"""How long the stages of a computation take, measured where they run."""

from collections.abc import Iterator
from contextlib import contextmanager
import time
from typing import Any


class StageClock:
    """Times named stages; a stage within another one is called 'outer/inner'.

    On a GPU events are put into the stream and read at the end, so that measuring does not make
    the host wait.
    """

    def __init__(self, device: str = 'cpu'):
        self._events, self._device = str(device).startswith('cuda'), device
        self._open: list[str] = []
        self._marks: list[tuple[str, Any, Any]] = []

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time what runs inside."""
        self._open.append(name)
        path, start = '/'.join(self._open), self._now()
        try:
            yield
        finally:
            self._marks.append((path, start, self._now()))
            self._open.pop()

    def take(self) -> dict[str, float]:
        """Give the seconds of each stage since the last call, summed over its runs."""
        if self._events and self._marks:
            self._marks[-1][2].synchronize()
        seconds: dict[str, float] = {}
        for path, start, end in self._marks:
            taken = start.elapsed_time(end) / 1000 if self._events else end - start
            seconds[path] = seconds.get(path, 0.0) + taken
        self._marks.clear()
        return seconds

    def _now(self) -> Any:
        if not self._events:
            return time.perf_counter()
        import torch
        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self._device))
        return event
