"""NeRFMatch: matching an image with points of a NeRF, coarse to fine (paper, Sec. 3.3).

Without attention and fine stage this is the paper's Mini model, with both the full one; the
default is Mini with a fine stage, on a backbone that trains on a CPU. Letters: n image cells,
m points, M matches, C and Cf coarse and fine channels.
"""

from dataclasses import dataclass
import math

from nerfmatch_ros.errors import ConfigError
from nerfmatch_ros.matching.attention import (
    EncoderLayer,
    fourier_encoding,
    sine_position_encoding,
)
from nerfmatch_ros.matching.coarse_matching import match_mutually
from nerfmatch_ros.matching.compact_backbone import CompactBackbone
from nerfmatch_ros.matching.fine_matching import expectation, fine_logits, window_features
import torch
from torch import nn, Tensor
import torch.nn.functional as F

COARSE_STRIDE = 8


@dataclass(frozen=True)
class MatcherConfig:
    """Shape of a `NeRFMatcher`."""

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
    self_attention: int = 0  # layers shared by both sides (paper's full model: 3)
    cross_attention: int = 0  # layers (paper's full model: 1)
    threshold: float = 0.02  # least dual-softmax probability of a match

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
    fine: Tensor | None  # (m, Cf)


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
    """Image branch, point branch, optional attention between them, temperature."""

    def __init__(self, config: MatcherConfig, feature_channels: int):
        super().__init__()
        self.config = config
        self.backbone = _make_backbone(config)
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
        self.self_attention = nn.ModuleList(
            EncoderLayer(channels, heads=8) for _ in range(config.self_attention))
        self.cross_attention = nn.ModuleList(
            EncoderLayer(channels, heads=8, cross=True) for _ in range(config.cross_attention))
        self.log_scale = nn.Parameter(torch.tensor(math.log(20.0)))

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

        Returns coarse tokens (B, n, C) after self-attention and the fine map or None.
        """
        coarse, fine = self.backbone(images)
        if self.self_attention:
            coarse = coarse + sine_position_encoding(
                coarse.shape[1], *coarse.shape[-2:]).to(coarse)
        tokens = coarse.flatten(2).transpose(1, 2)
        for layer in self.self_attention:
            tokens = layer(tokens)
        return tokens, fine

    def encode_image(self, image: Tensor) -> ImageTokens:
        """Encode one image (3, H, W) in [0, 1]."""
        tokens, fine = self.encode_images(image[None])
        return ImageTokens(tokens[0], fine, image.shape[1] // COARSE_STRIDE,
                           image.shape[2] // COARSE_STRIDE)

    def encode_points(self, points: Tensor, features: Tensor | None) -> PointTokens:
        """Encode scene-frame points (m, 3) with their inner features (m, F)."""
        config = self.config
        if config.feature_layer is None:
            tokens = (points if config.point_feature == 'xyz'
                      else self._encoded(points))
        else:
            tokens = (features.float() - self.feature_mean) / self.feature_std
            if config.point_encoding:
                tokens = torch.cat([self._encoded(points), tokens], dim=-1)
        tokens = self.point_trunk(tokens)
        coarse = self.point_coarse(tokens)
        for layer in self.self_attention:
            coarse = layer(coarse[None])[0]
        return PointTokens(coarse, self.point_fine(tokens) if config.fine else None)

    def _encoded(self, points: Tensor) -> Tensor:
        # The longest wave spans the scene's contracted core, 4 units.
        return fourier_encoding(points * (math.pi / 2), self.config.octaves)

    def interact(self, cells: Tensor, points: Tensor) -> tuple[Tensor, Tensor]:
        """Cross attention of one image's cells (n, C) with points (m, C), then unit length."""
        for layer in self.cross_attention:
            cells = layer(cells[None], points[None])[0]
            points = layer(points[None], cells[None])[0]
        return F.normalize(cells.float(), dim=-1), F.normalize(points.float(), dim=-1)

    @torch.no_grad()
    def match(self, image: ImageTokens, points: PointTokens) -> Matches:
        """Match an image with points: coarse mutual pairs, refined within their windows."""
        cells, tokens = self.interact(image.coarse, points.coarse)
        coarse = match_mutually(self.scale * cells @ tokens.T, self.config.threshold)
        pixels = cell_centres(coarse.cells, image.columns)
        if not self.config.fine or not len(pixels):
            return Matches(pixels, coarse.points, coarse.confidence,
                           torch.full_like(coarse.confidence, torch.nan))
        features, positions, inside = window_features(
            image.fine, torch.zeros_like(coarse.cells), pixels, self.config.window)
        logits = fine_logits(features.float(), points.fine[coarse.points].float(), inside,
                             self.fine_scale)
        pixels, variance = expectation(logits, positions)
        return Matches(pixels, coarse.points, coarse.confidence, variance.sqrt())
