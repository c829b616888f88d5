"""Rotations of many cameras from the turns between pairs of them, wrong pairs held down.

Letters: R_i = map_from_camera of camera i; R_ij = first_from_second of a pair; residual of a pair
r = log(R_i R_ij R_j^T), map axes; a small left turn w of the cameras changes it by w_i - w_j.
"""

import math

import numpy as np
from scipy.sparse import coo_array, eye_array
from scipy.sparse.linalg import splu
from scipy.spatial.transform import Rotation

_STEPS = 30
_SETTLED = 1e-5  # radians
_TIGHTEN = 0.7  # the loss begins wide and narrows with each step


def average_rotations(
    start: np.ndarray, pairs: np.ndarray, turns: np.ndarray, sigma: np.ndarray, *,
    prior_sigma: np.ndarray, widest: float = math.radians(45),
) -> np.ndarray:
    """Give the rotations (K, 3, 3) that agree best with the pairs and with where they start.

    start: (K, 3, 3) map_from_camera, which also are the prior; pairs: (E, 2) cameras; turns:
    (E, 3, 3) first_from_second; sigma: (E,) radians; prior_sigma: (K,) radians; widest: radians,
    errors of pairs that the first step does not hold down. A Geman-McClure loss, narrowed step by
    step (Chatterjee and Govindu, ICCV 2013; Yang et al., RA-L 2020).
    """
    count, rotations = len(start), start
    prior_weight = 1 / prior_sigma ** 2
    scale = widest
    for _ in range(_STEPS):
        residual = turn_residuals(rotations, pairs, turns)
        limit = np.maximum(3 * sigma, scale)
        weight = 1 / sigma ** 2 / (1 + (residual ** 2).sum(-1) / limit ** 2) ** 2
        away = _log(start @ rotations.transpose(0, 2, 1))
        first, second = pairs.T
        rows = np.concatenate((first, second, first, second))
        columns = np.concatenate((first, second, second, first))
        values = np.concatenate((weight, weight, -weight, -weight))
        normal = coo_array((values, (rows, columns)), shape=(count, count)).tocsc()
        normal = normal + (eye_array(count) * prior_weight[:, None]).tocsc()
        right = prior_weight[:, None] * away
        np.add.at(right, first, -weight[:, None] * residual)
        np.add.at(right, second, weight[:, None] * residual)
        turn = splu(normal.tocsc()).solve(right)
        rotations = Rotation.from_rotvec(turn).as_matrix() @ rotations
        if scale < sigma.min(initial=np.inf) and np.abs(turn).max() < _SETTLED:
            break
        scale *= _TIGHTEN
    return rotations


def turn_residuals(rotations: np.ndarray, pairs: np.ndarray, turns: np.ndarray) -> np.ndarray:
    """Give the residuals (E, 3), radians, of pairs, see the module's docstring."""
    first, second = rotations[pairs[:, 0]], rotations[pairs[:, 1]]
    return _log(first @ turns @ second.transpose(0, 2, 1))


def _log(rotations: np.ndarray) -> np.ndarray:
    if not len(rotations):
        return np.zeros((0, 3))
    return Rotation.from_matrix(rotations).as_rotvec()
