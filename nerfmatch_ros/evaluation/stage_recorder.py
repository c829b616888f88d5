"""Wall time and CPU time of the stages of a localization, and how often each ran."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
import time

from nerfmatch_ros.stage_clock import StageClock


@dataclass(frozen=True)
class StageCost:
    """What a stage took in one localization."""

    wall: float  # seconds
    cpu: float  # seconds, of all threads of the process
    runs: int = 1  # how often it was entered


class StageRecorder:
    """Takes the place of a `StageClock` and measures CPU time as well.

    On a GPU wall times are the stream's and CPU times the host's.
    """

    def __init__(self, device: str = 'cpu'):
        self._clock = StageClock(device)
        self._open: list[str] = []
        self._cpu: dict[str, float] = {}
        self._runs: dict[str, int] = {}

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Measure what runs inside."""
        self._open.append(name)
        path, start = '/'.join(self._open), time.process_time()
        try:
            with self._clock.stage(name):
                yield
        finally:
            self._cpu[path] = self._cpu.get(path, 0.0) + time.process_time() - start
            self._runs[path] = self._runs.get(path, 0) + 1
            self._open.pop()

    def take(self) -> dict[str, StageCost]:
        """Give what each stage took since the last call; 'outer/inner' lies within 'outer'."""
        taken = {path: StageCost(wall, self._cpu[path], self._runs[path])
                 for path, wall in self._clock.take().items()}
        self._cpu.clear()
        self._runs.clear()
        return taken
