"""Where the body is, whether that is believed, and what a node may publish of it.

    UNLOCALIZED  --fixes agree-->            LOCALIZED
    LOCALIZED    --frame failed or gated-->  COASTING
    COASTING     --fix accepted-->           LOCALIZED
    COASTING     --frames failed, or time--> LOST
    LOST         --fixes agree-->            LOCALIZED

One fix is never believed on its own where nothing is known: the first fixes have to agree with
each other, or one of them with a prior. Otherwise one wrong start would make every good fix that
follows look like an outlier. Fixes that are gated win in the same way, by agreeing.
"""

from collections import Counter
from dataclasses import dataclass
from enum import Enum
import logging
import math

from nerfmatch_ros.errors import ConfigError
from nerfmatch_ros.localization.body_pose import usable_covariance
from nerfmatch_ros.localization.pose_history import (
    Fix,
    fixes_agree,
    HistoryOptions,
    PoseHistory,
    Verdict,
)
from nerfmatch_ros.localization.pose_prior import PosePrior
from nerfmatch_ros.localization.rigid_motion import distance, is_pose
import numpy as np

logger = logging.getLogger(__name__)

# Metres and radians by which odometry may step at once; less is not told from its jitter.
_ODOMETRY_SLACK = (0.1, 0.1)
_RESTART_NS = 10 ** 9  # stamps that fall back by more, in a new epoch, are of a new run


class TrackerState(Enum):
    """How far the pose can be believed."""

    UNLOCALIZED = 'unlocalized'  # no fix has been confirmed in this epoch
    LOCALIZED = 'localized'  # the last frame gave an accepted fix
    COASTING = 'coasting'  # the last frames did not; the pose follows odometry
    LOST = 'lost'  # for so long that the whole map is searched


@dataclass(frozen=True)
class TrackerOptions:
    """When the tracker believes, doubts and gives up."""

    history: HistoryOptions = HistoryOptions()
    init_consistent_fixes: int = 2  # that have to agree before the first pose
    relocalize_after_rejects: int = 3  # gated fixes in a row that win if they agree
    lost_after_failures: int = 3  # frames in a row without an accepted fix
    lost_timeout: float = 5.0  # seconds without an accepted fix; 0: never lost by time

    def __post_init__(self):
        """Refuse values that no tracker can work with."""
        for name in ('init_consistent_fixes', 'relocalize_after_rejects', 'lost_after_failures'):
            if getattr(self, name) < 1:
                raise ConfigError(f'{name} is {getattr(self, name)}; it must be at least 1')
        if not (math.isfinite(self.lost_timeout) and self.lost_timeout >= 0):
            raise ConfigError(f'lost_timeout is {self.lost_timeout:g}; it must be a number of '
                              'at least 0')


@dataclass(frozen=True, eq=False)
class TrackedPose:
    """The fused pose of the body at the stamp of an image."""

    stamp_ns: int
    map_from_base: np.ndarray  # (4, 4)
    covariance: np.ndarray  # (6, 6)
    map_from_odom: np.ndarray | None = None  # (4, 4); None without odometry


@dataclass(frozen=True, eq=False)
class FixOutcome:
    """What became of a fix."""

    # accepted; relocalized: others overruled the history; pending: waits for others to agree;
    # gated; stale: its stamp is taken or too old; invalid: not a pose or not a covariance
    verdict: str
    pose: TrackedPose | None = None  # to be published; None: must not be
    jump: tuple[float, float] | None = None  # metres, radians of the body, when relocalized


class PoseTracker:
    """
    Fuses fixes and decides what is believed. Not thread safe: whoever shares it locks it.

    state, epoch, counts, consecutive_rejects, consecutive_failures: to be read by anybody.
    counts: Counter of accepted, relocalized, pending, gated, stale, invalid, failed, and what
    add_refined gives, a leading 'refined_' added to its 'accepted'.
    options: may be replaced at any time.
    """

    def __init__(self, options: TrackerOptions | None = None):
        """Start UNLOCALIZED in epoch 0."""
        self.epoch = 0
        self.counts: Counter[str] = Counter()
        self._history = PoseHistory()
        self.options = options or TrackerOptions()
        self._given_out: tuple[int, int] | None = None  # epoch and newest stamp of a pose
        self._forget()

    @property
    def options(self) -> TrackerOptions:
        """Give the options in use."""
        return self._options

    @options.setter
    def options(self, options: TrackerOptions):
        self._options = options
        self._history.options = options.history

    @property
    def map_from_odom(self) -> np.ndarray | None:
        """Give map_from_odom (4, 4) after the newest fix; None without odometry or fix."""
        return self._history.map_from_odom

    def add_fix(self, fix: Fix) -> FixOutcome:
        """Take the pose that one image gave."""
        if not (is_pose(fix.map_from_base) and usable_covariance(fix.covariance) and (
                fix.odom_from_base is None or is_pose(fix.odom_from_base))):
            outcome = FixOutcome('invalid')
            self._fail(fix.stamp_ns, self.options.lost_after_failures)
        elif self.state in (TrackerState.UNLOCALIZED, TrackerState.LOST):
            outcome = self._search(fix)
        else:
            outcome = self._track(fix)
        self.counts[outcome.verdict] += 1
        return outcome

    def add_failure(self, stamp_ns: int):
        """Take note of a frame that gave no pose."""
        self.counts['failed'] += 1
        self._fail(stamp_ns, self.options.lost_after_failures)

    def add_refined(
        self, stamp_ns: int, map_from_base: np.ndarray, covariance: np.ndarray,
    ) -> str:
        """
        Put a refined pose in the place of the fix of exactly this stamp.

        Gives accepted, refined_worse, refined_unknown_frame, refined_gated or refined_invalid;
        unless it is accepted nothing changes but the count.
        """
        verdict = self._replace(stamp_ns, map_from_base, covariance)
        self.counts['refined_accepted' if verdict == 'accepted' else verdict] += 1
        return verdict

    def predict(
        self, stamp_ns: int, odom_from_base: np.ndarray | None,
    ) -> tuple[np.ndarray, np.ndarray] | None:
        """
        Give map_from_base (4, 4) and covariance (6, 6) where the body should be at a stamp.

        None when nothing is known, so that the whole map has to be searched.
        """
        if self.state is TrackerState.UNLOCALIZED:
            if self._prior is None:
                return None
            prior = self._prior.at(stamp_ns, odom_from_base, self.options.history)
            return prior.map_from_base, prior.covariance
        if self.state is TrackerState.LOST:
            return None
        return self._history.predict(stamp_ns, odom_from_base)

    def set_prior(self, map_from_base: np.ndarray, covariance: np.ndarray, *, source: str):
        """
        Begin a new epoch near a pose that somebody states; a fix has to confirm it.

        covariance: (6, 6); variances of 0 count as unknown and become those of a pose given by
        hand. source: whose pose it is, for the log and for the DataError of an unusable one
        """
        prior = PosePrior(map_from_base, covariance, source=source)
        self.reset(f'pose from {source}')
        self._prior = prior

    def observe_odometry(self, stamp_ns: int, odom_from_base: np.ndarray) -> bool:
        """
        Watch odometry for steps that no body can make.

        True: it was faster than twice max_speed or max_turn_rate, and a new epoch has begun.
        Stamps older than the last one are not looked at.
        """
        last = self._odometry
        if last is not None and stamp_ns < last[0]:
            return False
        self._odometry = stamp_ns, odom_from_base
        if last is None:
            return False
        seconds = (stamp_ns - last[0]) * 1e-9
        metres, radians = distance(last[1], odom_from_base)
        history = self.options.history
        if (metres <= 2 * history.max_speed * seconds + _ODOMETRY_SLACK[0]
                and radians <= 2 * history.max_turn_rate * seconds + _ODOMETRY_SLACK[1]):
            return False
        self.reset(f'odometry jumped by {metres:.2f} m and {math.degrees(radians):.0f} degrees '
                   f'in {seconds:.3f} s')
        self._odometry = stamp_ns, odom_from_base
        return True

    def tick(self, seconds_since_accepted: float) -> bool:
        """Give up after lost_timeout without an accepted fix; True if that is now."""
        timeout = self.options.lost_timeout
        if (self.state not in (TrackerState.LOCALIZED, TrackerState.COASTING)
                or timeout == 0 or seconds_since_accepted < timeout):
            return False
        self.state = TrackerState.LOST
        return True

    def reset(self, reason: str):
        """Begin a new epoch: drop everything known; results of the old one no longer fit."""
        self.epoch += 1
        logger.info('Pose tracking starts anew, epoch %d: %s', self.epoch, reason)
        self._forget()

    def _forget(self):
        self.state = TrackerState.UNLOCALIZED
        self.consecutive_rejects = 0
        self.consecutive_failures = 0
        self._history.clear()
        self._pending: list[Fix] = []  # the newest fixes that wait; each agrees with all others
        self._prior: PosePrior | None = None
        self._odometry: tuple[int, np.ndarray] | None = None

    def _search(self, fix: Fix) -> FixOutcome:
        """Take a fix while nothing is believed."""
        if any(fix.stamp_ns == other.stamp_ns for other in self._pending):
            return FixOutcome('stale')
        self._add_pending(fix)
        confirmed = self._prior is not None and self._prior.confirms(fix, self.options.history)
        if not confirmed and len(self._pending) < self.options.init_consistent_fixes:
            return FixOutcome('pending')
        return self._believe_pending(fix)

    def _track(self, fix: Fix) -> FixOutcome:
        """Take a fix while the pose is known."""
        verdict = self._history.add(fix)
        if verdict is Verdict.STALE:
            return FixOutcome('stale')
        newest = fix.stamp_ns == self._history.newest_stamp_ns
        if not newest:
            self._recount()
        elif verdict is Verdict.ACCEPTED:
            self._settle()
        if verdict is Verdict.ACCEPTED:
            return FixOutcome('accepted', self._publishable(fix))
        if newest:
            self.consecutive_rejects += 1
            self._add_pending(fix)
            needed = self.options.relocalize_after_rejects
            if len(self._pending) >= needed:
                return self._believe_pending(fix)
            # Gated fixes win by agreeing in this number, never earlier by way of LOST.
            self._fail(fix.stamp_ns, max(needed, self.options.lost_after_failures))
        return FixOutcome('gated')

    def _believe_pending(self, fix: Fix) -> FixOutcome:
        """Start a fresh history from the fixes that agree; the old one tells how far that is."""
        old = self._history.predict(fix.stamp_ns, fix.odom_from_base)
        overruled = old is not None and not fixes_agree(
            Fix(fix.stamp_ns, *old, fix.odom_from_base), fix, self.options.history)
        self._history.clear()
        for pending in self._pending:
            self._history.add(pending)
        self._prior = None
        self._settle()
        if not overruled:
            return FixOutcome('accepted', self._publishable(fix))
        new, _ = self._history.predict(fix.stamp_ns, fix.odom_from_base)
        return FixOutcome('relocalized', self._publishable(fix), distance(old[0], new))

    def _replace(
        self, stamp_ns: int, map_from_base: np.ndarray, covariance: np.ndarray,
    ) -> str:
        if not (is_pose(map_from_base) and usable_covariance(covariance)):
            return 'refined_invalid'
        if self.state not in (TrackerState.LOCALIZED, TrackerState.COASTING):
            return 'refined_unknown_frame'  # what is held of the time before is not believed
        verdict = self._history.replace(
            stamp_ns, np.asarray(map_from_base), np.asarray(covariance))
        if verdict is Verdict.ACCEPTED:
            self._recount()
        return _REFINED[verdict]

    def _settle(self):
        self.state = TrackerState.LOCALIZED
        self.consecutive_rejects = self.consecutive_failures = 0
        self._pending = []

    def _recount(self):
        """Follow the history after a change in its past: fixes may be freed, or refused."""
        gated = self._history.gated_at_end
        self.consecutive_failures += len(gated) - self.consecutive_rejects
        self.consecutive_rejects = len(gated)
        if self.consecutive_failures == 0:
            self._settle()
            return
        self.state = TrackerState.COASTING
        self._pending = []
        for fix in gated:
            self._add_pending(fix)

    def _fail(self, stamp_ns: int, limit: int):
        """Take note of a frame without an accepted fix; LOST once there are `limit` in a row."""
        newest = self._history.newest_stamp_ns
        if newest is not None and stamp_ns < newest:
            return  # a later frame has told more
        self.consecutive_failures += 1
        if self.state is TrackerState.LOCALIZED:
            self.state = TrackerState.COASTING
        if self.state is TrackerState.COASTING and self.consecutive_failures >= limit:
            self.state = TrackerState.LOST

    def _add_pending(self, fix: Fix):
        """Keep of the waiting fixes the newest ones in a row that agree with this one."""
        agreeing = [fix]
        for other in reversed(self._pending):
            if not fixes_agree(other, fix, self.options.history):
                break
            agreeing.append(other)
        self._pending = agreeing[::-1]

    def _publishable(self, fix: Fix) -> TrackedPose | None:
        """Give the fused pose at a fix, if its stamp is newer than all that were given out."""
        if self._given_out is not None:
            epoch, newest = self._given_out
            new_run = self.epoch > epoch and fix.stamp_ns < newest - _RESTART_NS
            if fix.stamp_ns <= newest and not new_run:
                return None
        self._given_out = self.epoch, fix.stamp_ns
        return TrackedPose(
            fix.stamp_ns, *self._history.predict(fix.stamp_ns, fix.odom_from_base),
            self._history.map_from_odom)


_REFINED = {
    Verdict.ACCEPTED: 'accepted',
    Verdict.GATED: 'refined_gated',
    Verdict.WORSE: 'refined_worse',
    Verdict.STALE: 'refined_unknown_frame',
    Verdict.UNKNOWN_FRAME: 'refined_unknown_frame',
}
