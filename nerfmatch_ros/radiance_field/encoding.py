"""Encodings of positions and directions, and the Gaussian that stands for a piece of a cone.

Mip-NeRF (Barron et al., ICCV 2021): a pixel is a cone, an interval of it a conical frustum, the
frustum is approximated by a Gaussian and the Gaussian's expected sines and cosines are encoded.
Octave k has the scale 2^k. All functions follow the dtype and device of their inputs.
"""

import math

import torch
from torch import Tensor


def _scaled(points: Tensor, octaves: int) -> Tensor:
    """Give x 2^k, octave-major and coordinate-minor: (..., D) -> (..., D octaves)."""
    scales = 2.0 ** torch.arange(octaves, dtype=points.dtype, device=points.device)
    return (scales[:, None] * points[..., None, :]).flatten(-2)


def _waves(angles: Tensor) -> Tensor:
    """Sines, then cosines: (..., A) -> (..., 2 A)."""
    # Cosines as shifted sines: at angles of thousands the rounding differs from cos(), and
    # published weights then give the published numbers to the last digits.
    return torch.sin(torch.cat([angles, angles + 0.5 * math.pi], dim=-1))


def positional_encoding(points: Tensor, octaves: int) -> Tensor:
    """Sines of all octaves, then cosines of all octaves: (..., D) -> (..., 2 D octaves)."""
    return _waves(_scaled(points, octaves))


def direction_encoding(directions: Tensor, octaves: int) -> Tensor:
    """Positional encoding, then the direction itself: (..., 3) -> (..., 6 octaves + 3)."""
    return torch.cat([positional_encoding(directions, octaves), directions], dim=-1)


def integrated_positional_encoding(mean: Tensor, variance: Tensor, octaves: int) -> Tensor:
    """Expected positional encoding of a Gaussian (Mip-NeRF, Eq. 13-14).

    mean: (..., D)
    variance: (..., D) diagonal of the covariance
    Returns (..., 2 D octaves), laid out as `positional_encoding`. What varies faster than the
    Gaussian is wide fades to zero; without variance it is the positional encoding.
    """
    scales = 4.0 ** torch.arange(octaves, dtype=mean.dtype, device=mean.device)
    damping = torch.exp(-0.5 * (scales[:, None] * variance[..., None, :]).flatten(-2))
    return torch.cat([damping, damping], dim=-1) * _waves(_scaled(mean, octaves))


def frustum_distances(edges: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Moments of the distance to a point drawn evenly from a conical frustum.

    edges: (R, S + 1) distances of the planes that cut the cone
    Returns mean, variance and mean square of the distance, each (R, S), in the form that is
    stable for thin intervals (Mip-NeRF, Eq. 7 and supplement).
    """
    middle = 0.5 * (edges[..., 1:] + edges[..., :-1])
    half_width = 0.5 * (edges[..., 1:] - edges[..., :-1])
    square = half_width ** 2
    # 0 for a thin interval, 1 for a whole cone; an empty interval at the apex would be 0 / 0.
    ratio = square / (3 * middle ** 2 + square).clamp(min=torch.finfo(edges.dtype).tiny)
    mean = middle + 2 * middle * ratio
    variance = square / 3 - 4 / 15 * ratio ** 2 * (12 * middle ** 2 - square)
    mean_square = middle ** 2 + 5 / 3 * square - 16 / 15 * square * ratio
    return mean, variance, mean_square


def conical_frustums(
    origins: Tensor, directions: Tensor, radius: Tensor, edges: Tensor,
) -> tuple[Tensor, Tensor]:
    """Gaussians with the moments of the conical frustums between the edges (Mip-NeRF, Eq. 8).

    origins: (R, 3) scene frame
    directions: (R, 3) unit
    radius: (R,) of the cone at distance 1
    edges: (R, S + 1) distances
    Returns mean (R, S, 3) and the diagonal of the covariance (R, S, 3).
    """
    distance, along, mean_square = frustum_distances(edges)
    across = 0.25 * radius[:, None] ** 2 * mean_square
    mean = origins[:, None] + distance[..., None] * directions[:, None]
    parallel = directions[:, None] ** 2
    return mean, along[..., None] * parallel + across[..., None] * (1 - parallel)
