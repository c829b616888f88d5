"""A robot that drives a curve, with odometry that drifts and fixes that are noisy."""

from dataclasses import dataclass, replace

from nerfmatch_ros.localization.pose_history import Fix
from nerfmatch_ros.localization.rigid_motion import inverse, perturb
import numpy as np

SECOND = 10 ** 9
FIX_NOISE = np.repeat((0.05, 0.01), 3)  # metres, radians
ODOM_NOISE = np.repeat((0.01, 0.005), 3)  # of a metre driven


def planar(x, y, heading):
    pose = np.eye(4)
    pose[:2, :2] = (np.cos(heading), -np.sin(heading)), (np.sin(heading), np.cos(heading))
    pose[:2, 3] = x, y
    return pose


@dataclass
class Drive:
    """stamps (N,) ints; truth and odometry (N, 4, 4); fixes of the truth."""

    stamps: list
    truth: list
    odometry: list
    fixes: list

    def moved(self, k, delta):
        """Fix k, moved by delta (6,) in the axes of the map."""
        fix = self.fixes[k]
        return replace(fix, map_from_base=perturb(fix.map_from_base, np.array(delta, float)))

    def exact(self, k, deviation=0.01):
        """The truth of fix k as a refined pose and its covariance."""
        return self.truth[k], np.diag(np.repeat((deviation ** 2, (deviation / 5) ** 2), 3))


def drive(rng, count, *, seconds=0.2, speed=0.5, turn=0.3, noise=FIX_NOISE, odometry=True):
    """Drive `count` fixes, `seconds` apart; the frame of odometry lies far from the map's."""
    step = planar(speed * seconds, 0, turn * seconds)
    truth, odom = planar(3, -2, 0.5), planar(40, 7, 2)
    result = Drive([], [], [], [])
    for k in range(count):
        stamp = SECOND + round(k * seconds * SECOND)
        fix = Fix(stamp, perturb(truth, rng.normal(size=6) * noise), np.diag(noise ** 2),
                  odom if odometry else None)
        result.stamps.append(stamp)
        result.truth.append(truth)
        result.odometry.append(odom)
        result.fixes.append(fix)
        truth = truth @ step
        odom = odom @ perturb(step, rng.normal(size=6) * ODOM_NOISE * speed * seconds)
    return result


def error(pose, truth):
    """Metres between two poses."""
    return np.linalg.norm(pose[:3, 3] - truth[:3, 3])


def map_from_odom(truth, odom):
    return truth @ inverse(odom)
