"""The similarity between two frames in which the same cameras have poses."""

from nerfmatch_ros.errors import DataError
from nerfmatch_ros.geometry.pose import so3_exp, so3_log
from nerfmatch_ros.geometry.rigid_alignment import align
from nerfmatch_ros.geometry.similarity import Similarity
import numpy as np
import torch

_ROUNDS = 20  # of weighting and fitting
# Where the centres lie this close to a line (second spread as a share of the first), turning
# about it is found from where the cameras look.
_LINE = 0.02


def align_poses(
    source: np.ndarray, target: np.ndarray, *, with_scale: bool = True,
) -> Similarity:
    """Give target_from_source of the same K cameras, from their centres (Umeyama, PAMI 1991).

    source, target: (K, 4, 4) frame_from_camera. Cameras that disagree with most of the others
    count little (Cauchy weights, of the median distance). Raises DataError for fewer than three
    cameras, or centres that all coincide while a scale is asked for.
    """
    if len(source) < 3 or len(source) != len(target):
        raise DataError(f'{len(source)} and {len(target)} poses cannot be aligned; give the same '
                        'three cameras or more in both frames')
    source, target = np.asarray(source, np.float64), np.asarray(target, np.float64)
    spread = np.linalg.svd(target[:, :3, 3] - target[:, :3, 3].mean(0), compute_uv=False)
    if with_scale and not spread[0] > 0:
        raise DataError('all cameras are at one place, which gives no scale; align rigidly')
    weights = np.ones(len(source))
    for _ in range(_ROUNDS):
        found = _fit(source, target, weights, with_scale, on_line=spread[1] <= _LINE * spread[0])
        away = np.linalg.norm(found.apply(source[:, :3, 3]) - target[:, :3, 3], axis=1)
        weights = 1 / (1 + (away / max(2 * np.median(away), 1e-12)) ** 2)
    return found


def _fit(
    source: np.ndarray, target: np.ndarray, weights: np.ndarray, with_scale: bool, on_line: bool,
) -> Similarity:
    share = weights / weights.sum()
    means = [share @ poses[:, :3, 3] for poses in (source, target)]
    centred = [poses[:, :3, 3] - mean for poses, mean in zip((source, target), means)]
    found = align(*map(torch.from_numpy, centred), torch.from_numpy(share))
    rotation, scale = found.rotation.numpy(), 1.0
    if on_line or bool(found.degenerate):
        rotation = _mean_rotation(
            target[:, :3, :3] @ source[:, :3, :3].transpose(0, 2, 1), share)
    if with_scale:
        overlap = (share[:, None] * centred[1] * (centred[0] @ rotation.T)).sum()
        scale = overlap / (share[:, None] * centred[0] ** 2).sum()
        if not scale > 0:
            raise DataError('the cameras of the two frames have nothing in common; '
                            'are they of the same photographs?')
    return Similarity(scale, rotation, means[1] - scale * rotation @ means[0])


def _mean_rotation(rotations: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Give the weighted mean (3, 3) of rotations (K, 3, 3) near one another; weights sum to 1."""
    mean = torch.from_numpy(rotations[int(weights.argmax())].copy())
    share = torch.from_numpy(weights)[:, None]
    for _ in range(10):
        mean = mean @ so3_exp((share * so3_log(mean.T @ torch.from_numpy(rotations))).sum(0))
    return mean.numpy()
