"""Thinning what all reference views show to a given number of points on the map's surfaces."""

from collections.abc import Sequence
import math

from nerfmatch_ros.mapping.reference_views import ReferenceView
from nerfmatch_ros.matching.supervision import visible_points
from nerfmatch_ros.scene_map import Surface
import torch
from torch import Tensor


def one_per_voxel(points: Tensor, size: float) -> Tensor:
    """Indices of the first point (N, 3) in each cube of side `size`, metres."""
    cell = torch.floor(points.double() / size).long()
    cell = cell - cell.amin(0)
    rows = cell.amax(0) + 1
    # One number a cube: comparing three columns takes many times the time and memory.
    _, group = torch.unique((cell[:, 0] * rows[1] + cell[:, 1]) * rows[2] + cell[:, 2],
                            return_inverse=True)
    first = torch.full((int(group.max()) + 1,), len(points), dtype=torch.int64)
    first.scatter_reduce_(0, group, torch.arange(len(points)), 'amin')
    return first.sort().values


def thin(points: Tensor, count: int) -> Tensor:
    """Indices of at most about `count` points (N, 3), evenly spread: one per voxel."""
    return thin_with_size(points, count)[0]


def thin_with_size(points: Tensor, count: int) -> tuple[Tensor, float]:
    """Thin as `thin` does and give the side of the voxels too, metres; 0 if all are kept."""
    if len(points) <= count:
        return torch.arange(len(points)), 0.0
    high = float((points.amax(0) - points.amin(0)).max()) + 1e-6
    low = 1e-6 * high  # halving the logarithm, because one far outlier may set the upper end
    size, chosen = high, torch.zeros(1, dtype=torch.int64)
    for _ in range(16):
        middle = math.sqrt(low * high)
        trial = one_per_voxel(points, middle)
        if len(trial) > count:
            low = middle
        else:
            high, size, chosen = middle, middle, trial
            if len(trial) > 0.95 * count:
                break
    return chosen, size


def surface_points(
    references: Sequence[ReferenceView], count: int, least_views: int = 2,
) -> Surface:
    """Choose `count` points that at least `least_views` reference views agree to see."""
    points = [reference.points.clone() for reference in references]
    starts = torch.tensor([0] + [len(p) for p in points]).cumsum(0)
    points = torch.cat(points)
    candidates = thin(points, 6 * count)
    seen = torch.zeros(len(candidates), dtype=torch.int64)
    for reference in references:
        seen += visible_points(points[candidates], reference.view.camera,
                               reference.map_from_camera.float(), reference.depth)
    agreed = candidates[seen >= min(least_views, len(references))]
    if not len(agreed):
        agreed = candidates
    chosen = agreed[thin(points[agreed], count)]
    return Surface(points[chosen], _features(references, starts, chosen))


def points_shown(points: Tensor, references: Sequence[ReferenceView], most: int = 64) -> Tensor:
    """Count how many points (G, 3), map frame, metres, reference views see: (k,) int64.

    Of more than `most` views some are looked at, evenly chosen.
    """
    last, count = len(references) - 1, min(most, len(references))
    chosen = torch.linspace(0, last, count).round().long().tolist()
    return torch.tensor([int(visible_points(
        points, references[k].view.camera, references[k].map_from_camera.float(),
        references[k].depth).sum()) for k in chosen])


def _features(
    references: Sequence[ReferenceView], starts: Tensor, chosen: Tensor,
) -> Tensor | None:
    """Gather features (G, F) of points numbered over all views, reading one view at a time."""
    first = references[0].features
    if first is None:
        return None
    features = first.new_empty(len(chosen), first.shape[1])
    for k, reference in enumerate(references):
        own = (chosen >= starts[k]) & (chosen < starts[k + 1])
        features[own] = reference.features[chosen[own] - starts[k]]
    return features
