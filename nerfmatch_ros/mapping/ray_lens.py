"""What calibrations leave of the lenses, learned beside poses so that it does not bend them.

The same terms as in `lens_correction`: a ray at the angle a from the optical axis is taken for one
at a (1 + k1 a^2 + k2 a^4).
"""

import torch
from torch import nn, Tensor

TERMS = 2  # k1, k2
DEVIATION = 0.02  # that a calibration may miss of each, for the prior


def bent(directions: Tensor, terms: Tensor) -> Tensor:
    """Turn directions (..., 3), unit, camera frame, away from the axis by terms (..., 2)."""
    across = directions[..., :2].norm(dim=-1, keepdim=True).clamp(min=1e-6)
    angle = torch.atan2(across, directions[..., 2:])
    square = angle.square()
    turned = angle * (1 + terms[..., :1] * square + terms[..., 1:] * square.square())
    return torch.cat([directions[..., :2] * (turned.sin() / across), turned.cos()], dim=-1)


class RayLens(nn.Module):
    """The terms of each camera; none at first.

    cameras: (K,) int64, which of them took each photograph.
    """

    def __init__(self, cameras: Tensor):
        super().__init__()
        self.register_buffer('cameras', cameras, persistent=False)
        self.terms = nn.Parameter(torch.zeros(int(cameras.max()) + 1, TERMS))

    def forward(self, frames: Tensor, directions: Tensor) -> Tensor:
        """Give the true directions (B, P, 3) of rays of photographs (B,)."""
        return bent(directions, self.terms[self.cameras[frames]][:, None])

    def prior_loss(self) -> Tensor:
        """Mean over cameras of the squared terms in their deviations."""
        return (self.terms / DEVIATION).square().sum(-1).mean()
