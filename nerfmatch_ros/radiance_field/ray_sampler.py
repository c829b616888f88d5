"""Where to sample a ray: spacing of distances, and drawing intervals from a histogram.

`s` in [0, 1] is the normalised position along a ray, uniform in distance up to one scene unit and
uniform in inverse distance beyond (as in Mip-NeRF 360, Eq. 11, with a linear start).
"""

import torch
from torch import Tensor


def _warp(distance: Tensor) -> Tensor:
    return torch.where(distance < 1, 0.5 * distance, 1 - 0.5 / distance.clamp(min=1))


def _unwarp(position: Tensor) -> Tensor:
    return torch.where(position < 0.5, 2 * position, 0.5 / (1 - position).clamp(min=1e-6))


def distance_at(position: Tensor, near: Tensor, far: Tensor) -> Tensor:
    """Turn s (R, S) into distances (R, S) between near (R,) and far (R,)."""
    low, high = _warp(near)[:, None], _warp(far)[:, None]
    return _unwarp(low + (high - low) * position)


def guide_weights(density: Tensor, edges: Tensor, largest_opacity: float) -> Tensor:
    """Weights (R, M) from a coarse density (R, M) in intervals with edges (R, M + 1).

    Opacity is capped in each interval, so that a wrong coarse surface cannot hide the true one
    behind it from ever being sampled.
    """
    optical = density * (edges[:, 1:] - edges[:, :-1])
    optical = optical.clamp(max=-torch.log(torch.tensor(1 - largest_opacity)).item())
    after = torch.cumsum(optical, dim=-1)
    return torch.exp(-(after - optical)) - torch.exp(-after)


def spread(weights: Tensor, share: float) -> Tensor:
    """Let each interval take at least `share` of its neighbours' weight: (R, M) -> (R, M)."""
    spread_out = weights.clone()
    spread_out[:, 1:] = torch.maximum(spread_out[:, 1:], share * weights[:, :-1])
    spread_out[:, :-1] = torch.maximum(spread_out[:, :-1], share * weights[:, 1:])
    return spread_out


def sample_edges(
    weights: Tensor, count: int, generator: torch.Generator | None = None,
) -> Tensor:
    """Draw count + 1 increasing positions s in [0, 1] by inverse CDF of a histogram (R, M).

    Deterministic without a generator, stratified with one; the ends are always 0 and 1.
    """
    rays, bins = weights.shape
    cdf = torch.zeros(rays, bins + 1, device=weights.device)
    torch.cumsum(weights, dim=-1, out=cdf[:, 1:])
    cdf /= cdf[:, -1:].clamp(min=1e-12)
    steps = torch.linspace(0, 1, count + 1, device=weights.device).expand(rays, -1).contiguous()
    if generator is not None:
        jitter = torch.rand(rays, count - 1, generator=generator, device=weights.device) - 0.5
        steps[:, 1:-1] += jitter / count
    index = torch.searchsorted(cdf, steps, right=True).clamp(1, bins)
    below, above = cdf.gather(1, index - 1), cdf.gather(1, index)
    fraction = ((steps - below) / (above - below).clamp(min=1e-9)).clamp(0, 1)
    positions = (index - 1 + fraction) / bins
    positions[:, 0], positions[:, -1] = 0, 1
    return positions
