"""The radiance field of nerfstudio's nerfacto, as it renders photographs that it was not shown.

Networks on hash grids propose where to look along a ray, one after the other, and one such network
with a colour head is rendered (Tancik et al., Nerfstudio, SIGGRAPH 2023). Made by an import only;
nothing here trains it. Letters: R rays, S intervals a ray, N points, C channels.
"""

from dataclasses import dataclass
import itertools

from nerfmatch_ros.errors import ConfigError
from nerfmatch_ros.radiance_field.field import FieldSamples, Proposal, RadianceField, Rays
from nerfmatch_ros.radiance_field.grid_field import contract
from nerfmatch_ros.radiance_field.interval_refinement import (
    distance_at,
    even_steps,
    redrawn_steps,
    SPACINGS,
)
from nerfmatch_ros.radiance_field.nerfacto_grid import NerfactoGrid, NerfactoGridConfig
from nerfmatch_ros.radiance_field.volume_rendering import interval_weights, midpoints
import torch
from torch import nn, Tensor
import torch.nn.functional as F

_LARGEST_EXPONENT = 60.0  # opaque at any length, and no infinity that a length of 0 makes NaN
BACKGROUNDS = ('last', 'white', 'black')


@dataclass(frozen=True)
class HashNetworkConfig:
    """Size of a network on a hash grid."""

    grid: NerfactoGridConfig = NerfactoGridConfig()
    width: int = 64  # channels of its hidden layers
    layers: int = 2  # linear layers, one more than hidden ones

    def __post_init__(self):
        """Refuse what is no network."""
        if self.width < 1 or self.layers < 1:
            raise ConfigError(f'a network of {self.layers} layers of {self.width} channels is '
                              'asked for; give at least 1')


@dataclass(frozen=True)
class NerfactoFieldConfig:
    """Size and sampling of a `NerfactoField`; the defaults are those of nerfstudio's nerfacto."""

    trunk: HashNetworkConfig = HashNetworkConfig()
    proposals: tuple[HashNetworkConfig, ...] = (
        HashNetworkConfig(NerfactoGridConfig(5, 16, 128, 17), 16),
        HashNetworkConfig(NerfactoGridConfig(5, 16, 256, 17), 16))
    proposal_samples: tuple[int, ...] = (256, 96)  # intervals of each look; the last network stays
    samples: int = 48  # intervals that are rendered
    spacing: str = 'piecewise'  # of the first look: even up to one unit, or 'uniform'
    geometry_channels: int = 15  # from the trunk to the colour head
    colour_width: int = 64  # channels of the colour head's hidden layers
    colour_layers: int = 3  # linear layers of the colour head
    appearance_channels: int = 32  # embedding of a training image; 0: none
    mean_appearance: bool = True  # of a new photograph: the mean of all images; else zeros
    contracted: bool = True  # all of space is seen, contracted into [-2, 2]^3; else the box only
    box: tuple[float, float, float, float, float, float] = (-1, -1, -1, 1, 1, 1)  # low, high
    density_scale: float = 1.0  # average_init_density
    background: str = 'last'  # behind the field: the colour of the 'last' interval, white, black

    def __post_init__(self):
        """Refuse what no field can be made of."""
        if not self.proposals or len(self.proposal_samples) < len(self.proposals):
            raise ConfigError(
                f'{len(self.proposals)} proposal networks look {len(self.proposal_samples)} '
                'times; at least one network and a look for each are needed')
        if min(*self.proposal_samples, self.samples) < 1:
            raise ConfigError(f'a look has {min(*self.proposal_samples, self.samples)} intervals; '
                              'give at least 1')
        if self.trunk.layers < 2:
            raise ConfigError('a trunk of one layer has no inner feature; give at least 2')
        for name, known in (('spacing', SPACINGS), ('background', BACKGROUNDS)):
            if getattr(self, name) not in known:
                raise ConfigError(f"{name} is '{getattr(self, name)}'; use {', '.join(known)}")

    @property
    def layout(self) -> str:
        """Who trained the field: nerfstudio's 'torch' code or 'tcnn', tiny-cuda-nn."""
        return self.trunk.grid.layout


def spherical_harmonics(directions: Tensor) -> Tensor:
    """Real spherical harmonics of degrees 0 to 3, orthonormal on the sphere: (N, 3) -> (N, 16)."""
    x, y, z = directions.unbind(-1)
    xx, yy, zz = x * x, y * y, z * z
    return torch.stack([
        torch.full_like(x, 0.28209479177387814),
        0.4886025119029199 * y, 0.4886025119029199 * z, 0.4886025119029199 * x,
        1.0925484305920792 * x * y, 1.0925484305920792 * y * z,
        0.9461746957575601 * zz - 0.31539156525252, 1.0925484305920792 * x * z,
        0.5462742152960396 * (xx - yy),
        0.5900435899266435 * y * (3 * xx - yy), 2.890611442640554 * x * y * z,
        0.4570457994644658 * y * (5 * zz - 1), 0.3731763325901154 * z * (5 * zz - 3),
        0.4570457994644658 * x * (5 * zz - 1), 1.445305721320277 * z * (xx - yy),
        0.5900435899266435 * x * (xx - 3 * yy)], dim=-1)


# tiny-cuda-nn's harmonics have the Condon-Shortley phase, -1 for odd orders.
_TCNN_SIGNS = (1, -1, 1, -1, 1, -1, 1, -1, 1, -1, 1, -1, 1, -1, 1, -1)


def direction_encoding(directions: Tensor, layout: str) -> Tensor:
    """Encode unit directions as the layout's program does: (N, 3) -> (N, 16).

    nerfstudio's torch code evaluates the harmonics at the direction moved into the unit cube.
    """
    if layout == 'torch':
        return spherical_harmonics((directions + 1) / 2)
    return spherical_harmonics(directions) * directions.new_tensor(_TCNN_SIGNS)


def _linear_layers(inputs: int, width: int, outputs: int, layers: int) -> nn.ModuleList:
    channels = [inputs, *[width] * (layers - 1), outputs]
    return nn.ModuleList(itertools.starmap(nn.Linear, itertools.pairwise(channels)))


class HashNetwork(nn.Module):
    """Hash grid and linear layers with ReLU between them."""

    def __init__(self, config: HashNetworkConfig, outputs: int):
        super().__init__()
        self.grid = NerfactoGrid(config.grid)
        self.layers = _linear_layers(self.grid.channels, config.width, outputs, config.layers)

    def hidden(self, points: Tensor, layers: int | None = None) -> list[Tensor]:
        """Give the first hidden layers, None: all, at points (N, 3) of the unit cube."""
        values, outputs = self.grid(points), []
        for layer in self.layers[:-1][:layers]:
            values = F.relu(layer(values))
            outputs.append(values)
        return outputs

    def forward(self, points: Tensor) -> Tensor:
        """Evaluate points (N, 3) of the unit cube: (N, outputs)."""
        hidden = self.hidden(points)
        return self.layers[-1](hidden[-1] if hidden else self.grid(points))


class NerfactoField(RadianceField):
    """Proposal networks, a trunk whose hidden layers are f^1 .. f^n, and a colour head."""

    def __init__(self, config: NerfactoFieldConfig, images: int = 1):
        super().__init__()
        self.config = config
        self.feature_layers, self.feature_channels = config.trunk.layers - 1, config.trunk.width
        self.white_background = config.background == 'white'
        self.last_background = config.background == 'last'
        self.proposals = nn.ModuleList(HashNetwork(size, 1) for size in config.proposals)
        self.trunk = HashNetwork(config.trunk, 1 + config.geometry_channels)
        self.colour_head = _linear_layers(
            16 + config.geometry_channels + config.appearance_channels, config.colour_width, 3,
            config.colour_layers)
        self.appearance = None
        if config.appearance_channels:
            self.appearance = nn.Embedding(images, config.appearance_channels)

    @torch.no_grad()
    def propose(self, rays: Rays, generator: torch.Generator | None = None) -> Proposal:
        """Choose intervals where the proposal networks find something; no gradient."""
        config = self.config
        steps = even_steps(len(rays), config.proposal_samples[0], rays.origins, generator)
        edges = distance_at(steps, rays.near, rays.far, config.spacing)
        for look, count in enumerate((*config.proposal_samples[1:], config.samples)):
            network = self.proposals[min(look, len(self.proposals) - 1)]
            points, inside = self._unit(self._middles(rays, edges))
            density = self._density(network(points)[:, 0], inside).view(len(rays), -1)
            weights = interval_weights(density, edges)
            steps = redrawn_steps(steps, weights, count, generator)
            edges = distance_at(steps, rays.near, rays.far, config.spacing)
        return Proposal(edges)

    def evaluate(
        self, rays: Rays, edges: Tensor, *, colour: bool = True, feature_layer: int | None = None,
        generator: torch.Generator | None = None,
    ) -> FieldSamples:
        """Evaluate the trunk at the middle of each interval."""
        count = edges.shape[1] - 1
        points, inside = self._unit(self._middles(rays, edges))
        hidden = self.trunk.hidden(points)
        feature = None
        if feature_layer is not None:
            self._check_feature_layer(feature_layer)
            feature = hidden[feature_layer - 1].view(len(rays), count, -1)
        output = self.trunk.layers[-1](hidden[-1])
        density = self._density(output[:, 0], inside).view(len(rays), count)
        if not colour:
            return FieldSamples(density, None, feature)
        values = torch.cat(
            [self._view(rays).repeat_interleave(count, dim=0), output[:, 1:]], dim=-1)
        if self.appearance is not None:
            values = torch.cat(
                [values, self._appearance(rays).repeat_interleave(count, dim=0)], dim=-1)
        for layer in self.colour_head[:-1]:
            values = F.relu(layer(values))
        rgb = torch.sigmoid(self.colour_head[-1](values))
        return FieldSamples(density, rgb.view(len(rays), count, 3), feature)

    def point_features(self, points: Tensor, feature_layer: int) -> Tensor:
        """Give f^j at scene-frame points: (N, 3) -> (N, C)."""
        self._check_feature_layer(feature_layer)
        return self.trunk.hidden(self._unit(points)[0], feature_layer)[-1]

    @staticmethod
    def _middles(rays: Rays, edges: Tensor) -> Tensor:
        """Middles of the intervals, scene frame: (R S, 3)."""
        along = midpoints(edges)[..., None] * rays.directions[:, None]
        return (rays.origins[:, None] + along).reshape(-1, 3)

    def _unit(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """Bring scene points (N, 3) into the unit cube, and tell which (N,) are within it.

        Those outside of it are put into its first corner.
        """
        if self.config.contracted:
            unit = (contract(points) + 2) / 4
        else:
            low, high = points.new_tensor(self.config.box).view(2, 3)
            unit = (points - low) / (high - low)
        inside = ((unit > 0) & (unit < 1)).all(dim=-1)
        return unit * inside[:, None], inside

    def _density(self, raw: Tensor, inside: Tensor) -> Tensor:
        return self.config.density_scale * torch.exp(raw.clamp(max=_LARGEST_EXPONENT)) * inside

    def _view(self, rays: Rays) -> Tensor:
        return direction_encoding(rays.directions, self.config.layout)

    def _appearance(self, rays: Rays) -> Tensor:
        """Give the appearance (R, channels) of the rays' images, or of a new photograph."""
        if rays.image_index is not None:
            return self.appearance(rays.image_index)
        mean = self.appearance.weight.mean(dim=0)
        if not self.config.mean_appearance:
            mean = torch.zeros_like(mean)
        return mean.expand(len(rays), -1)

    def _check_feature_layer(self, feature_layer: int) -> None:
        if not 1 <= feature_layer <= self.feature_layers:
            raise ConfigError(f'feature layer {feature_layer} does not exist; this field has '
                              f'layers 1 to {self.feature_layers}')
