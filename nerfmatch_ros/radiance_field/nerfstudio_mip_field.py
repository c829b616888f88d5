"""The radiance field of nerfstudio's mip-nerf, as it renders photographs that it was not shown.

One network looks along a ray twice: at even intervals, then where those found something. It
differs from the Mip-NeRF of the paper (`MipField`) in encoding, activations and resampling. Made
by an import only; nothing here trains it. Letters: R rays, S intervals a ray, N points.
"""

from dataclasses import dataclass
import math

from nerfmatch_ros.errors import ConfigError
from nerfmatch_ros.radiance_field.encoding import conical_frustums
from nerfmatch_ros.radiance_field.field import FieldSamples, Proposal, RadianceField, Rays
from nerfmatch_ros.radiance_field.interval_refinement import distance_at, even_steps, redrawn_steps
from nerfmatch_ros.radiance_field.volume_rendering import interval_weights
import torch
from torch import nn, Tensor
import torch.nn.functional as F

BACKGROUNDS = ('white', 'black', 'last')
# Rays have the radius 1 / sqrt(3) of a pixel's width, nerfstudio's have the area of the pixel. (It
# also narrows the cones towards the corners of a photograph, which is left out here.)
_RADIUS = math.sqrt(3 / math.pi)


@dataclass(frozen=True)
class NerfstudioMipConfig:
    """Size and sampling of a `NerfstudioMipField`; the defaults are those of nerfstudio."""

    width: int = 256  # channels of each layer, hence of f^j
    depth: int = 8  # layers of the 3D encoder; f^1 .. f^(depth - 1)
    skip: int = 3  # the encoded position is joined again to the output of this layer (from 0)
    position_waves: int = 16  # frequencies from 1 to 2^position_waves
    direction_waves: int = 4  # frequencies from 1 to 2^direction_waves
    head_width: int = 128  # channels of the colour head
    coarse_samples: int = 64  # intervals of the first look
    fine_samples: int = 128  # intervals that are rendered
    background: str = 'white'  # behind the field: white, black, the colour of the 'last' interval
    point_deviation: float = 3e-4  # scene units; width of the Gaussian of `point_features`

    def __post_init__(self):
        """Refuse sizes that make no network."""
        for name, least in (('width', 1), ('depth', 2), ('skip', 0), ('position_waves', 2),
                            ('direction_waves', 2), ('head_width', 1), ('coarse_samples', 1),
                            ('fine_samples', 1), ('point_deviation', 0)):
            if getattr(self, name) < least:
                raise ConfigError(f'NerfstudioMipConfig.{name} is {getattr(self, name)}; '
                                  f'give at least {least}')
        if self.background not in BACKGROUNDS:
            raise ConfigError(f"background is '{self.background}'; use {', '.join(BACKGROUNDS)}")


def wave_encoding(values: Tensor, waves: int, variance: Tensor | None = None) -> Tensor:
    """Encode as nerfstudio does: (..., 3), variance (..., 3) -> (..., 6 waves + 3).

    Expected sines, then cosines, coordinate by coordinate, of `waves` frequencies that grow evenly
    in octaves from 1 to 2^waves periods a unit, then the values themselves. The variance damps a
    wave as if its angle grew by its frequency in radians, without the factor 2 pi.
    """
    octaves = torch.linspace(0, waves, waves, dtype=values.dtype, device=values.device)
    frequencies = 2 ** octaves
    angles = ((2 * torch.pi * values)[..., None] * frequencies).flatten(-2)
    encoded = torch.sin(torch.cat([angles, angles + torch.pi / 2], dim=-1))
    if variance is not None:
        damping = torch.exp(-0.5 * (variance[..., None] * frequencies ** 2).flatten(-2))
        encoded = encoded * torch.cat([damping, damping], dim=-1)
    return torch.cat([encoded, values], dim=-1)


class NerfstudioMipField(RadianceField):
    """Mip-NeRF of one network; f^j is the output of layer j counted from 0, after its ReLU."""

    def __init__(self, config: NerfstudioMipConfig):
        super().__init__()
        self.config = config
        self.feature_layers, self.feature_channels = config.depth - 1, config.width
        self.white_background = config.background == 'white'
        self.last_background = config.background == 'last'
        position = 6 * config.position_waves + 3
        inputs = [position] + [config.width] * (config.depth - 1)
        if config.skip + 1 < config.depth:
            inputs[config.skip + 1] += position
        self.encoder = nn.ModuleList(nn.Linear(channels, config.width) for channels in inputs)
        self.density_head = nn.Linear(config.width, 1)
        view = 6 * config.direction_waves + 3
        self.colour_head = nn.ModuleList([
            nn.Linear(view + config.width, config.head_width),
            nn.Linear(config.head_width, config.head_width), nn.Linear(config.head_width, 3)])

    @torch.no_grad()
    def propose(self, rays: Rays, generator: torch.Generator | None = None) -> Proposal:
        """Choose intervals where an even look along the rays finds something; no gradient."""
        config = self.config
        steps = even_steps(len(rays), config.coarse_samples, rays.origins, generator)
        edges = distance_at(steps, rays.near, rays.far, 'uniform')
        found = self.evaluate(rays, edges, colour=False)
        weights = interval_weights(found.density, edges)
        steps = redrawn_steps(steps, weights, config.fine_samples, generator)
        return Proposal(distance_at(steps, rays.near, rays.far, 'uniform'))

    def evaluate(
        self, rays: Rays, edges: Tensor, *, colour: bool = True, feature_layer: int | None = None,
        generator: torch.Generator | None = None,
    ) -> FieldSamples:
        """Evaluate the network on the conical frustum of each interval."""
        if feature_layer is not None:
            self._check_feature_layer(feature_layer)
        mean, variance = conical_frustums(
            rays.origins, rays.directions, _RADIUS * rays.radius, edges)
        position = wave_encoding(mean, self.config.position_waves, variance)
        hidden, feature = self._encode(position, keep=feature_layer)
        density = F.softplus(self.density_head(hidden)[..., 0])
        if not colour:
            return FieldSamples(density, None, feature)
        view = wave_encoding(rays.directions, self.config.direction_waves)
        values = torch.cat([view[:, None].expand(-1, hidden.shape[1], -1), hidden], dim=-1)
        for layer in self.colour_head[:-1]:
            values = F.relu(layer(values))
        return FieldSamples(density, torch.sigmoid(self.colour_head[-1](values)), feature)

    def point_features(self, points: Tensor, feature_layer: int) -> Tensor:
        """Give f^j at scene-frame points: (N, 3) -> (N, width).

        A point is encoded as a Gaussian as wide as a typical pixel, as the network knows no other.
        """
        self._check_feature_layer(feature_layer)
        variance = torch.full_like(points, self.config.point_deviation ** 2)
        position = wave_encoding(points, self.config.position_waves, variance)
        return self._encode(position, layers=feature_layer + 1)[0]

    def _encode(
        self, position: Tensor, *, layers: int | None = None, keep: int | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """Run the first `layers` layers (None: all) on encoded positions (..., P).

        Returns the output of the last one and of layer `keep` (from 0), each after its ReLU.
        """
        hidden, kept = position, None
        for index, layer in enumerate(self.encoder[:layers]):
            if index == self.config.skip + 1:
                hidden = torch.cat([position, hidden], dim=-1)
            hidden = F.relu(layer(hidden))
            if index == keep:
                kept = hidden
        return hidden, kept

    def _check_feature_layer(self, feature_layer: int) -> None:
        if not 1 <= feature_layer <= self.feature_layers:
            raise ConfigError(f'feature layer {feature_layer} does not exist; this field has '
                              f'layers 1 to {self.feature_layers}')
