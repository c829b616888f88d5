"""Counts, percentiles and rates of a running node, bounded in memory and safe between threads."""

from collections import Counter, deque
from dataclasses import dataclass
import math
import threading

_BUCKETS = 10  # of a window; a rate is that much smoother than its window is long


@dataclass(frozen=True)
class Summary:
    """Percentiles of the newest samples, in their unit."""

    p50: float
    p95: float
    max: float


class DropCounter:
    """Counts events by a word that names their kind."""

    def __init__(self):
        self._counts: Counter[str] = Counter()
        self._lock = threading.Lock()

    def add(self, kind: str):
        """Count one event."""
        with self._lock:
            self._counts[kind] += 1

    def counts(self) -> dict[str, int]:
        """Give the count of every kind so far, the most frequent first."""
        with self._lock:
            return dict(self._counts.most_common())

    @property
    def total(self) -> int:
        """Give the number of all events."""
        with self._lock:
            return self._counts.total()


class Percentiles:
    """Percentiles of the newest samples."""

    def __init__(self, size: int = 256):
        """Keep that many samples."""
        self._samples: deque[float] = deque(maxlen=size)
        self._lock = threading.Lock()

    def add(self, sample: float):
        """Add one sample; one that is not finite is left out."""
        if math.isfinite(sample):
            with self._lock:
                self._samples.append(sample)

    def summary(self) -> Summary | None:
        """
        Give the percentiles, or None before the first sample.

        A percentile is the smallest sample that so many percent of them do not exceed.
        """
        with self._lock:
            ordered = sorted(self._samples)
        if not ordered:
            return None
        p50, p95 = (ordered[math.ceil(share * len(ordered)) - 1] for share in (0.50, 0.95))
        return Summary(p50, p95, ordered[-1])


class StageTimes:
    """Percentiles of the seconds that named stages of a frame take; stages may appear later."""

    def __init__(self, *stages: str):
        """stages: those that are listed first, in this order."""
        self._stages = {stage: Percentiles() for stage in stages}
        self._lock = threading.Lock()

    def add(self, stage: str, seconds: float):
        """Add one sample of a stage."""
        with self._lock:
            samples = self._stages.setdefault(stage, Percentiles())
        samples.add(seconds)

    def summary(self, stage: str) -> Summary | None:
        """Give the percentiles of a stage, or None before its first sample."""
        with self._lock:
            samples = self._stages.get(stage)
        return None if samples is None else samples.summary()

    def summaries(self) -> dict[str, Summary]:
        """Give the percentiles of every stage that has samples."""
        with self._lock:
            stages = list(self._stages.items())
        found = ((stage, samples.summary()) for stage, samples in stages)
        return {stage: summary for stage, summary in found if summary is not None}


class Rate:
    """How often something happened in the last seconds; any number of events takes no memory."""

    def __init__(self, window: float = 5.0):
        """window: seconds that count."""
        self._width = window / _BUCKETS
        self._buckets: deque[list[int]] = deque(maxlen=_BUCKETS + 1)  # index, events
        self._first: float | None = None
        self._lock = threading.Lock()

    def add(self, now: float, count: int = 1):
        """Count events; now: seconds of a clock that neither jumps nor stops."""
        if not count:
            return
        index = math.floor(now / self._width)
        with self._lock:
            if self._first is None:
                self._first = now
            if not self._buckets or self._buckets[-1][0] < index:
                self._buckets.append([index, 0])
            self._buckets[-1][1] += count

    def per_second(self, now: float) -> float:
        """Give the rate, Hz; 0 once the window has passed without an event."""
        oldest = math.floor(now / self._width) - _BUCKETS
        with self._lock:
            if self._first is None:
                return 0.0
            events = sum(count for index, count in self._buckets if index >= oldest)
            start = max(oldest * self._width, self._first)
        return events / max(now - start, self._width)
