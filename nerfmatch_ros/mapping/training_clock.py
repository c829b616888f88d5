"""How far a training is: by steps or by minutes, surviving interruptions."""

import time
from typing import TYPE_CHECKING

from nerfmatch_ros.errors import ConfigError
from nerfmatch_ros.mapping.engine import from_first

if TYPE_CHECKING:
    from lightning_fabric import Fabric


class TrainingClock:
    """Progress in [0, 1] of a training that ends after `steps` steps or `minutes` minutes.

    Whichever comes first ends it, and the schedule follows whichever is further: a slow or busy
    machine makes fewer steps and still ends well, a fast one does not idle through its minutes.
    Time spent before an interruption counts. With an engine of several processes the first one's
    time counts for all, so that they end with the same step.
    """

    def __init__(self, *, steps: int, minutes: float | None = None,
                 engine: 'Fabric | None' = None):
        if steps < 1 or (minutes is not None and not minutes > 0):
            raise ConfigError(f'a training of {steps} steps and {minutes} minutes is asked for; '
                              'both must be positive')
        self.steps, self.minutes, self.engine = steps, minutes, engine
        self.step, self.seconds = 0, 0.0
        self._last = None

    @property
    def progress(self) -> float:
        """Share of the training that is done."""
        by_time = 0.0 if self.minutes is None else self.seconds / (60 * self.minutes)
        return min(1.0, max(self.step / self.steps, by_time))

    @property
    def running(self) -> bool:
        """Whether another step is due."""
        return self.progress < 1

    def tick(self) -> None:
        """Count one finished step and the time since the last one."""
        now = time.monotonic()
        if self._last is not None:
            self.seconds += now - self._last
        self._last = now
        self.step += 1
        if self.minutes is not None and self.engine is not None:
            self.seconds = from_first(self.engine, self.seconds)

    def pause(self) -> None:
        """Leave out the time until the next `tick` (checkpoints, evaluation)."""
        self._last = None

    def state(self) -> dict:
        """Give what `restore` needs."""
        return {'step': self.step, 'seconds': self.seconds}

    def restore(self, state: dict) -> None:
        """Go on from a saved state."""
        self.step, self.seconds, self._last = state['step'], state['seconds'], None
