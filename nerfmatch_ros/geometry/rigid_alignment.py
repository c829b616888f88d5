"""Weighted alignment of two point sets (Kabsch, Umeyama): the rigid motion or similarity."""

from dataclasses import dataclass

from nerfmatch_ros.geometry.pose import nearest_rotation, so3_exp
import torch
from torch import Tensor

_DEGENERATE_EPS = 100  # multiples of the dtype's precision


@dataclass(frozen=True)
class Alignment:
    """The motion target = scale * rotation @ source + translation that fits best."""

    rotation: Tensor  # (..., 3, 3) proper
    translation: Tensor  # (..., 3) target units
    scale: Tensor  # (...), 1 unless asked for
    degenerate: Tensor  # (...) bool: points on one line, or no weight; the rotation is not unique


def align(
    source: Tensor, target: Tensor, weights: Tensor | None = None, *, with_scale: bool = False,
) -> Alignment:
    """Align points to their partners by least squares; differentiable in all inputs.

    source, target: (..., N, 3); weights: (..., N), not negative, equal where None.
    """
    if weights is None:
        weights = torch.ones_like(source[..., 0])
    tiny = torch.finfo(source.dtype).tiny
    total = weights.sum(-1, keepdim=True)
    empty = total <= tiny  # a weight of nothing has no share, and a derivative beyond all numbers
    share = torch.where(empty, 0, weights / torch.where(empty, 1, total))[..., None]
    source_mean = (share * source).sum(-2)
    target_mean = (share * target).sum(-2)
    source_centred = source - source_mean[..., None, :]
    target_centred = target - target_mean[..., None, :]
    covariance = (share * target_centred).transpose(-1, -2) @ source_centred
    rotation, degenerate = _rotation(covariance)
    if with_scale:
        spread = (share * source_centred ** 2).sum((-1, -2))
        overlap = (rotation * covariance).sum((-1, -2))
        degenerate = degenerate | (overlap <= 0)
        scale = torch.where(degenerate, 1, overlap / spread.clamp(min=tiny))
    else:
        scale = torch.ones_like(total[..., 0])
    moved = scale[..., None] * (rotation @ source_mean[..., None])[..., 0]
    return Alignment(rotation, target_mean - moved, scale, degenerate | empty[..., 0])


def _rotation(covariance: Tensor) -> tuple[Tensor, Tensor]:
    """Give the rotation R (..., 3, 3) with the largest tr(R^T H), and whether it is not unique.

    covariance: H (..., 3, 3), sum of target source^T.
    """
    # The derivative of an SVD has 1 / (s_i - s_j) and breaks for symmetric point sets, that of R
    # only 1 / (s_i + s_j). So R is found without gradient, and one Newton step, zero in value,
    # carries the gradient: R^T H stays symmetric when R turns by w with
    # (tr(S) I - S) w = axis(M - M^T), where M = R^T H and S its symmetric part.
    with torch.no_grad():
        fixed = nearest_rotation(covariance)
        symmetric = fixed.transpose(-1, -2) @ covariance
        symmetric = (symmetric + symmetric.transpose(-1, -2)) / 2
        trace = symmetric.diagonal(dim1=-2, dim2=-1).sum(-1)
        identity = torch.eye(3).to(covariance)
        system = trace[..., None, None] * identity - symmetric
        stiffness = torch.linalg.eigvalsh(system)
        limit = _DEGENERATE_EPS * torch.finfo(covariance.dtype).eps * stiffness[..., -1]
        degenerate = stiffness[..., 0] <= limit
        system = torch.where(degenerate[..., None, None], identity, system)
    turned = fixed.transpose(-1, -2) @ covariance
    skew = turned - turned.transpose(-1, -2)
    axis = torch.stack((skew[..., 2, 1], skew[..., 0, 2], skew[..., 1, 0]), dim=-1)
    turn = torch.linalg.solve(system, axis[..., None])[..., 0]
    turn = torch.where(degenerate[..., None], 0, turn)
    return fixed @ so3_exp(turn), degenerate
