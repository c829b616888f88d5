"""A pose that somebody states: where to look first, and what may confirm a first fix."""

import math

from nerfmatch_ros.errors import DataError
from nerfmatch_ros.localization.body_pose import prior_covariance, usable_covariance
from nerfmatch_ros.localization.pose_history import (
    Fix,
    fixes_agree,
    HistoryOptions,
    motion_between,
    propagate,
)
from nerfmatch_ros.localization.rigid_motion import is_pose
import numpy as np

# Metres and radians; a prior with a larger standard deviation tells where to look, no more:
# a wrong fix could meet it by chance.
_NARROW = np.repeat((2.0, math.radians(45)), 3)


class PosePrior:
    """The prior, carried along by odometry since the first frame that brought some."""

    def __init__(self, map_from_base: np.ndarray, covariance: np.ndarray, *, source: str):
        """
        Check and keep a pose (4, 4) and covariance (6, 6).

        Variances of 0 count as unknown and become those of a pose given by hand. DataError names
        the source and what is wrong.
        """
        if not is_pose(map_from_base):
            raise DataError(f'{source}: the pose is no rigid motion (4, 4): '
                            f'{np.asarray(map_from_base).tolist()}; give finite numbers and a '
                            'rotation')
        stated = np.asarray(covariance)
        covariance = prior_covariance(stated) if stated.shape == (6, 6) else stated
        if not usable_covariance(covariance):
            raise DataError(f'{source}: the covariance is not (6, 6), symmetric and positive '
                            f'definite: {stated.tolist()}; give zeros where it is unknown')
        self._anchor = Fix(0, np.array(map_from_base, np.float64), covariance)

    def at(
        self, stamp_ns: int, odom_from_base: np.ndarray | None, options: HistoryOptions,
    ) -> Fix:
        """Give the prior at a stamp."""
        anchor = self._anchor
        if odom_from_base is not None and anchor.odom_from_base is None:
            self._anchor = anchor = Fix(
                stamp_ns, anchor.map_from_base, anchor.covariance, odom_from_base)
        if odom_from_base is None or stamp_ns == anchor.stamp_ns:
            # Without odometry it stays what it is: grown by the speed bound, every fix would fit.
            return Fix(stamp_ns, anchor.map_from_base, anchor.covariance, odom_from_base)
        motion = motion_between(anchor.odom_from_base, odom_from_base)
        seconds = abs(stamp_ns - anchor.stamp_ns) * 1e-9
        moved = propagate(
            anchor.map_from_base, anchor.covariance, motion, seconds, options)
        return Fix(stamp_ns, *moved, odom_from_base)

    def confirms(self, fix: Fix, options: HistoryOptions) -> bool:
        """Say whether a fix needs no other one to be believed."""
        prior = self.at(fix.stamp_ns, fix.odom_from_base, options)
        narrow = bool((np.sqrt(prior.covariance.diagonal()) <= _NARROW).all())
        return narrow and fixes_agree(prior, fix, options)
