"""Radiance field on a multi-resolution hash grid, sampled where a coarse density grid points.

The field that is trained and rendered on a CPU. The scene's core fills [-1, 1]^3; what lies beyond
is contracted into [-2, 2]^3 (Mip-NeRF 360's contraction with the largest-coordinate norm), so an
unbounded scene needs no other field. The trunk also sees a positional encoding: features of a bare
hash grid matched badly.
"""

from dataclasses import dataclass
import math

from nerfmatch_ros.radiance_field.encoding_window import band_weights, opened_bands
from nerfmatch_ros.radiance_field.field import FieldSamples, Proposal, RadianceField, Rays
from nerfmatch_ros.radiance_field.hash_grid import FEATURES, HashGrid
from nerfmatch_ros.radiance_field.ray_sampler import (
    distance_at,
    guide_weights,
    sample_edges,
    spread,
)
from nerfmatch_ros.radiance_field.volume_rendering import midpoints
import torch
from torch import nn, Tensor
import torch.nn.functional as F

# Bands that are open at detail 0: cells of the second level are a seventh of the scene's box.
FIRST_LEVELS, FIRST_OCTAVES = 2, 1


@dataclass(frozen=True)
class GridFieldConfig:
    """Size and sampling of a `GridField`."""

    levels: int = 8  # resolutions of the hash grid
    coarsest: int = 16  # cells per side of [-2, 2]^3 at the coarsest level
    finest: int = 1536  # cells per side at the finest level
    log2_entries: int = 18  # table entries per level
    octaves: int = 5  # positional encoding beside the hash features
    width: int = 64  # channels of the trunk, hence of f^j
    depth: int = 4  # layers of the trunk; f^1 .. f^depth
    samples: int = 24  # intervals per ray
    guide_samples: int = 128  # look-ups in the density grid per ray
    guide_cells: int = 128  # cells per side of the density grid
    guide_opacity: float = 0.5  # largest opacity the density grid may claim in one interval
    guide_floor: float = 0.08  # share of the intervals spread evenly over the ray


def contract(points: Tensor) -> Tensor:
    """Map all of space into [-2, 2]^3, identity within [-1, 1]^3: (N, 3) -> (N, 3)."""
    size = points.abs().amax(dim=-1, keepdim=True).clamp(min=1)
    return points * (2 - 1 / size) / size


def positional_encoding(points: Tensor, octaves: int) -> Tensor:
    """[x, sin(2^k pi x / 2), cos(2^k pi x / 2)] for k < octaves: (N, 3) -> (N, 3 + 6 octaves)."""
    scales = 2.0 ** torch.arange(octaves, device=points.device) * (torch.pi / 2)
    angles = (points[..., None] * scales).flatten(-2)
    return torch.cat([points, angles.sin(), angles.cos()], dim=-1)


def direction_encoding(directions: Tensor) -> Tensor:
    """Real spherical harmonics of degrees 1 and 2, unnormalised: (R, 3) unit -> (R, 8)."""
    x, y, z = directions.unbind(-1)
    return torch.stack([x, y, z, x * y, y * z, x * z, x * x - y * y, 3 * z * z - 1], dim=-1)


def _calm_near_camera(values: Tensor, distance: Tensor) -> Tensor:
    """Scale gradients by the squared distance below one unit (Philip & Deschaintre, EGSR 2023).

    Space close to a camera is sampled far more densely, which otherwise grows floaters there.
    """
    share = (distance ** 2).clamp(max=1)
    return values * share + values.detach() * (1 - share)


class GridField(RadianceField):
    """Hash grid, trunk of `depth` layers (their outputs are f^1 .. f^depth), two heads.

    Colours are made exposure-free: each training image has its own gain and offset per channel,
    and the field's colour is what an image of mean exposure shows.
    """

    def __init__(self, config: GridFieldConfig, images: int = 1):
        super().__init__()
        self.config, self.ray_samples = config, config.samples
        self.feature_layers, self.feature_channels = config.depth, config.width
        self.hash_grid = HashGrid(config.levels, config.coarsest, config.finest,
                                  config.log2_entries)
        channels = self.hash_grid.channels + 3 + 6 * config.octaves
        self.trunk = nn.ModuleList(
            nn.Linear(channels if j == 0 else config.width, config.width)
            for j in range(config.depth))
        self.density_head = nn.Linear(config.width, 1)
        self.colour_head = nn.Sequential(
            nn.Linear(config.width + 8, config.width), nn.ReLU(), nn.Linear(config.width, 3))
        self.exposure = nn.Parameter(torch.zeros(images, 6))  # log gain and offset of R, G, B
        cells = config.guide_cells
        self.register_buffer('guide', torch.full((cells ** 3,), 0.5))
        for layer in self.trunk:
            nn.init.kaiming_normal_(layer.weight, nonlinearity='relu')
            nn.init.zeros_(layer.bias)

    def _encoding(self, points: Tensor) -> Tensor:
        """Encode contracted points (N, 3) by the levels and octaves that are open."""
        config = self.config
        unit = ((points + 2) / 4).clamp(0, 1 - 1e-6)
        if self.detail >= 1:
            return torch.cat(
                [self.hash_grid(unit), positional_encoding(points, config.octaves)], dim=-1)
        opened = opened_bands(config.levels, self.detail, FIRST_LEVELS)
        levels = band_weights(config.levels, opened).repeat_interleave(FEATURES).to(points)
        octaves = band_weights(
            config.octaves, opened_bands(config.octaves, self.detail, FIRST_OCTAVES)).to(points)
        looked_up = self.hash_grid(unit, math.ceil(opened)) * levels
        waves = positional_encoding(points, config.octaves)
        # Coordinate-major: the octaves of x, then of y and z; the sines, then the cosines.
        window = torch.cat([octaves.new_ones(3), octaves.repeat(6)])
        return torch.cat([looked_up, waves * window], dim=-1)

    def _trunk(self, points: Tensor, layers: int) -> list[Tensor]:
        """Give f^1 .. f^layers at contracted points (N, 3), each (N, width)."""
        hidden = self._encoding(points)
        outputs = []
        for layer in self.trunk[:layers]:
            hidden = F.relu(layer(hidden))
            outputs.append(hidden)
        return outputs

    def _density(self, hidden: Tensor) -> Tensor:
        # Starts almost empty (exp(-1)), so that nothing hides before it is seen.
        return torch.exp((self.density_head(hidden)[..., 0].float() - 1).clamp(max=12))

    def _guide_index(self, contracted: Tensor) -> Tensor:
        cells = self.config.guide_cells
        index = ((contracted + 2) * (cells / 4)).long().clamp_(0, cells - 1)
        return (index[..., 0] * cells + index[..., 1]) * cells + index[..., 2]

    @torch.no_grad()
    def propose(self, rays: Rays, generator: torch.Generator | None = None) -> Proposal:
        """Choose intervals where the density grid holds something; no gradient."""
        config = self.config
        steps = torch.linspace(0, 1, config.guide_samples + 1, device=rays.origins.device)
        edges = distance_at(steps[None], rays.near, rays.far)
        points = rays.origins[:, None] + midpoints(edges)[..., None] * rays.directions[:, None]
        density = self.guide[self._guide_index(contract(points))]
        weights = spread(guide_weights(density, edges, config.guide_opacity), 0.7)
        floor = config.guide_floor * (weights.sum(-1, keepdim=True) + 0.02) / config.guide_samples
        positions = sample_edges(weights + floor, config.samples, generator)
        return Proposal(distance_at(positions, rays.near, rays.far))

    def evaluate(
        self, rays: Rays, edges: Tensor, *, colour: bool = True, feature_layer: int | None = None,
        generator: torch.Generator | None = None,
    ) -> FieldSamples:
        """Evaluate the field at the middle of each interval."""
        count = edges.shape[1] - 1
        points = rays.origins[:, None] + midpoints(edges)[..., None] * rays.directions[:, None]
        points = contract(points.reshape(-1, 3))
        features = self._trunk(points, self.config.depth)
        hidden, feature = features[-1], None
        if feature_layer is not None:
            feature = features[feature_layer - 1].view(len(rays), count, -1)
        density = self._density(hidden).view(len(rays), count)
        if self.training:
            density = _calm_near_camera(density, midpoints(edges))
        if not colour:
            return FieldSamples(density, None, feature)
        view = direction_encoding(rays.directions).to(hidden.dtype)[:, None].expand(-1, count, -1)
        if self.detail < 1:
            view = self.detail * view
        rgb = torch.sigmoid(
            self.colour_head(torch.cat([hidden, view.reshape(-1, 8)], -1)).float())
        rgb = rgb.view(len(rays), count, 3)
        if rays.image_index is not None:
            gain, offset = self.exposure[rays.image_index].split(3, dim=-1)
            rgb = rgb * torch.exp(gain)[:, None] + offset[:, None]
        return FieldSamples(density, rgb, feature)

    def point_features(self, points: Tensor, feature_layer: int) -> Tensor:
        """Give f^j at scene-frame points: (N, 3) -> (N, width)."""
        return self._trunk(contract(points), feature_layer)[-1]

    @torch.no_grad()
    def guide_entries(
        self, rays: Rays, edges: Tensor, density: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Cells (R S,) of the density grid that intervals lie in, and their densities (R S,)."""
        points = rays.origins[:, None] + midpoints(edges)[..., None] * rays.directions[:, None]
        return self._guide_index(contract(points)).flatten(), density.detach().float().flatten()

    @torch.no_grad()
    def update_guide(self, cells: Tensor, density: Tensor, decay: float) -> None:
        """Move the density grid towards what was just evaluated, of `guide_entries`."""
        self._raise_guide(cells, density, decay)

    @torch.no_grad()
    def refresh_guide(self, count: int, generator: torch.Generator, decay: float = 0.3) -> None:
        """Evaluate the density at random points and move the grid towards it."""
        points = torch.rand(count, 3, generator=generator, device=self.guide.device) * 4 - 2
        density = self._density(self._trunk(points, self.config.depth)[-1])
        self._raise_guide(self._guide_index(points), density, decay)

    def _raise_guide(self, index: Tensor, density: Tensor, decay: float) -> None:
        seen = torch.zeros_like(self.guide).scatter_reduce_(
            0, index, density.detach().float(), 'amax', include_self=False)
        touched = torch.unique(index) if self.guide.is_cuda else index
        old, new = self.guide[touched], seen[touched]
        self.guide[touched] = old + torch.where(new > old, 0.5, decay) * (new - old)
