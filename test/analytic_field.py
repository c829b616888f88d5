"""A radiance field in closed form, for tests of what looks at fields."""

from nerfmatch_ros.radiance_field.field import FieldSamples, Proposal, RadianceField
from nerfmatch_ros.radiance_field.volume_rendering import midpoints
import torch
from torch import nn


class SphereField(RadianceField):
    """An opaque wall, the sphere of radius `radius` around the origin, seen from inside.

    Its colour is (x + 2) / 4; f^j of a point is (x, j), whatever the scale.
    """

    def __init__(self, radius=1.0, samples=400, density=400.0):
        super().__init__()
        self.radius, self.samples, self.density = radius, samples, density
        self.feature_layers, self.feature_channels = 3, 4
        self.unused = nn.Parameter(torch.zeros(1))

    def propose(self, rays, generator=None):
        steps = torch.linspace(0, 1, self.samples + 1).to(rays.near)
        return Proposal(rays.near[:, None] + (rays.far - rays.near)[:, None] * steps)

    def evaluate(self, rays, edges, *, colour=True, feature_layer=None, generator=None):
        points = rays.origins[:, None] + midpoints(edges)[..., None] * rays.directions[:, None]
        density = torch.where(points.norm(dim=-1) > self.radius, self.density, 0.0)
        feature = None if feature_layer is None else self.point_features(points, feature_layer)
        return FieldSamples(density, (points + 2) / 4 if colour else None, feature)

    def point_features(self, points, feature_layer):
        return torch.cat([points, torch.full_like(points[..., :1], feature_layer)], dim=-1)


def distance_to_sphere(origins, directions, radius):
    """Distances (N,) from origins (N, 3) inside along unit directions (N, 3) to the wall."""
    along = (origins * directions).sum(-1)
    return -along + torch.sqrt(along ** 2 - (origins ** 2).sum(-1) + radius ** 2)
