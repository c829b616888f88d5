"""Moves map_from_odom towards its goal so that the body glides instead of jumping.

Limits hold for the body: interpolating map_from_odom itself swings a body that is far from the
origin of odometry through metres, for a correction that hardly moves it.
"""

from dataclasses import dataclass
import math

from nerfmatch_ros.errors import ConfigError
from nerfmatch_ros.localization.rigid_motion import difference, inverse, perturb
import numpy as np


@dataclass(frozen=True)
class SlewLimits:
    """How fast a correction may move the body, and which corrections are made at once."""

    linear: float = 0.5  # metres a second; 0: every correction is made at once
    angular: float = 0.5  # radians a second; 0: no limit of its own
    snap_distance: float = 1.0  # metres; a larger correction is made at once
    snap_angle: float = 0.5  # radians; the same

    def __post_init__(self):
        """Refuse values that are no limits."""
        for name in ('linear', 'angular', 'snap_distance', 'snap_angle'):
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= 0):
                raise ConfigError(f'{name} is {value:g}; it must be a number of at least 0')


def slew(
    map_from_odom_now: np.ndarray, goal: np.ndarray, odom_from_base: np.ndarray, dt: float,
    limits: SlewLimits,
) -> tuple[np.ndarray, bool]:
    """
    Take one step of dt seconds from map_from_odom_now (4, 4) towards the goal (4, 4).

    odom_from_base: (4, 4), where the body is now. The body moves straight, and turns at a
    constant rate. Gives the new map_from_odom and whether the goal was too far for that, so that
    the body jumped.
    """
    body = map_from_odom_now @ odom_from_base
    delta = difference(body, goal @ odom_from_base)
    metres, radians = math.hypot(*delta[:3]), math.hypot(*delta[3:])
    if metres > limits.snap_distance or radians > limits.snap_angle:
        return goal, True
    if limits.linear == 0:
        return goal, False
    share = limits.linear * dt / metres if metres > 0 else math.inf
    if limits.angular > 0 and radians > 0:
        share = min(share, limits.angular * dt / radians)
    if share >= 1:
        return goal, False
    if share <= 0:
        return map_from_odom_now, False
    return perturb(body, share * delta) @ inverse(odom_from_base), False
