"""Compositing along rays (NeRF; The NeRFect Match, Eq. 1-2) and the losses on its weights.

Letters: R rays, S intervals a ray; edges (R, S + 1) are distances along unit directions.
"""

import torch
from torch import Tensor
import torch.nn.functional as F


def interval_weights(density: Tensor, edges: Tensor) -> Tensor:
    """Give each interval the probability that the ray ends there: (R, S), (R, S+1) -> (R, S)."""
    optical = density * (edges[:, 1:] - edges[:, :-1])
    before = F.pad(torch.cumsum(optical, dim=-1)[:, :-1], (1, 0))
    return (1 - torch.exp(-optical)) * torch.exp(-before)


def composite(weights: Tensor, values: Tensor) -> Tensor:
    """Sum values over a ray by weight (Eq. 1-2): (R, S), (R, S, C) -> (R, C)."""
    return (weights[..., None] * values).sum(dim=1)


def midpoints(edges: Tensor) -> Tensor:
    """Centres of the intervals: (R, S+1) -> (R, S)."""
    return 0.5 * (edges[:, 1:] + edges[:, :-1])


def median_distance(weights: Tensor, edges: Tensor) -> Tensor:
    """Distance where half of the ray's weight is passed: (R, S), (R, S+1) -> (R,).

    Unlike the mean it lies on one surface at a depth edge.
    """
    cumulative = torch.cumsum(weights, dim=-1)
    half = 0.5 * cumulative[:, -1:]
    k = (cumulative < half).sum(dim=-1, keepdim=True).clamp(max=weights.shape[1] - 1)
    inside = weights.gather(1, k)
    fraction = ((half - (cumulative.gather(1, k) - inside)) / inside.clamp(min=1e-8)).clamp(0, 1)
    start, end = edges.gather(1, k), edges.gather(1, k + 1)
    return (start + fraction * (end - start))[:, 0]


def distortion_loss(weights: Tensor, edges: Tensor) -> Tensor:
    """Mean distortion of a ray's weights (Mip-NeRF 360, Eq. 15), edges scaled to [0, 1]."""
    return distortion(weights, edges / edges[:, -1:])


def distortion(weights: Tensor, positions: Tensor) -> Tensor:
    """Mean distortion of a ray's weights (R, S) between increasing positions (R, S + 1)."""
    centre = midpoints(positions)
    before = torch.cumsum(weights, dim=-1) - weights
    before_centre = torch.cumsum(weights * centre, dim=-1) - weights * centre
    between = 2 * (weights * (centre * before - before_centre)).sum(-1)
    within = (weights ** 2 * (positions[:, 1:] - positions[:, :-1])).sum(-1) / 3
    return (between + within).mean()


_OFFSET = 1e-6  # keeps disparities finite


def disparity_positions(edges: Tensor, near: float | Tensor, far: float | Tensor) -> Tensor:
    """Normalise distances (R, S + 1): 0 at `near`, 1 at `far`, even in 1 / distance.

    The small offset is added twice to the `near` of the divisor, as in the published code.
    """
    nearest = 1 / (near + _OFFSET)
    return (1 / (edges + _OFFSET) - nearest) / (1 / (far + _OFFSET) - 1 / (near + 2 * _OFFSET))


def depth_loss(weights: Tensor, edges: Tensor, distance: Tensor, tolerance: Tensor) -> Tensor:
    """Pull a ray's weight to a measured distance (R,), known to `tolerance` (R,): (R,) losses.

    The mean distance is drawn to the measurement and weight outside of the tolerance is charged,
    so that the surface is neither displaced nor smeared (in the spirit of DS-NeRF, Eq. 6).
    """
    centre = midpoints(edges)
    remaining = 1 - weights.sum(-1)
    mean = (weights * centre).sum(-1) + remaining * edges[:, -1]
    half_width = 0.5 * (edges[:, 1:] - edges[:, :-1])
    outside = (centre - distance[:, None]).abs() - half_width > tolerance[:, None]
    relative = (mean - distance).abs() / distance
    excess = (relative - tolerance / distance).clamp(min=0)
    return excess.clamp(max=0.5) + 0.4 * (weights * outside).sum(-1)
