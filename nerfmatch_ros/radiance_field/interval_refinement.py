"""How nerfstudio's models choose intervals on a ray: spacing of distances, redrawn by weight.

`s` in [0, 1] is the position along a ray, even in distance ('uniform') or even in distance up to
one scene unit and in inverse distance beyond ('piecewise'). Letters: R rays, S intervals a ray.
"""

import torch
from torch import Tensor

SPACINGS = ('piecewise', 'uniform')


def _position(distance: Tensor, spacing: str) -> Tensor:
    if spacing == 'uniform':
        return distance
    return torch.where(distance < 1, distance / 2, 1 - 1 / (2 * distance.clamp(min=1)))


def distance_at(steps: Tensor, near: Tensor, far: Tensor, spacing: str) -> Tensor:
    """Turn s (R, S) into distances (R, S) between near (R,) and far (R,)."""
    first, last = _position(near, spacing)[:, None], _position(far, spacing)[:, None]
    position = steps * last + (1 - steps) * first
    if spacing == 'uniform':
        return position
    return torch.where(position < 0.5, 2 * position, 1 / (2 - 2 * position).clamp(min=1e-6))


def even_steps(
    rays: int, count: int, like: Tensor, generator: torch.Generator | None = None,
) -> Tensor:
    """Cut [0, 1] into `count` even intervals: (R, count + 1).

    With a generator the edges of a ray move together, at most half an interval to either side.
    """
    steps = torch.linspace(0, 1, count + 1, dtype=like.dtype, device=like.device).expand(rays, -1)
    if generator is None:
        return steps
    middle = 0.5 * (steps[:, 1:] + steps[:, :-1])
    lower = torch.cat([steps[:, :1], middle], dim=-1)
    upper = torch.cat([middle, steps[:, -1:]], dim=-1)
    draw = torch.rand(rays, 1, generator=generator, dtype=like.dtype, device=like.device)
    return lower + (upper - lower) * draw


def redrawn_steps(
    steps: Tensor, weights: Tensor, count: int, generator: torch.Generator | None = None, *,
    padding: float = 0.01,
) -> Tensor:
    """Draw new edges from a histogram over a ray by inverting its distribution function.

    steps: (R, S + 1) edges of the histogram's bins, in s
    weights: (R, S)
    padding: weight that every bin has beside its own
    Returns (R, count + 1) increasing s: the middles of as many even shares of the distribution;
    with a generator all of a ray's move by the same random part of a share.
    """
    weights = weights + padding
    cdf = torch.cumsum(weights / weights.sum(dim=-1, keepdim=True), dim=-1).clamp(max=1)
    cdf = torch.cat([torch.zeros_like(cdf[:, :1]), cdf], dim=-1)
    shares = count + 1
    quantiles = torch.linspace(
        0, 1 - 1 / shares, shares, dtype=cdf.dtype, device=cdf.device).expand(len(cdf), -1)
    if generator is None:
        quantiles = quantiles + 1 / (2 * shares)
    else:
        quantiles = quantiles + torch.rand(
            len(cdf), 1, generator=generator, dtype=cdf.dtype, device=cdf.device) / shares
    above = torch.searchsorted(cdf, quantiles.contiguous(), right=True)
    below = (above - 1).clamp(min=0)
    above = above.clamp(max=weights.shape[1])
    start, end = cdf.gather(1, below), cdf.gather(1, above)
    part = ((quantiles - start) / (end - start)).nan_to_num(0).clamp(0, 1)
    lower, upper = steps.gather(1, below), steps.gather(1, above)
    return lower + part * (upper - lower)
