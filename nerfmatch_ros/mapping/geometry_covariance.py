"""How far poses of scene geometry are off together with what says so: fitted to known poses.

The covariance of a pose has two parts (`geometry_pose.covariance_with`): what the residuals of its
own cells tell, times a factor, and what all cells of a picture err by together. Both come from
poses that are known, by maximum likelihood of the errors as normal ones.
"""

from collections.abc import Sequence
import math

from nerfmatch_ros.localization.geometry_pose import covariance_with, GeometryPose
from nerfmatch_ros.localization.rigid_motion import difference
import numpy as np
from scipy.optimize import minimize

_LARGEST_SCALE = 1e5
_SMALLEST_SHARE = 1e-4  # of the limits; what is smaller is nothing
_FEWEST = 4  # poses; fewer fix no three numbers
_STARTS = (0.03, 0.3)  # of the limits


def fit_covariance(
    poses: Sequence[GeometryPose], truths: Sequence[np.ndarray], limits: tuple[float, float],
) -> tuple[float, float, float]:
    """Give scale, common_m and common_rad of `covariance_with` that explain errors best.

    poses: that count; truths: as many map_from_camera (4, 4); limits: metres and radians within
    which poses are right. Neither common part exceeds its limit, and the scale is 1 or more; with
    fewer than four poses nothing is known, and the limits themselves are given.
    """
    if len(poses) < _FEWEST:
        return 1.0, *limits
    errors = [difference(found.map_from_camera, truth)
              for found, truth in zip(poses, truths, strict=True)]

    def cost(logarithms: np.ndarray) -> float:
        numbers = np.exp(logarithms)
        return sum(_cost(error, covariance_with(found, *numbers))
                   for error, found in zip(errors, poses, strict=True))

    bounds = [(0.0, math.log(_LARGEST_SCALE)),
              *((math.log(_SMALLEST_SHARE * limit), math.log(limit)) for limit in limits)]
    fits = [minimize(cost, [math.log(10.0), *(math.log(share * limit) for limit in limits)],
                     method='Nelder-Mead', bounds=bounds) for share in _STARTS]
    scale, metres, radians = np.exp(min(fits, key=lambda fit: fit.fun).x)
    return float(scale), float(metres), float(radians)


def _cost(error: np.ndarray, covariance: np.ndarray) -> float:
    """Give twice the negative logarithm of the density of an error (6,), but for a constant."""
    whitened = np.linalg.solve(np.linalg.cholesky(covariance), error)
    return float(whitened @ whitened + np.linalg.slogdet(covariance)[1])
