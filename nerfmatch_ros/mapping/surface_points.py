"""Thinning what all reference views show to a given number of points on the map's surfaces."""

import math

from nerfmatch_ros.mapping.reference_views import ReferenceView
from nerfmatch_ros.matching.supervision import visible_points
from nerfmatch_ros.scene_map import Surface
import torch
from torch import Tensor


def one_per_voxel(points: Tensor, size: float) -> Tensor:
    """Indices of the first point (N, 3) in each cube of side `size`, metres."""
    cell = torch.floor(points.double() / size).long()
    _, group = torch.unique(cell, dim=0, return_inverse=True)
    first = torch.full((int(group.max()) + 1,), len(points), dtype=torch.int64)
    first.scatter_reduce_(0, group, torch.arange(len(points)), 'amin')
    return first.sort().values


def thin(points: Tensor, count: int) -> Tensor:
    """Indices of at most about `count` points (N, 3), evenly spread: one per voxel."""
    if len(points) <= count:
        return torch.arange(len(points))
    high = float((points.amax(0) - points.amin(0)).max()) + 1e-6
    low = 1e-6 * high  # halving the logarithm, because one far outlier may set the upper end
    chosen = torch.zeros(1, dtype=torch.int64)
    for _ in range(16):
        middle = math.sqrt(low * high)
        trial = one_per_voxel(points, middle)
        if len(trial) > count:
            low = middle
        else:
            high, chosen = middle, trial
            if len(trial) > 0.95 * count:
                break
    return chosen


def surface_points(references: list[ReferenceView], count: int, least_views: int = 2) -> Surface:
    """Choose `count` points that at least `least_views` reference views agree to see."""
    points = torch.cat([reference.points for reference in references])
    candidates = thin(points, 6 * count)
    features = None
    if references[0].features is not None:
        features = torch.cat([reference.features for reference in references])[candidates]
    points = points[candidates]
    seen = torch.zeros(len(points), dtype=torch.int64)
    for reference in references:
        seen += visible_points(points, reference.view.camera,
                               reference.map_from_camera.float(), reference.depth)
    agreed = (seen >= min(least_views, len(references))).nonzero()[:, 0]
    if not len(agreed):
        agreed = torch.arange(len(points))
    chosen = agreed[thin(points[agreed], count)]
    return Surface(points[chosen], None if features is None else features[chosen])
