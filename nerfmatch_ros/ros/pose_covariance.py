"""How sure a robot says it is of its poses: their covariances, as far as they can be meant.

Many drivers write zeros, one number for all times, or 1e6 for what they do not measure. Of those
that mean something, odometry's grow along the way, and those in a fixed frame stay small.
"""

from dataclasses import dataclass
import math

import numpy as np
from scipy.stats import theilslopes

SHARES = 0.002, 0.2  # of a motion, that the error of odometry is taken for at least and at most
METRES, DEGREES = (0.001, 5.0), (0.02, 60.0)  # the same of poses in a fixed frame
_VARIANCES = (1e-10, 1e4), (1e-10, 10.0)  # metres^2, radians^2, that can be meant at all
_MEANT = 0.9  # share of the messages whose variances can be meant
_GROWN = 1.2  # times, from the beginning to the end, of odometry whose covariance says anything
_SHORTEST = 1.0  # metres of way that odometry's growth can be told by
_TREMBLING = 0.1  # metres; places that differ less are no way
_ABSURD = 1.0  # a share; an odometry like this measures nothing
_POINTS = 200  # of the way that are compared with one another


@dataclass(frozen=True)
class StatedCertainty:
    """What covariances say; numbers are None where they say nothing."""

    odometry_share: float | None  # error of a motion, metres per metre
    pose_std: tuple[float, float | None] | None  # metres along, degrees about each axis
    words: str  # where that is from, or why there is none

    def report(self) -> dict:
        """Give it as it stands in report.json."""
        if self.odometry_share is not None:
            return {'odometry_share': {'value': self.odometry_share, 'from': self.words}}
        if self.pose_std is not None:
            metres, degrees = self.pose_std
            return {'pose_std': {'metres': metres, 'degrees': degrees, 'from': self.words}}
        return {'covariance': self.words}


def stated_certainty(
    stamps_ns: np.ndarray, places: np.ndarray, variances: np.ndarray, *, fixed: bool, topic: str,
) -> StatedCertainty:
    """
    Read the covariances of poses.

    places: (N, 3) metres; variances: (N, 6) diagonals, position and rotation; fixed: the poses are
    in a frame that does not drift. Else they are odometry, whose covariance grows along the way.
    """
    order = np.argsort(stamps_ns, kind='stable')
    places, variances = places[order], variances[order]
    position, turn = (_deviations(variances[:, axes], limits) for axes, limits in
                      zip((slice(3), slice(3, 6)), _VARIANCES))
    if position is None:
        return _nothing(f'the covariance on {topic} is zero, negative or absurd')
    if not fixed:
        return _odometry(places, position, topic)
    words = f'the covariance on {topic}, median'
    degrees = None if turn is None else _within(math.degrees(np.nanmedian(turn)), DEGREES)
    return StatedCertainty(None, (_within(float(np.nanmedian(position)), METRES), degrees), words)


def _odometry(places: np.ndarray, deviations: np.ndarray, topic: str) -> StatedCertainty:
    """Find how the standard deviation (N,), metres, grows along the way through places (N, 3)."""
    along = _way(places)
    known = np.isfinite(deviations)
    along, deviations = along[known], deviations[known]
    end = max(1, len(along) // 10)
    grown = np.median(deviations[-end:]) > _GROWN * np.median(deviations[:end])
    if along[-1] - along[0] < _SHORTEST or not grown:
        return _nothing(f'the covariance on {topic} does not grow along the way')
    chosen = np.unique(np.linspace(0, len(along) - 1, _POINTS).round().astype(int))
    way, deviation = along[chosen], deviations[chosen]
    # The error grows with the way, or as a random walk does, with its root; a metre of that.
    straight = theilslopes(deviation, way)
    walk = theilslopes(deviation ** 2, way)
    misfit = [np.median(np.abs(deviation - model)) for model in (
        straight[1] + straight[0] * way,
        np.sqrt(np.maximum(walk[1] + walk[0] * way, 0)))]
    share = straight[0] if misfit[0] <= misfit[1] else math.sqrt(max(walk[0], 0.0))
    if not 0 < share <= _ABSURD:
        return _nothing(f'the covariance on {topic} grows by {share:.2g} m in a metre, which '
                        'nothing can mean')
    return StatedCertainty(_within(float(share), SHARES), None,
                           f'the covariance on {topic}, as it grows along the way')


def _way(places: np.ndarray) -> np.ndarray:
    """Give how far (N,), metres, it is along places (N, 3), without what only trembles."""
    along, length, last = [], 0.0, places[0].tolist()
    for place in places.tolist():
        step = math.dist(place, last)
        if step > _TREMBLING:
            length, last = length + step, place
        along.append(length)
    return np.array(along)


def _deviations(variances: np.ndarray, limits: tuple[float, float]) -> np.ndarray | None:
    """Give standard deviations (N,) of variances (N, 3), over the axes that are measured.

    NaN where a message says nothing; None where most do. An axis of 1e6, say, does not count.
    """
    with np.errstate(invalid='ignore'):
        meant = (variances > limits[0]) & (variances < limits[1])
    axes = meant.mean(axis=0) >= _MEANT
    if not len(variances) or not axes.any():
        return None
    deviations = np.sqrt(np.where(meant, variances, np.nan)[:, axes].mean(axis=1))
    return deviations if np.isfinite(deviations).mean() >= _MEANT ** 3 else None


def _within(value: float, limits: tuple[float, float]) -> float:
    return min(max(value, limits[0]), limits[1])


def _nothing(why: str) -> StatedCertainty:
    return StatedCertainty(None, None, f'{why}, so it is not used')
