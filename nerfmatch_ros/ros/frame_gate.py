"""Which frames are worth localizing: told by their stamps, their bytes and their brightness."""

from collections.abc import Callable
from dataclasses import dataclass
import time

import numpy as np

SECOND = 1_000_000_000  # nanoseconds
MOST_SOURCES = 64  # cameras that a FrameGate remembers; a robot has fewer
_CLOCKS_DIFFER = 3600.0  # seconds; so far off is another clock, not a late frame
_SAMPLES = 4096  # pixels that the brightness is taken from
_DARK, _BRIGHT = 16.0, 239.0  # grey levels; all but a few pixels lie on the far side of one
_FLAT = 2.0  # grey levels of standard deviation


@dataclass(frozen=True)
class FrameGateOptions:
    """When frames are dropped; times in seconds."""

    max_image_age: float = 0.5  # an older frame is stale; 0 = off, for replay
    max_update_rate: float = 0.0  # frames per second that may pass; 0 = all
    max_future: float = 0.1  # a stamp may be ahead of the clock by that much
    restart: float = 1.0  # stamps that go back this far are a new run, such as a looping bag
    frozen_after: int = 10  # equal frames in a row that pass; further ones are frozen; 0 = off


@dataclass(frozen=True)
class Drop:
    """Why a frame is dropped."""

    kind: str  # stamp_zero duplicate out_of_order stale future rate frozen
    text: str  # cause, value and remedy


@dataclass
class _Source:
    """What is remembered of one camera."""

    newest_ns: int
    fingerprint: int
    equal: int = 1  # frames in a row with that fingerprint


class FrameGate:
    """
    Sifts the frames of one or several cameras before anything expensive happens to them.

    Stamps and the node's clock are integers in nanoseconds. Not thread safe: the subscription
    callbacks of a node run one at a time.
    """

    def __init__(
        self, options: FrameGateOptions | None = None, *,
        steady: Callable[[], float] = time.monotonic,
    ):
        """steady: a clock in seconds that neither jumps nor stops, for max_update_rate."""
        self.options = options or FrameGateOptions()  # may be replaced at any time
        self.restarted = False  # the last frame that was checked began a new run
        self._steady = steady
        self._sources: dict[str, _Source] = {}
        self._slot = -np.inf  # when the last frame to pass was due, on the steady clock

    def reset(self):
        """Forget the frames so far: the next one may have any stamp and is no new run."""
        self._sources.clear()
        self.restarted = False

    def check(
        self, stamp_ns: int, now_ns: int, fingerprint: int, source: str = '',
    ) -> Drop | None:
        """
        Say why a frame is to be dropped, or None.

        now_ns: the node's clock; fingerprint: equal for frames of equal bytes; source: the camera,
        as each has stamps of its own. What the clock speaks against is not remembered: a single
        wrong stamp does not make the right ones look wrong.
        """
        self.restarted = False
        drop = clock_fault(stamp_ns, now_ns, self.options)
        if drop is not None:
            return drop
        known = self._sources.get(source)
        if known is not None:
            behind = (known.newest_ns - stamp_ns) / SECOND
            if behind >= self.options.restart:
                self.reset()
                self.restarted, known = True, None
            elif behind == 0:
                return Drop('duplicate', 'its stamp came before; are there two publishers?')
            elif behind > 0:
                return Drop('out_of_order', f'it is {behind * 1e3:.1f} ms older than the one '
                                            'before; has the topic two publishers?')
        return self._frozen(stamp_ns, fingerprint, source, known) or self._too_soon()

    def _frozen(
        self, stamp_ns: int, fingerprint: int, source: str, known: _Source | None,
    ) -> Drop | None:
        """Remember the frame; say if it is one too many of the same."""
        if known is None or known.fingerprint != fingerprint:
            self._sources[source] = _Source(stamp_ns, fingerprint)
            if len(self._sources) > MOST_SOURCES:
                del self._sources[next(iter(self._sources))]
            return None
        known.newest_ns = stamp_ns
        known.equal += 1
        if not self.options.frozen_after or known.equal <= self.options.frozen_after:
            return None
        return Drop('frozen', f'{known.equal} frames in a row have the same bytes: the camera is '
                              'frozen; restart its driver, or set frozen_after to 0 for a '
                              'simulated one without noise')

    def _too_soon(self) -> Drop | None:
        """Say if the frame exceeds max_update_rate."""
        rate = self.options.max_update_rate
        if rate <= 0:
            return None
        now, period = self._steady(), 1 / rate
        if now < self._slot + period:
            return Drop('rate', f'max_update_rate lets {rate:g} frames a second pass')
        # A frame that comes late, within half a period, does not delay the next: with a camera
        # of 30 Hz, 20 a second pass and not 15.
        self._slot = max(self._slot + period, now - period / 2)
        return None


def clock_fault(stamp_ns: int, now_ns: int, options: FrameGateOptions) -> Drop | None:
    """Say why a stamp does not go with the clock: zero, stale or future; None if it does.

    A frame that waited may be asked about again before it is worked on.
    """
    if stamp_ns <= 0:
        return Drop('stamp_zero', f'its stamp is {stamp_ns / SECOND:g} s: a pose needs the time '
                                  'it is of; have the driver set header.stamp, or set '
                                  'stamp_zero_as_now')
    age = (now_ns - stamp_ns) / SECOND
    if 0 < options.max_image_age < age:
        return Drop('stale', f'it is {age:.3f} s old, more than max_image_age '
                             f'({options.max_image_age:g} s){_hint(age, now_ns)}')
    if age < -options.max_future:
        return Drop('future', f'its stamp is {-age:.3f} s ahead of the clock; synchronize the '
                              f'clocks{_hint(age, now_ns)}')
    return None


def picture_fault(rgb: np.ndarray) -> str:
    """
    Say why a picture (H, W, 3), uint8, shows nothing: dark, saturated or flat; '' if it may do.

    Told from the brightness of a sample of the pixels. A blurred picture passes: whether it has
    enough detail is for the matcher to say.
    """
    height, width = rgb.shape[:2]
    # Scattered, as a regular grid would take a pattern of its own period for a flat picture; the
    # same pixels every time, so that equal pictures are judged equally.
    generator = np.random.default_rng(0)
    sample = rgb[generator.integers(height, size=_SAMPLES),
                 generator.integers(width, size=_SAMPLES)].astype(np.float32)
    mean, deviation = sample.mean(axis=0), sample.std(axis=0)
    if (mean + 2 * deviation < _DARK).all():
        return 'dark'
    if (mean - 2 * deviation > _BRIGHT).all():
        return 'saturated'
    if (deviation < _FLAT).all():
        return 'flat'
    return ''


def _hint(age: float, now_ns: int) -> str:
    """Say what makes a stamp differ from the clock by so many seconds, if that is clear."""
    if abs(age) < _CLOCKS_DIFFER:
        return ''
    if now_ns == 0:
        return '; use_sim_time is set, but nobody publishes /clock'
    return ('; its clock is another one: set use_sim_time to true where a bag or a simulation '
            'publishes /clock, and to false where nobody does')
