"""Points where rays of several photographs meet; observations that agree with none are dropped.

Everything is measured on rays, in pixels, so any camera model works. M observations belong to
tracks: `track` (M,) counts from 0 and is sorted where a function says so.
"""

import math

import numpy as np

_ROUNDS = 4  # of fitting points and dropping observations that do not fit
_RIDGE = 1e-9  # keeps the normal matrix of parallel rays invertible; they are dropped later


def fit_robustly(
    rays: np.ndarray, origins: np.ndarray, pixel_angle: np.ndarray, track: np.ndarray,
    max_error: float, min_observations: int,
) -> np.ndarray:
    """Tell which observations (M,) agree with their point, and their point with enough others.

    rays: (M, 3) unit directions, map frame; origins: (M, 3) metres; pixel_angle: (M,) radians
    max_error: pixels
    """
    keep = np.ones(len(track), bool)
    count = int(track.max(initial=-1)) + 1
    for round_ in range(_ROUNDS):
        points = intersect(rays, origins, pixel_angle, track, keep)
        error = ray_errors(points, rays, origins, pixel_angle, track)
        # The first fits are bent by outliers, so only the worst are dropped then.
        limit = max_error * 2 ** (_ROUNDS - 1 - round_)
        keep = keep & (error < limit)
        enough = np.bincount(track[keep], minlength=count) >= min_observations
        keep = keep & enough[track]
    return keep


def intersect(
    rays: np.ndarray, origins: np.ndarray, pixel_angle: np.ndarray, track: np.ndarray,
    keep: np.ndarray | None = None,
) -> np.ndarray:
    """Find the points (P, 3) nearest to their rays, in pixels.

    Point x minimises sum (|(I - d d^T)(x - o)| / (z pixel_angle))^2 with direction d, origin o and
    distance z. With z held fixed that is linear; two more steps renew z. (Gauss-Newton also has
    the derivative of z, times the residual, which is only a few pixels.) A Cauchy weight holds
    outliers down.
    """
    count = int(track.max(initial=-1)) + 1
    weight = np.ones(len(track)) if keep is None else keep.astype(np.float64)
    across = np.eye(3) - rays[:, :, None] * rays[:, None, :]
    towards = (across @ origins[:, :, None])[..., 0]
    fixed = weight
    for step in range(4):
        matrix = sum_by(weight[:, None, None] * across, track, count)
        vector = sum_by(weight[:, None] * towards, track, count)
        size = np.maximum(np.trace(matrix, axis1=1, axis2=2), 1e-300)
        matrix = matrix + (_RIDGE * size)[:, None, None] * np.eye(3)
        points = np.linalg.solve(matrix, vector[..., None])[..., 0]
        offset = points[track] - origins
        distance = np.maximum(np.linalg.norm(offset, axis=-1), 1e-9)
        miss = np.linalg.norm((across @ offset[..., None])[..., 0], axis=-1)
        error = miss / (distance * pixel_angle)
        weight = fixed / (distance * pixel_angle) ** 2 / (1 + error ** 2)
    return points


def sum_by(values: np.ndarray, index: np.ndarray, count: int) -> np.ndarray:
    """Sum values (M, ...) with the same index (M,): (count, ...)."""
    flat = values.reshape(len(values), math.prod(values.shape[1:]))
    sums = [np.bincount(index, column, minlength=count) for column in flat.T]
    return np.stack(sums, axis=-1).reshape(count, *values.shape[1:])


def ray_errors(
    points: np.ndarray, rays: np.ndarray, origins: np.ndarray, pixel_angle: np.ndarray,
    track: np.ndarray,
) -> np.ndarray:
    """Give the angle between each ray and its point (M,), in pixels; infinite from behind."""
    offset = points[track] - origins
    along = (offset * rays).sum(-1)
    across = np.linalg.norm(offset - along[:, None] * rays, axis=-1)
    with np.errstate(divide='ignore', invalid='ignore'):
        return np.where(along > 0, across / along / pixel_angle, np.inf)


def largest_angle(rays: np.ndarray, track: np.ndarray) -> np.ndarray:
    """Give the largest angle (P,), radians, between two rays (M, 3) of a track; tracks sorted.

    Found in two sweeps: the ray farthest from the first ray, then the ray farthest from that one.
    """
    if not len(track):
        return np.zeros(0)
    starts = np.flatnonzero(np.diff(track, prepend=-1))
    end = starts
    for _ in range(2):
        cosine = np.clip((rays * rays[end][track]).sum(-1), -1, 1)
        end = np.lexsort((cosine, track))[starts]
    return np.arccos(cosine[end])
