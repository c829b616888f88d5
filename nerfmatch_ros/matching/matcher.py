"""NeRFMatch: matching an image with points of a NeRF, coarse to fine (paper, Sec. 3.3).

`NeRFMatcher` is the paper's Mini model with a fine stage, on a backbone that trains on a CPU;
`PaperMatcher` in paper_matcher.py is the network as published. Letters: n image cells, m points,
M matches, C and Cf coarse and fine channels.
"""

from dataclasses import dataclass
import math

from nerfmatch_ros.errors import ConfigError
from nerfmatch_ros.matching.attention import fourier_encoding
from nerfmatch_ros.matching.coarse_matching import CoarseMatches, match_unit_vectors
from nerfmatch_ros.matching.compact_backbone import CompactBackbone
from nerfmatch_ros.matching.fine_matching import expectation, unit_logits, window_features
from nerfmatch_ros.matching.inference_backbone import InferenceEncoder
import torch
from torch import nn, Tensor
import torch.nn.functional as F

COARSE_STRIDE = 8


@dataclass(frozen=True)
class MatcherConfig:
    """Which matcher, and its shape."""

    kind: str = 'own'  # 'own' (the default, trains on a CPU) or 'paper' (the network as published)
    backbone: str = 'compact'  # 'compact', 'convformer_s18', 'convformer_b36' or a timm name
    pretrained: bool = False  # ImageNet weights for timm backbones (downloads them)
    channels: int = 128  # C of the compact backbone
    fine_channels: int = 32  # Cf of the compact backbone
    fine: bool = True  # fine stage; without it a match lies in the middle of its cell
    window: int = 8  # W, pixels of the 1/2 map; 8 reaches into the neighbouring cells
    point_feature: str = 'f3'  # 'xyz', 'encoded_xyz' or f^j: 'f1', 'f2', ...
    point_encoding: bool = True  # put the encoded coordinate beside f^j
    octaves: int = 9  # of the encoded coordinate, from a wavelength of 4 scene units
    point_hidden: int = 256  # channels of the point branch; 0: one linear layer as in the paper
    self_attention: int = 0  # kind 'paper': layers shared by both sides (full model: 3)
    cross_attention: int = 0  # kind 'paper': layers (full model: 1)
    threshold: float = 0.02  # least dual-softmax probability of a match
    official: bool = False  # the fine stage of the authors' checkpoints: window and pixels apart

    def __post_init__(self):
        """Refuse what no matcher can be made of, and what one would silently leave out."""
        if self.kind not in ('own', 'paper'):
            raise ConfigError(f"matcher kind '{self.kind}' is unknown; use own or paper")
        least = {'channels': 1, 'fine_channels': 1, 'window': 1, 'octaves': 0, 'point_hidden': 0,
                 'self_attention': 0, 'cross_attention': 0}
        for name, smallest in least.items():
            if getattr(self, name) < smallest:
                raise ConfigError(f'matcher {name} is {getattr(self, name)}; '
                                  f'give {smallest} or more')
        if not 0 <= self.threshold < 1:
            raise ConfigError(f'matcher threshold is {self.threshold:g}; it is a probability, '
                              'from 0 to below 1')
        layer = self.feature_layer
        if self.kind == 'own':
            if self.self_attention or self.cross_attention or self.official:
                raise ConfigError("self_attention, cross_attention and official belong to the "
                                  "published network; leave them out or set kind to 'paper'")
            return
        if not self.backbone.startswith('convformer_'):
            raise ConfigError(f"the published matcher stands on a ConvFormer, not '{self.backbone}"
                              "'; use backbone convformer_b36 or convformer_s18, or kind 'own'")
        if layer is None:
            raise ConfigError(f"the published matcher takes inner features, not '"
                              f"{self.point_feature}'; use point_feature f3, or kind 'own'")
        if self.point_hidden:
            raise ConfigError(f'point_hidden is {self.point_hidden}; the published matcher has no '
                              'such layers, set it to 0')
        if self.fine and not self.window % 2:
            raise ConfigError(f'window is {self.window}; the published fine stage needs an odd '
                              'number such as 5')

    @staticmethod
    def published(*, fine: bool, official: bool = False, pretrained: bool = False,
                  ) -> 'MatcherConfig':
        """Give the configuration of the full model (fine) or of NeRFMatch-Mini."""
        return MatcherConfig(
            kind='paper', backbone='convformer_b36', pretrained=pretrained, fine=fine, window=5,
            point_feature='f3', point_encoding=fine, octaves=15, point_hidden=0,
            self_attention=3 if fine else 0, cross_attention=1 if fine else 0, threshold=0.0,
            official=official)

    @property
    def feature_layer(self) -> int | None:
        """Layer j of f^j, or None where the coordinate alone is the point feature."""
        if self.point_feature in ('xyz', 'encoded_xyz'):
            return None
        if self.point_feature[:1] == 'f' and self.point_feature[1:].isdigit():
            return int(self.point_feature[1:])
        raise ConfigError(f"point_feature is '{self.point_feature}'; give xyz, encoded_xyz or "
                          'f1, f2, ... for an inner feature of the field')


@dataclass(frozen=True)
class PointTokens:
    """Scene points as the matcher sees them."""

    coarse: Tensor  # (m, C)
    fine: Tensor | None  # (m, Cf); None where it depends on the image or there is no fine stage


@dataclass(frozen=True)
class ImageTokens:
    """An image as the matcher sees it."""

    coarse: Tensor  # (n, C), row-major cells
    fine: Tensor | None  # (1, Cf, H/2, W/2)
    rows: int
    columns: int


@dataclass(frozen=True)
class Matches:
    """2D-3D matches of one image."""

    pixels: Tensor  # (M, 2) of the working image
    points: Tensor  # (M,) indices of the points given
    confidence: Tensor  # (M,)
    pixel_std: Tensor  # (M,) pixels, spread of the fine heat map; nan without a fine stage


def cell_centres(cells: Tensor, columns: int) -> Tensor:
    """Pixel positions (M, 2) of the centres of cells (M,)."""
    cell = torch.stack([cells % columns, cells // columns], dim=-1)
    return cell.float() * COARSE_STRIDE + (COARSE_STRIDE - 1) / 2


def _make_backbone(config: MatcherConfig) -> nn.Module:
    if config.backbone == 'compact':
        return CompactBackbone(config.channels, config.fine_channels)
    from nerfmatch_ros.matching.backbone import make_timm_backbone
    return make_timm_backbone(config.backbone, fine=config.fine, pretrained=config.pretrained)


class NeRFMatcher(nn.Module):
    """Image branch, point branch, temperature."""

    map_points = False  # `encode_points` takes points of the scene's frame
    per_view = False  # points of several views may be matched as one set

    def __init__(self, config: MatcherConfig, feature_channels: int):
        super().__init__()
        self.config = config
        self.backbone = _make_backbone(config)
        self._encoder = InferenceEncoder()
        channels, fine_channels = self.backbone.coarse_channels, self.backbone.fine_channels
        encoded = 3 + 6 * config.octaves
        if config.feature_layer is None:
            point_channels = 3 if config.point_feature == 'xyz' else encoded
        else:
            point_channels = feature_channels + (encoded if config.point_encoding else 0)
            self.register_buffer('feature_mean', torch.zeros(feature_channels))
            self.register_buffer('feature_std', torch.ones(feature_channels))
        hidden = config.point_hidden
        self.point_trunk = nn.Identity() if not hidden else nn.Sequential(
            nn.Linear(point_channels, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU())
        self.point_coarse = nn.Linear(hidden or point_channels, channels)
        if config.fine:
            self.point_fine = nn.Linear(hidden or point_channels, fine_channels)
            self.log_fine_scale = nn.Parameter(torch.tensor(math.log(10.0)))
        self.log_scale = nn.Parameter(torch.tensor(math.log(20.0)))

    @property
    def token_channels(self) -> int:
        """C, channels of the coarse tokens."""
        return self.point_coarse.out_features

    @property
    def scale(self) -> Tensor:
        """Learned factor of the coarse cosines (inverse temperature)."""
        return self.log_scale.exp().clamp(max=100)

    @property
    def fine_scale(self) -> Tensor:
        """Learned factor of the fine cosines."""
        return self.log_fine_scale.exp().clamp(max=60)

    def encode_images(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        """Encode images (B, 3, H, W) in [0, 1], sides multiples of 16.

        Returns coarse tokens (B, n, C) and the fine map or None.
        """
        coarse, fine = self.backbone(images)
        return coarse.flatten(2).transpose(1, 2), fine

    def encode_image(self, image: Tensor) -> ImageTokens:
        """Encode one image (3, H, W) in [0, 1]; tokens and fine map have unit length."""
        coarse, fine = self._encoder.maps(self.backbone, image[None])
        return ImageTokens(
            F.normalize(coarse[0].flatten(1).T, dim=-1),
            F.normalize(fine, dim=1) if self.config.fine else None,
            image.shape[1] // COARSE_STRIDE, image.shape[2] // COARSE_STRIDE)

    def speed_up(self, dtype: torch.dtype) -> None:
        """Encode single images by a copy of the present weights, in this precision.

        To be called again when weights or the device have changed.
        """
        self._encoder.prepare(self.backbone, dtype)

    def encode_points(self, points: Tensor, features: Tensor | None) -> PointTokens:
        """Encode scene-frame points (m, 3) with their inner features (m, F), to unit length."""
        config = self.config
        if config.feature_layer is None:
            tokens = (points if config.point_feature == 'xyz'
                      else self._encoded(points))
        else:
            tokens = (features.float() - self.feature_mean) / self.feature_std
            if config.point_encoding:
                tokens = torch.cat([self._encoded(points), tokens], dim=-1)
        tokens = self.point_trunk(tokens)
        return PointTokens(
            F.normalize(self.point_coarse(tokens), dim=-1),
            F.normalize(self.point_fine(tokens), dim=-1) if config.fine else None)

    def _encoded(self, points: Tensor) -> Tensor:
        # The longest wave spans the scene's contracted core, 4 units.
        return fourier_encoding(points * (math.pi / 2), self.config.octaves)

    @torch.no_grad()
    def match_coarse(
        self, image: ImageTokens, points: PointTokens, *, padded: bool | None = None,
    ) -> CoarseMatches:
        """Pair cells of an image with points that both prefer each other.

        padded: a row for every cell, see `CoarseMatches`; None: on a GPU.
        """
        return match_unit_vectors(image.coarse.float(), points.coarse.float(), self.scale,
                                  self.config.threshold, padded=padded)

    @torch.no_grad()
    def match_fine(
        self, image: ImageTokens, points: PointTokens, coarse: CoarseMatches,
    ) -> Matches:
        """Look for each paired point in the window around its cell."""
        pixels = cell_centres(coarse.cells, image.columns)
        if not self.config.fine or not len(pixels):
            return Matches(pixels, coarse.points, coarse.confidence,
                           torch.full_like(coarse.confidence, torch.nan))
        features, positions, inside = window_features(
            image.fine, torch.zeros_like(coarse.cells), pixels, self.config.window)
        logits = unit_logits(features.float(), points.fine[coarse.points].float(), inside,
                             self.fine_scale)
        pixels, variance = expectation(logits, positions)
        return Matches(pixels, coarse.points, coarse.confidence, variance.sqrt())

    def match(self, image: ImageTokens, points: PointTokens) -> Matches:
        """Match an image with points: coarse mutual pairs, refined within their windows."""
        return self.match_fine(image, points, self.match_coarse(image, points, padded=False))
