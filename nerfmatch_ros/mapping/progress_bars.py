"""Progress of a build: bars on a terminal, lines in a log file."""

from collections.abc import Callable
import logging
import math
import time

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

LOG = logging.getLogger(__name__)
SECONDS = 30.0  # between two lines of one stage


class ProgressBars:
    """A bar for each stage while it is entered; not `shown`: of another process, silent."""

    def __init__(self, *, shown: bool):
        self._shown = shown
        self._progress = Progress(
            TextColumn('{task.description:<16}'), BarColumn(),
            TextColumn('{task.percentage:>3.0f}%'), TimeElapsedColumn(), TextColumn('eta'),
            TimeRemainingColumn(), TextColumn('{task.fields[numbers]}'),
            console=Console(stderr=True), disable=not shown)

    def __enter__(self) -> 'ProgressBars':
        self._progress.start()
        return self

    def __exit__(self, *error) -> None:
        self._progress.stop()

    def bar(self, name: str) -> Callable[[float, dict], None]:
        """Add a bar and give the function that moves it: progress in [0, 1] and numbers."""
        task = self._progress.add_task(name, total=1.0, numbers='')
        logged = -math.inf

        def report(done: float, numbers: dict | None = None) -> None:
            nonlocal logged
            text = ' '.join(f'{key} {value:.4g}' for key, value in (numbers or {}).items())
            self._progress.update(task, completed=done, numbers=text)
            # A bar is of no use in a log file, so lines take its place there.
            now = time.monotonic()
            if self._shown and not self._progress.console.is_terminal and (
                    done >= 1 or now > logged + SECONDS):
                logged = now
                LOG.info('%s: %.0f %% %s', name, 100 * done, text)
        return report
