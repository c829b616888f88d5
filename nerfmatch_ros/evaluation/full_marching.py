"""A field sampled the plain way: every ray from end to end, every sample through the whole field.

What rendering costs without the shortcuts of `render_view`: no map of occupied space, no early
stop, no colour left out. Letters: R rays, S intervals a ray.
"""

from nerfmatch_ros.radiance_field.field import FieldSamples, Proposal, RadianceField, Rays
from nerfmatch_ros.radiance_field.mip_field import (
    blur_weights,
    even_edges,
    MipField,
    resample_edges,
)
from nerfmatch_ros.radiance_field.ray_sampler import distance_at, sample_edges
from nerfmatch_ros.radiance_field.volume_rendering import interval_weights
import torch
from torch import Tensor
import torch.nn.functional as F

COARSE_SAMPLES = FINE_SAMPLES = 128  # intervals a ray of the two passes (paper, Sec. 4)
PADDING = 0.01  # weight that every coarse interval has when resampling (Mip-NeRF, Eq. 18)


class FullMarching(RadianceField):
    """The same field, seen through 128 even intervals a ray and 128 more where these found it.

    A `MipField` is sampled by its own two networks and settings, as published; any other field by
    one network twice, evenly in its own spacing of distances.
    """

    def __init__(self, field: RadianceField):
        super().__init__()
        self.field = field
        for name in ('feature_layers', 'feature_channels', 'white_background', 'last_background',
                     'official', 'random_rendering'):
            setattr(self, name, getattr(field, name))
        self.ray_samples = COARSE_SAMPLES + FINE_SAMPLES

    def propose(self, rays: Rays, generator: torch.Generator | None = None) -> Proposal:
        """Evaluate even intervals and choose new ones by inverting their weights."""
        if isinstance(self.field, MipField):
            return self._propose_published(rays, generator)
        steps = torch.linspace(0, 1, COARSE_SAMPLES + 1, device=rays.near.device)
        edges = distance_at(steps[None], rays.near, rays.far)
        density = self.field.evaluate(rays, edges, colour=True).density
        histogram = blur_weights(interval_weights(density, edges), PADDING)
        positions = sample_edges(histogram, FINE_SAMPLES, generator)
        return Proposal(distance_at(positions, rays.near, rays.far))

    def evaluate(
        self, rays: Rays, edges: Tensor, *, colour: bool = True, feature_layer: int | None = None,
        generator: torch.Generator | None = None,
    ) -> FieldSamples:
        """Evaluate density and colour in each interval, whether anyone asked for colour or not."""
        return self.field.evaluate(rays, edges, colour=True, feature_layer=feature_layer,
                                   generator=generator)

    def point_features(self, points: Tensor, feature_layer: int) -> Tensor:
        """Give f^j at scene-frame points: (N, 3) -> (N, C)."""
        return self.field.point_features(points, feature_layer)

    def _propose_published(self, rays: Rays, generator: torch.Generator | None) -> Proposal:
        config = self.field.config
        edges = even_edges(rays.near, rays.far, config.coarse_samples, generator)
        density = self.field.evaluate_coarse(
            rays, edges, colour=True, generator=generator).density
        histogram = blur_weights(interval_weights(density, edges), config.resample_padding)
        fine = resample_edges(edges, histogram, config.fine_samples, generator,
                              official=config.official)
        # The published random draw ends in empty intervals, and evaluates each of them.
        missing = config.fine_samples + 1 - fine.shape[1]
        return Proposal(F.pad(fine, (0, missing), mode='replicate'))

