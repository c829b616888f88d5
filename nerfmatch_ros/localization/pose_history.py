"""Fixes of the last seconds, fused with odometry; a late or refined one re-runs those after it.

A fix is the pose of the body measured in one image. Between fixes the body moves as odometry
says, or, without odometry, no faster than a bound. The state after each fix is the pose of the
body and its covariance there, so a heading error reaches later positions through the distance
driven and no covariance of map_from_odom is needed. Letters: P = covariance of the state,
R = covariance of a fix, S = P + R of the innovation, K = P S^-1 gain, D = odometry's motion
between two fixes, Q = its noise. Covariances are (6, 6) as in geometry/pose.py.
"""

from bisect import bisect_left, bisect_right
from dataclasses import dataclass, replace
from enum import Enum
import math
from typing import NamedTuple

from nerfmatch_ros.errors import ConfigError
from nerfmatch_ros.localization.rigid_motion import (
    difference,
    hat,
    inverse,
    perturb,
    rotation_log,
)
import numpy as np

GATE_CHI2 = 22.46  # chi square of 6 degrees of freedom, 99.9 %
_DRIFT = 1e-4  # square metres a second, and 1 % of it in square radians: even a body at rest
_IDENTITY = np.eye(6)


@dataclass(frozen=True)
class HistoryOptions:
    """How far back the history reaches and what motion it believes."""

    horizon: float = 10.0  # seconds before the newest fix; older ones are settled
    odom_noise_trans: float = 0.02  # standard deviation, metres per metre driven
    odom_noise_rot: float = 0.01  # radians per metre driven or per radian turned
    gate_chi2: float = GATE_CHI2  # a fix that is less likely than this is refused; 0: none is
    max_speed: float = 5.0  # metres a second, three standard deviations without odometry
    max_turn_rate: float = 3.0  # radians a second, the same

    def __post_init__(self):
        """Refuse values that are no bounds."""
        for name, value in vars(self).items():
            if not (math.isfinite(value) and value >= 0):
                raise ConfigError(f'{name} is {value:g}; it must be a number of at least 0')


@dataclass(frozen=True, eq=False)
class Fix:
    """The pose of the body at the stamp of one image."""

    stamp_ns: int
    map_from_base: np.ndarray  # (4, 4) float64
    covariance: np.ndarray  # (6, 6) float64, positive definite
    odom_from_base: np.ndarray | None = None  # (4, 4) at the stamp; None: motion unknown


class Verdict(Enum):
    """What became of a measurement."""

    ACCEPTED = 'accepted'
    GATED = 'gated'  # too far from the prediction
    STALE = 'stale'  # older than the horizon, or its stamp is taken
    UNKNOWN_FRAME = 'unknown_frame'  # refined, but no fix of exactly this stamp is held
    WORSE = 'worse'  # refined, but no more certain than what it would replace


class Motion(NamedTuple):
    """What odometry says happened between two stamps."""

    transform: np.ndarray  # (4, 4) first_base_from_second_base
    metres: float
    radians: float


class _State(NamedTuple):
    map_from_base: np.ndarray
    covariance: np.ndarray
    accepted: bool


class PoseHistory:
    """Ring of fixes in the order of their stamps, with the state after each of them."""

    def __init__(self, options: HistoryOptions | None = None):
        """options: may be replaced at any time; states change when they are next re-run."""
        self.options = options or HistoryOptions()
        self.clear()

    def clear(self):
        """Forget everything."""
        self._stamps: list[int] = []
        self._fixes: list[Fix] = []
        self._motions: list[Motion | None] = []  # from the fix before; the first is not used
        self._states: list[_State] = []
        self._settled = False  # the first state stands for fixes that were dropped

    def add(self, fix: Fix) -> Verdict:
        """Insert a fix at its place; one that is gated stays, a later change may free it."""
        i = bisect_left(self._stamps, fix.stamp_ns)
        taken = i < len(self._stamps) and self._stamps[i] == fix.stamp_ns
        if taken or self._too_old(fix.stamp_ns) or (i == 0 and self._settled):
            return Verdict.STALE
        self._stamps.insert(i, fix.stamp_ns)
        self._fixes.insert(i, fix)
        self._motions.insert(i, _motion(self._fixes[i - 1], fix) if i else None)
        if i + 1 < len(self._fixes):
            self._motions[i + 1] = _motion(fix, self._fixes[i + 1])
        self._states[i:] = self._run(i)
        verdict = Verdict.ACCEPTED if self._states[i].accepted else Verdict.GATED
        self._prune()
        return verdict

    def replace(
        self, stamp_ns: int, map_from_base: np.ndarray, covariance: np.ndarray,
    ) -> Verdict:
        """
        Put the refined pose of an image in the place of its fix, and re-run from there.

        The pixels are the same, so fusing both would count them twice. Unless the verdict is
        ACCEPTED nothing at all changes.
        """
        i = bisect_left(self._stamps, stamp_ns)
        if self._too_old(stamp_ns):
            return Verdict.STALE
        if i == len(self._stamps) or self._stamps[i] != stamp_ns or (i == 0 and self._settled):
            return Verdict.UNKNOWN_FRAME
        old = self._fixes[i]
        if np.trace(covariance[:3, :3]) >= np.trace(old.covariance[:3, :3]):
            return Verdict.WORSE
        refined = replace(old, map_from_base=map_from_base, covariance=covariance)
        # The first fix is compared with no prediction, so its refined pose is with the fix.
        if i == 0 and not self._passes(difference(old.map_from_base, map_from_base),
                                       old.covariance + covariance):
            return Verdict.GATED
        self._fixes[i] = refined
        states = self._run(i)
        if not states[0].accepted or self._contradicted(self._states[i + 1:], states[1:]):
            self._fixes[i] = old
            return Verdict.GATED
        self._states[i:] = states
        return Verdict.ACCEPTED

    def predict(
        self, stamp_ns: int, odom_from_base: np.ndarray | None,
    ) -> tuple[np.ndarray, np.ndarray] | None:
        """Give map_from_base and its covariance at a stamp, from the fixes up to it."""
        if not self._states:
            return None
        i = max(bisect_right(self._stamps, stamp_ns) - 1, 0)
        last, state = self._fixes[i], self._states[i]
        if stamp_ns == last.stamp_ns:
            return state.map_from_base, state.covariance
        seconds = abs(stamp_ns - last.stamp_ns) * 1e-9
        motion = motion_between(last.odom_from_base, odom_from_base)
        return propagate(state.map_from_base, state.covariance, motion, seconds, self.options)

    @property
    def map_from_odom(self) -> np.ndarray | None:
        """Give map_from_odom (4, 4) after the newest fix; None without odometry."""
        if not self._states or self._fixes[-1].odom_from_base is None:
            return None
        return self._states[-1].map_from_base @ inverse(self._fixes[-1].odom_from_base)

    @property
    def newest_stamp_ns(self) -> int | None:
        """Give the newest stamp, of a gated fix too."""
        return self._stamps[-1] if self._stamps else None

    @property
    def gated_at_end(self) -> list[Fix]:
        """Give the fixes after the last accepted one, all of them gated."""
        start = len(self._states)
        while start and not self._states[start - 1].accepted:
            start -= 1
        return self._fixes[start:]

    def __len__(self) -> int:
        """Count the fixes held."""
        return len(self._fixes)

    @property
    def _horizon_ns(self) -> int:
        return round(self.options.horizon * 1e9)

    def _too_old(self, stamp_ns: int) -> bool:
        return bool(self._stamps) and self._stamps[-1] - stamp_ns > self._horizon_ns

    def _run(self, start: int) -> list[_State]:
        """Give the states from fix `start` to the newest one."""
        state = self._states[start - 1] if start else None
        states = []
        for i in range(start, len(self._fixes)):
            state = self._step(state, i)
            states.append(state)
        return states

    def _step(self, before: _State | None, i: int) -> _State:
        fix = self._fixes[i]
        if before is None:
            return _State(fix.map_from_base, fix.covariance, True)
        seconds = (fix.stamp_ns - self._stamps[i - 1]) * 1e-9
        predicted, p = propagate(
            before.map_from_base, before.covariance, self._motions[i], seconds, self.options)
        innovation = difference(predicted, fix.map_from_base)
        # S^-1 (innovation | P) in one solution: the distance for the gate and the gain K^T.
        right = np.empty((6, 7))
        right[:, 0] = innovation
        right[:, 1:] = p
        solved = np.linalg.solve(p + fix.covariance, right)
        if 0 < self.options.gate_chi2 < innovation @ solved[:, 0]:
            return _State(predicted, p, False)
        gain = solved[:, 1:].T
        rest = _IDENTITY - gain
        p = rest @ p @ rest.T + gain @ fix.covariance @ gain.T  # Joseph form
        fused = perturb(predicted, gain @ innovation)
        # Rounding of odometry would pile up over hours; one Newton step to the nearest rotation.
        r = fused[:3, :3]
        fused[:3, :3] = 1.5 * r - 0.5 * r @ (r.T @ r)
        return _State(fused, (p + p.T) / 2, True)

    def _passes(self, delta: np.ndarray, s: np.ndarray) -> bool:
        limit = self.options.gate_chi2
        return limit == 0 or mahalanobis(delta, s) <= limit

    @staticmethod
    def _contradicted(before: list[_State], after: list[_State]) -> bool:
        """Say whether less than half as many of the later fixes would be believed."""
        return 2 * sum(s.accepted for s in after) < sum(s.accepted for s in before)

    def _prune(self):
        """Drop what is older than the horizon, but for the one state the others start from."""
        older = bisect_left(self._stamps, self._stamps[-1] - self._horizon_ns)
        if older > 1:
            self._settled = True
            for column in (self._stamps, self._fixes, self._motions, self._states):
                del column[:older - 1]


def propagate(
    map_from_base: np.ndarray, covariance: np.ndarray, motion: Motion | None, seconds: float,
    options: HistoryOptions,
) -> tuple[np.ndarray, np.ndarray]:
    """Move a pose (4, 4) and its covariance (6, 6) on; motion None: it may have gone anywhere."""
    if motion is None:
        moved, p = map_from_base, covariance.copy()
        position = (options.max_speed * seconds / 3) ** 2
        rotation = (options.max_turn_rate * seconds / 3) ** 2
    else:
        moved = map_from_base @ motion.transform
        f = _IDENTITY.copy()
        f[:3, 3:] = -hat(moved[:3, 3] - map_from_base[:3, 3])
        p = f @ covariance @ f.T
        position = (options.odom_noise_trans * motion.metres) ** 2 + _DRIFT * seconds
        rotation = ((options.odom_noise_rot * max(motion.metres, motion.radians)) ** 2
                    + 0.01 * _DRIFT * seconds)
    p.ravel()[:21:7] += position
    p.ravel()[21::7] += rotation
    return moved, p


def motion_between(
    odom_from_first: np.ndarray | None, odom_from_second: np.ndarray | None,
) -> Motion | None:
    """Give the motion from one pose in odometry to another, None if either is unknown."""
    if odom_from_first is None or odom_from_second is None:
        return None
    transform = inverse(odom_from_first) @ odom_from_second
    return Motion(transform, math.hypot(*transform[:3, 3].tolist()),
                  math.hypot(*rotation_log(transform[:3, :3]).tolist()))


def fixes_agree(first: Fix, second: Fix, options: HistoryOptions) -> bool:
    """Say whether two fixes can be of one body that moved as odometry or the bounds say."""
    if second.stamp_ns < first.stamp_ns:
        first, second = second, first
    seconds = (second.stamp_ns - first.stamp_ns) * 1e-9
    predicted, p = propagate(
        first.map_from_base, first.covariance, _motion(first, second), seconds, options)
    delta = difference(predicted, second.map_from_base)
    return mahalanobis(delta, p + second.covariance) <= (options.gate_chi2 or GATE_CHI2)


def mahalanobis(delta: np.ndarray, covariance: np.ndarray) -> float:
    """Give the squared length of delta (6,) in standard deviations of a covariance (6, 6)."""
    return float(delta @ np.linalg.solve(covariance, delta))


def _motion(first: Fix, second: Fix) -> Motion | None:
    return motion_between(first.odom_from_base, second.odom_from_base)
