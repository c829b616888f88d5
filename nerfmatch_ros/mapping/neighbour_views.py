"""Which photographs to compare a photograph with, to measure its depth."""

import math

from nerfmatch_ros.mapping.sparse_points import neighbour_pairs, SparsePoints
import numpy as np
from scipy.sparse import csr_array

BEST_ANGLE = math.radians(8)  # between two rays: narrower is imprecise, wider looks different
_WIDER = math.radians(12)  # beyond the best angle, at which the score falls to 1 / e
FEWEST_SHARED = 8  # points that two photographs must have in common
_CANDIDATES = 24  # with the most points in common, whose angles are looked at
_VIEW_ANGLE = math.radians(50)  # between the viewing directions of neighbours by pose


def neighbour_views(
    map_from_cameras: np.ndarray, sparse: SparsePoints, most: int,
) -> list[list[int]]:
    """Choose up to `most` neighbours of each photograph, the best first.

    map_from_cameras: (K, 4, 4); sparse: points observed in these K photographs. Photographs are
    neighbours that see many of the same points, under angles near BEST_ANGLE. Where the points do
    not tell enough, nearby photographs that look the same way are added.
    """
    count = len(map_from_cameras)
    centres = map_from_cameras[:, :3, 3]
    sees = csr_array(
        (np.ones(len(sparse.image_index), np.int32), (sparse.image_index, sparse.point_index)),
        shape=(count, len(sparse.points)))
    shared = (sees @ sees.T).tolil()
    shared.setdiag(0)
    shared = shared.tocsr()
    beside = [[] for _ in range(count)]
    for i, j in neighbour_pairs(map_from_cameras, most, _VIEW_ANGLE):
        beside[i].append(j)
        beside[j].append(i)
    chosen = []
    for i in range(count):
        row = slice(*shared.indptr[i:i + 2])
        others, common = shared.indices[row], shared.data[row]
        order = np.argsort(-common, kind='stable')[:_CANDIDATES]
        scores = {int(j): _score(i, int(j), centres, sees, sparse)
                  for j, shares in zip(others[order], common[order]) if shares >= FEWEST_SHARED}
        ranked = sorted((j for j in scores if scores[j] > 0), key=lambda j: -scores[j])
        distance = np.linalg.norm(centres[beside[i]] - centres[i], axis=-1)
        by_pose = [beside[i][k] for k in np.argsort(distance, kind='stable')]
        chosen.append((ranked + [j for j in by_pose if j not in scores])[:most])
    return chosen


def _score(i: int, j: int, centres: np.ndarray, sees: csr_array, sparse: SparsePoints) -> float:
    """Sum over the points that two photographs share how good the angle between the rays is."""
    points = sparse.points[np.intersect1d(
        sees.indices[slice(*sees.indptr[i:i + 2])], sees.indices[slice(*sees.indptr[j:j + 2])])]
    rays = [points - centres[k] for k in (i, j)]
    length = np.linalg.norm(rays[0], axis=-1) * np.linalg.norm(rays[1], axis=-1)
    angle = np.arccos(np.clip((rays[0] * rays[1]).sum(-1) / np.maximum(length, 1e-12), -1, 1))
    weight = np.where(angle < BEST_ANGLE, (angle / BEST_ANGLE) ** 2,
                      np.exp(-((angle - BEST_ANGLE) / _WIDER) ** 2))
    return float(weight.sum())
