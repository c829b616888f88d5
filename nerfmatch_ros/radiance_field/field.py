"""What every radiance field offers: where to sample a ray, and what it finds there.

A field lives in the scene frame (the map frame moved and scaled by `scene_from_map` so that the
cameras and what they see fill the ball or box around the origin). Letters: R rays, S samples on a
ray, C channels of the inner feature.
"""

from dataclasses import dataclass, replace

import torch
from torch import nn, Tensor


@dataclass(frozen=True)
class Rays:
    """Rays in the scene frame; distances along them are Euclidean because directions are unit."""

    origins: Tensor  # (R, 3)
    directions: Tensor  # (R, 3) unit
    near: Tensor  # (R,)
    far: Tensor  # (R,)
    radius: Tensor  # (R,) radius of the pixel's cone at distance 1 (Mip-NeRF)
    image_index: Tensor | None = None  # (R,) row of the appearance table; None: mean

    def __len__(self) -> int:
        return len(self.origins)

    def __getitem__(self, index) -> 'Rays':
        """Choose rays by a slice, mask or index tensor."""
        chosen = {name: None if value is None else value[index]
                  for name, value in vars(self).items()}
        return replace(self, **chosen)


@dataclass(frozen=True)
class Proposal:
    """Where a field wants to be sampled."""

    edges: Tensor  # (R, S + 1) increasing distances; interval s lies between edges s and s + 1
    colour: Tensor | None = None  # (R, 3) the proposing pass's own rendering, in training


@dataclass(frozen=True)
class FieldSamples:
    """What a field holds in each interval."""

    density: Tensor  # (R, S) per unit of scene length
    colour: Tensor | None  # (R, S, 3) in [0, 1]
    feature: Tensor | None  # (R, S, C) output of layer j of the 3D encoder, view-independent


class RadianceField(nn.Module):
    """Interface of `GridField`, `MipField` and what is imported."""

    feature_layers: int  # n: inner features f^1 .. f^n exist
    feature_channels: int  # C
    ray_samples: int = 1  # that rendering a ray evaluates with gradients, all passes together
    white_background: bool = False  # what a ray sees behind the field: white, else black
    last_background: bool = False  # it sees the colour of its last interval instead
    official: bool = False  # points and features of a view are composited, as in published code
    random_rendering: bool = False  # rays of a view are sampled at random, as in published code
    detail: float = 1.0  # how much of a coarse-to-fine encoding is open, in [0, 1]; not saved

    def propose(self, rays: Rays, generator: torch.Generator | None = None) -> Proposal:
        """Choose the intervals of each ray; without a generator the choice is deterministic."""
        raise NotImplementedError

    def evaluate(
        self, rays: Rays, edges: Tensor, *, colour: bool = True, feature_layer: int | None = None,
        generator: torch.Generator | None = None,
    ) -> FieldSamples:
        """Evaluate density, and on demand colour and f^j (1-based layer), in each interval.

        generator: of the noise that some fields add in training; None: no noise.
        """
        raise NotImplementedError

    def point_features(self, points: Tensor, feature_layer: int) -> Tensor:
        """Give f^j at scene-frame points, as in a thin interval: (N, 3) -> (N, C)."""
        raise NotImplementedError
