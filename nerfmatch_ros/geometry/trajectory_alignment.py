"""The similarity between two sets of poses of the same cameras, by their centres."""

from nerfmatch_ros.errors import DataError
from nerfmatch_ros.geometry.pose import nearest_rotation
from nerfmatch_ros.geometry.rigid_alignment import align
from nerfmatch_ros.geometry.similarity import Similarity
import numpy as np
import torch
from torch import Tensor

ROUNDS = 20  # of weighing anew
FLAT = 0.05  # share of the longest spread under which centres count as lying on a line


def align_trajectories(
    source: np.ndarray, target: np.ndarray, *, robust: bool = False, with_scale: bool = True,
) -> Similarity:
    """Give target_from_source of poses (K, 4, 4) by least squares over the camera centres.

    robust: weigh centres by how well they fit (Cauchy, at the scale of the median distance), so
    that a few wrong poses do not move the others. Where the centres lie on a line or on one place
    they leave the rotation open, and the cameras' orientations decide it. with_scale: else it is
    1. Raises DataError where there are no two centres to take the scale from.
    """
    poses, goals = torch.from_numpy(np.array(source)), torch.from_numpy(np.array(target))
    centres, places = poses[:, :3, 3], goals[:, :3, 3]
    if not len(centres) or with_scale and not (centres - centres[0]).norm(dim=-1).max() > 0:
        raise DataError(f'{len(centres)} cameras in one place have no scale to be compared by; '
                        'give poses of several places')
    weights = torch.ones_like(centres[:, 0])
    similarity = _align(poses, goals, weights, with_scale)
    for _ in range(ROUNDS if robust else 0):
        apart = (similarity.apply(centres) - places).norm(dim=-1)
        spread = apart.median().clamp(min=1e-12)
        weights = 1 / (1 + (apart / (2 * spread)) ** 2)
        similarity = _align(poses, goals, weights, with_scale)
    return similarity


def _align(poses: Tensor, goals: Tensor, weights: Tensor, with_scale: bool) -> Similarity:
    centres, places = poses[:, :3, 3], goals[:, :3, 3]
    fitted = align(centres, places, weights, with_scale=with_scale)
    rotation, scale = fitted.rotation, fitted.scale.item()
    share = (weights / weights.sum())[:, None]
    source_mean, target_mean = (share * centres).sum(0), (share * places).sum(0)
    extents = [torch.linalg.svdvals(share.sqrt() * (points - mean))
               for points, mean in ((centres, source_mean), (places, target_mean))]
    if fitted.degenerate or any(extent[1] < FLAT * extent[0] for extent in extents):
        turns = goals[:, :3, :3] @ poses[:, :3, :3].transpose(-1, -2)
        rotation = nearest_rotation((share[..., None] * turns).sum(0))
        if with_scale:
            scale = (extents[1].norm() / extents[0].norm()).item()
    if not scale > 0:
        raise DataError(f'the centres of {len(centres)} poses fit together at a scale of '
                        f'{scale:g}; the two sets of poses are not of the same cameras')
    translation = target_mean - scale * rotation @ source_mean
    return Similarity(scale, rotation.numpy(), translation.numpy())
