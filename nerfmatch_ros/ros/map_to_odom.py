"""When map -> odom is sent, with which stamp, and how it glides to where the last fix wants it."""

from collections.abc import Callable
from dataclasses import dataclass
import math

from nerfmatch_ros.localization.pose_slew import slew, SlewLimits
from nerfmatch_ros.localization.rigid_motion import difference
import numpy as np

SECOND = 1_000_000_000  # nanoseconds
RESTART_NS = SECOND  # a clock that goes back this far is a new run
LONGEST_STEP = 1.0  # seconds of motion at most, after a pause or a jump of the clock


@dataclass(frozen=True)
class Broadcast:
    """A transform to send."""

    stamp_ns: int
    map_from_odom: np.ndarray  # (4, 4)
    jump: tuple[float, float] | None = None  # metres, radians the body was moved at once


@dataclass(frozen=True)
class _Goal:
    map_from_odom: np.ndarray
    odom_from_base: np.ndarray
    set_at_ns: int  # time of the node
    set_at: float  # steady seconds


class MapToOdom:
    """
    The transform that is sent, step by step, towards the goal of the last fix.

    Its stamps lie ahead of the time by a tolerance, so that consumers find it for "now", and
    strictly increase. Two clocks: the node's, which may be simulated, pause and jump, for stamps
    and motion; a steady one for how old the goal is. Not thread safe.
    """

    def __init__(self, now_ns: int):
        """now_ns: time of the node, to tell by the first step whether its clock runs."""
        self.last_stamp_ns: int | None = None
        self._last_now_ns = now_ns
        self._goal: _Goal | None = None
        self._sent: np.ndarray | None = None

    def set_goal(self, map_from_odom: np.ndarray, odom_from_base: np.ndarray | None,
                 now_ns: int, steady: float):
        """Aim at map_from_odom (4, 4); odom_from_base: (4, 4), where the body is, if known."""
        self._goal = _Goal(
            map_from_odom, np.eye(4) if odom_from_base is None else odom_from_base, now_ns, steady)

    def clear_goal(self):
        """Send nothing until the next goal, which is then taken at once."""
        self._goal = self._sent = None

    def step(
        self, now_ns: int, steady: float, latest_odom_from_base: Callable[[], np.ndarray | None],
        *, limits: SlewLimits, tolerance: float, stale_timeout: float,
    ) -> Broadcast | None:
        """
        Give what is to be sent now; None: nothing.

        latest_odom_from_base: gives (4, 4), where the body is now, None where that is not known.
        tolerance: seconds that the stamp is ahead of now_ns. stale_timeout: seconds after the last
        goal when sending ends; 0: never.
        """
        passed_ns, self._last_now_ns = now_ns - self._last_now_ns, now_ns
        if passed_ns <= -RESTART_NS:
            self.last_stamp_ns = None  # consumers start anew as well
        if self._goal is not None and now_ns < self._goal.set_at_ns - RESTART_NS:
            self.clear_goal()  # it was set in a run that is over
        if passed_ns == 0 or self._goal is None:
            return None
        if 0 < stale_timeout < steady - self._goal.set_at:
            return None
        stamp_ns = now_ns + round(tolerance * SECOND)
        if self.last_stamp_ns is not None:
            stamp_ns = max(stamp_ns, self.last_stamp_ns + 1)
        jump = self._move(passed_ns, latest_odom_from_base, limits)
        self.last_stamp_ns = stamp_ns
        return Broadcast(stamp_ns, self._sent, jump)

    def _move(self, passed_ns: int, latest_odom_from_base: Callable[[], np.ndarray | None],
              limits: SlewLimits) -> tuple[float, float] | None:
        """Bring what is sent nearer to the goal; give the jump if there was one."""
        goal, former = self._goal, self._sent
        if former is None:
            self._sent = goal.map_from_odom
        if former is None or former is goal.map_from_odom:
            return None
        odom_from_base = latest_odom_from_base()
        if odom_from_base is None:
            odom_from_base = goal.odom_from_base
        seconds = min(max(passed_ns / SECOND, 0.0), LONGEST_STEP)
        self._sent, snapped = slew(
            former, goal.map_from_odom, odom_from_base, seconds, limits)
        if not snapped:
            return None
        delta = difference(former @ odom_from_base, goal.map_from_odom @ odom_from_base)
        return math.hypot(*delta[:3]), math.hypot(*delta[3:])
