"""How far a long work is, as lines of a log."""

from collections.abc import Callable
import logging
import math
import time

LOG = logging.getLogger(__name__)
SECONDS = 30.0  # between two lines of one stage


def log_progress() -> Callable[[str, float, dict], None]:
    """Give a function that logs a stage's progress in [0, 1] with its numbers, now and then."""
    logged: dict[str, float] = {}

    def report(stage: str, progress: float, numbers: dict | None = None) -> None:
        now = time.monotonic()
        if progress >= 1 or now > logged.get(stage, -math.inf) + SECONDS:
            logged[stage] = now
            LOG.info('%s: %.0f %% %s', stage, 100 * progress, ' '.join(
                f'{name} {value:.4g}' for name, value in (numbers or {}).items()))
    return report
