"""The radiance field of the NeRFMatch paper: a Mip-NeRF of two networks, coarse and fine.

The coarse network looks at even intervals and proposes where the fine network looks; only the fine
one is rendered and gives inner features. Far too slow to train on a CPU (there `GridField` is the
choice), it is the field of published checkpoints and of a machine with a GPU.
Letters: R rays, S intervals a ray.
"""

from dataclasses import dataclass
import math

from nerfmatch_ros.errors import ConfigError
from nerfmatch_ros.radiance_field.encoding import (
    conical_frustums,
    direction_encoding,
    integrated_positional_encoding,
)
from nerfmatch_ros.radiance_field.encoding_window import band_weights, opened_bands
from nerfmatch_ros.radiance_field.field import FieldSamples, Proposal, RadianceField, Rays
from nerfmatch_ros.radiance_field.volume_rendering import composite, interval_weights
import torch
from torch import nn, Tensor
import torch.nn.functional as F

# Samples that a network without gradients looks at together: on a CPU larger layers leave the
# cache, on a GPU they fill the memory.
_SAMPLES_ON_CPU, _SAMPLES_ON_GPU = 1 << 14, 1 << 18
FIRST_OCTAVES = 2  # that are open at detail 0: waves as long as the ball is wide, and half of it


def even_edges(
    near: Tensor, far: Tensor, count: int, generator: torch.Generator | None = None,
) -> Tensor:
    """Cut rays into `count` intervals, even in distance: near, far (R,) -> edges (R, count + 1).

    With a generator each edge moves at random, at most half an interval to either side.
    """
    steps = torch.linspace(0, 1, count + 1, dtype=near.dtype, device=near.device)
    edges = near[:, None] * (1 - steps) + far[:, None] * steps
    if generator is None:
        return edges
    middle = 0.5 * (edges[:, 1:] + edges[:, :-1])
    lower = torch.cat([edges[:, :1], middle], dim=-1)
    upper = torch.cat([middle, edges[:, -1:]], dim=-1)
    draw = torch.rand(edges.shape, generator=generator, dtype=near.dtype, device=near.device)
    return lower + (upper - lower) * draw


def blur_weights(weights: Tensor, padding: float) -> Tensor:
    """Widen a histogram (R, S) so that a surface at a bin's border is not missed.

    Each bin takes the mean of the larger ones of its two pairs of neighbours, plus `padding`
    (Mip-NeRF, Eq. 18).
    """
    padded = torch.cat([weights[:, :1], weights, weights[:, -1:]], dim=-1)
    larger = torch.maximum(padded[:, :-1], padded[:, 1:])
    return 0.5 * (larger[:, :-1] + larger[:, 1:]) + padding


def _quantiles(
    rays: int, count: int, like: Tensor, generator: torch.Generator | None, official: bool,
) -> Tensor:
    """Give (rays, count) increasing numbers in [0, 1), one in each of `count` strata.

    As the published code draws them (`official`) the stratum's start is added twice: the first
    half of the numbers covers everything, the others are all the largest number below 1.
    """
    epsilon = torch.finfo(like.dtype).eps
    options = {'dtype': like.dtype, 'device': like.device}
    if generator is None:
        return torch.linspace(0, 1 - epsilon, count, **options).expand(rays, -1)
    draw = torch.rand(rays, count, generator=generator, **options)
    strata = torch.arange(count, **options) / count
    if official:
        numbers = 2 * strata + draw * (1 / count - epsilon)
    else:
        numbers = strata + draw / count
    return numbers.clamp(max=1 - epsilon)


def resample_edges(
    edges: Tensor, weights: Tensor, count: int, generator: torch.Generator | None = None, *,
    official: bool = False,
) -> Tensor:
    """Draw new edges from a histogram over a ray by inverting its distribution function.

    edges: (R, S + 1) borders of the bins
    weights: (R, S) positive
    Returns (R, count + 1) increasing distances: at even quantiles without a generator, one at
    random in each of count + 1 strata of the quantiles with one. The `official` random draw ends
    with empty intervals at the far end; only one of those is given, (R, less than count + 1).
    """
    cdf = torch.cumsum(weights / weights.sum(dim=-1, keepdim=True), dim=-1)[:, :-1].clamp(max=1)
    cdf = F.pad(F.pad(cdf, (1, 0)), (0, 1), value=1.0)
    quantiles = _quantiles(len(edges), count + 1, edges, generator, official)
    if official and generator is not None:
        quantiles = quantiles[:, :math.ceil((count + 1) / 2) + 1]
    above = torch.searchsorted(cdf, quantiles.contiguous(), right=True).clamp(1, weights.shape[1])
    start, end = cdf.gather(1, above - 1), cdf.gather(1, above)
    share = ((quantiles - start) / (end - start).clamp(min=1e-12)).clamp(0, 1)
    lower, upper = edges.gather(1, above - 1), edges.gather(1, above)
    return lower + share * (upper - lower)


@dataclass(frozen=True)
class MipFieldConfig:
    """Size and sampling of a `MipField`; the defaults are the published ones."""

    width: int = 256  # channels of each layer, hence of f^j
    depth: int = 8  # layers of the 3D encoder; f^1 .. f^(depth - 1)
    skip: int = 4  # the encoded position is joined again to the output of this layer (from 0)
    position_octaves: int = 15  # of the integrated positional encoding
    direction_octaves: int = 4  # of the view direction
    appearance_channels: int = 16  # embedding of a training image; 0: none
    coarse_samples: int = 128  # intervals of the proposing pass
    fine_samples: int = 128  # intervals of the rendered pass
    resample_padding: float = 0.01  # weight that every coarse interval has when resampling
    density_noise: float = 1.0  # standard deviation added to raw densities in training
    white_background: bool = False  # what a ray sees behind the field: white, else black
    point_deviation: float = 3e-4  # scene units; width of the Gaussian of `point_features`
    # Render as the published code does, for its own weights; see docs/published_model.md.
    official: bool = False  # composited points, its random intervals, row 1 of the appearance
    random_rendering: bool = False  # random intervals in views as well

    def __post_init__(self):
        """Refuse sizes that make no network."""
        for name, least in (('width', 2), ('depth', 2), ('skip', 0), ('position_octaves', 1),
                            ('direction_octaves', 1), ('appearance_channels', 0),
                            ('coarse_samples', 1), ('fine_samples', 1), ('resample_padding', 0),
                            ('density_noise', 0), ('point_deviation', 0)):
            if getattr(self, name) < least:
                raise ConfigError(
                    f'MipFieldConfig.{name} is {getattr(self, name)}; give at least {least}')


class MipNetwork(nn.Module):
    """3D encoder, density head, and colour head that also sees direction and appearance."""

    def __init__(self, config: MipFieldConfig):
        super().__init__()
        self.skip = config.skip
        position = 6 * config.position_octaves
        inputs = [position] + [config.width] * (config.depth - 1)
        if config.skip + 1 < config.depth:
            inputs[config.skip + 1] += position
        self.encoder = nn.ModuleList(nn.Linear(channels, config.width) for channels in inputs)
        self.density_head = nn.Linear(config.width, 1)
        self.bottleneck = nn.Linear(config.width, config.width)
        view = 6 * config.direction_octaves + 3 + config.appearance_channels
        self.view_layer = nn.Linear(config.width + view, config.width // 2)
        self.colour_head = nn.Linear(config.width // 2, 3)

    def encode(
        self, position: Tensor, *, layers: int | None = None, keep: int | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """Run the first `layers` layers (None: all) on encoded positions (..., 6 octaves).

        Returns the output of the last one and of layer `keep` (from 0), each after its ReLU,
        (..., width). The others are let go: all together they would fill the memory.
        """
        kept = None
        hidden = position
        for index, layer in enumerate(self.encoder[:layers]):
            if index == self.skip + 1:
                hidden = torch.cat([position, hidden], dim=-1)
            hidden = F.relu(layer(hidden))
            if index == keep:
                kept = hidden
        return hidden, kept

    def colour(self, hidden: Tensor, view: Tensor) -> Tensor:
        """Colour in [0, 1] from the last layer (R, S, width) and the view (R, V): (R, S, 3)."""
        view = view[:, None].expand(-1, hidden.shape[1], -1)
        hidden = F.relu(self.view_layer(torch.cat([self.bottleneck(hidden), view], dim=-1)))
        return torch.sigmoid(self.colour_head(hidden))


class MipField(RadianceField):
    """Mip-NeRF whose inner features f^j are matched; scene within the unit ball.

    f^j is the output of layer j of the fine network counted from 0, after the ReLU and before the
    skip connection, as in the published code: f^3 is the fourth layer.
    """

    def __init__(self, config: MipFieldConfig, images: int = 1):
        super().__init__()
        self.config = config
        self.feature_layers, self.feature_channels = config.depth - 1, config.width
        self.ray_samples = config.coarse_samples + config.fine_samples
        self.white_background, self.official = config.white_background, config.official
        self.random_rendering = config.random_rendering
        self.coarse = MipNetwork(config)
        self.fine = MipNetwork(config)
        self.appearance = None
        if config.appearance_channels:
            self.appearance = nn.Embedding(images, config.appearance_channels)

    def propose(self, rays: Rays, generator: torch.Generator | None = None) -> Proposal:
        """Look along the rays with the coarse network and choose the fine network's intervals.

        No gradient flows through the edges. The coarse network's own colour is rendered in
        training mode only; nothing else needs it.
        """
        config = self.config
        with torch.set_grad_enabled(self.training and torch.is_grad_enabled()):
            edges = even_edges(
                rays.near.detach(), rays.far.detach(), config.coarse_samples, generator)
            found = self.evaluate_coarse(
                rays, edges, colour=self.training, generator=generator)
            weights = interval_weights(found.density, edges)
            colour = None
            if self.training:
                colour = composite(weights, found.colour)
                if config.white_background:
                    colour = colour + (1 - weights.sum(dim=-1, keepdim=True))
        histogram = blur_weights(weights.detach(), config.resample_padding)
        return Proposal(
            resample_edges(edges, histogram, config.fine_samples, generator,
                           official=config.official), colour)

    def evaluate(
        self, rays: Rays, edges: Tensor, *, colour: bool = True, feature_layer: int | None = None,
        generator: torch.Generator | None = None,
    ) -> FieldSamples:
        """Evaluate the fine network on the conical frustum of each interval.

        The generator, in training mode, adds noise to the raw density; without it a ReLU density
        easily settles on empty space.
        """
        return self._look(self.fine, rays, edges, colour=colour, feature_layer=feature_layer,
                          generator=generator)

    def evaluate_coarse(
        self, rays: Rays, edges: Tensor, *, colour: bool = True,
        generator: torch.Generator | None = None,
    ) -> FieldSamples:
        """Evaluate the proposing network on the conical frustum of each interval."""
        return self._look(self.coarse, rays, edges, colour=colour, generator=generator)

    def point_features(self, points: Tensor, feature_layer: int) -> Tensor:
        """Give f^j at scene-frame points: (N, 3) -> (N, width).

        A point is encoded as a Gaussian as wide as a typical pixel: octaves finer than any pixel
        were never seen in training, and their weights are noise.
        """
        self._check_feature_layer(feature_layer)
        variance = torch.full_like(points, self.config.point_deviation ** 2)
        position = self._encoded(points, variance)
        feature, _ = self.fine.encode(position, layers=feature_layer + 1)
        return feature

    def _look(
        self, network: MipNetwork, rays: Rays, edges: Tensor, *, colour: bool,
        feature_layer: int | None = None, generator: torch.Generator | None = None,
    ) -> FieldSamples:
        if feature_layer is not None:
            self._check_feature_layer(feature_layer)
        samples = _SAMPLES_ON_CPU if edges.device.type == 'cpu' else _SAMPLES_ON_GPU
        block = max(1, samples // max(edges.shape[1] - 1, 1))
        if torch.is_grad_enabled() or len(rays) <= block:
            return self._look_at_once(network, rays, edges, colour, feature_layer, generator)
        parts = [
            self._look_at_once(network, rays[start:start + block], edges[start:start + block],
                               colour, feature_layer, generator)
            for start in range(0, len(rays), block)]
        return FieldSamples(*(
            None if getattr(parts[0], name) is None
            else torch.cat([getattr(part, name) for part in parts])
            for name in ('density', 'colour', 'feature')))

    def _look_at_once(
        self, network: MipNetwork, rays: Rays, edges: Tensor, colour: bool,
        feature_layer: int | None, generator: torch.Generator | None,
    ) -> FieldSamples:
        config = self.config
        mean, variance = conical_frustums(rays.origins, rays.directions, rays.radius, edges)
        position = self._encoded(mean, variance)
        hidden, feature = network.encode(position, keep=feature_layer)
        raw = network.density_head(hidden)[..., 0]
        if generator is not None and self.training:
            raw = raw + config.density_noise * torch.randn(
                raw.shape, generator=generator, dtype=raw.dtype, device=raw.device)
        rgb = network.colour(hidden, self._view(rays)) if colour else None
        return FieldSamples(F.relu(raw), rgb, feature)

    def _encoded(self, mean: Tensor, variance: Tensor) -> Tensor:
        """Encode Gaussians (..., 3) by the octaves that are open: (..., 6 octaves)."""
        octaves = self.config.position_octaves
        position = integrated_positional_encoding(mean, variance, octaves)
        if self.detail >= 1:
            return position
        window = band_weights(octaves, opened_bands(octaves, self.detail, FIRST_OCTAVES))
        # Octave-major: the three coordinates of an octave are neighbours; sines, then cosines.
        return position * window.to(position).repeat_interleave(3).repeat(2)

    def _view(self, rays: Rays) -> Tensor:
        """Encode what the colour depends on beside the position: (R, V)."""
        view = direction_encoding(rays.directions, self.config.direction_octaves)
        if self.appearance is None:
            return view
        if rays.image_index is None:
            appearance = self._default_appearance().expand(len(rays), -1)
        else:
            appearance = self.appearance(rays.image_index)
        return torch.cat([view, appearance], dim=-1)

    def _default_appearance(self) -> Tensor:
        """Give the appearance (channels,) of a picture that the field was not trained on."""
        rows = self.appearance.weight
        if self.config.official:  # row 1, whatever it was trained on
            return rows[min(1, len(rows) - 1)]
        return rows.mean(dim=0)

    def _check_feature_layer(self, feature_layer: int) -> None:
        if not 1 <= feature_layer <= self.feature_layers:
            raise ConfigError(f'feature layer {feature_layer} does not exist; this field has '
                              f'layers 1 to {self.feature_layers}')
