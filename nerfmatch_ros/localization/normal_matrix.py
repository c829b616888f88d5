"""Whether normal equations fix a pose: condition and inverse of their matrix."""

import math

from nerfmatch_ros.localization.absolute_pose import MAX_CONDITION
import torch
from torch import Tensor


def inverse_normal(normal: Tensor) -> tuple[Tensor | None, float]:
    """Invert a normal matrix (6, 6) float64; None where its condition is above MAX_CONDITION.

    The condition is that of the matrix with all parameters scaled alike, so metres and radians
    compare; inf where the matrix is singular or not finite.
    """
    if not normal.isfinite().all():
        return None, math.inf
    scale = normal.diagonal().clamp(min=1e-300).rsqrt()
    values, vectors = torch.linalg.eigh(normal * scale[:, None] * scale)
    condition = (values[-1] / values[0]).item() if values[0] > 0 else math.inf
    if not condition <= MAX_CONDITION:
        return None, condition
    inverse = (vectors / values) @ vectors.T * scale[:, None] * scale
    return (inverse + inverse.T) / 2, condition
