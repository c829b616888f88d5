"""NeRFMatch and NeRFMatch-Mini as published: backbone, attention, dual softmax, fine stage.

Mini (`fine` off) compares the backbone's tokens with inner features of the field. The full model
lets both sides attend to themselves and to each other first, and looks into a window of the 1/2
map for each match. With `official` the window lies where the authors' checkpoints were trained to
find it, 3 pixels off the cell's centre, and an offset of a fine pixel counts 2.5 pixels, not 2.
Letters: n image cells, m points, M matches, W x W window, C and Cf coarse and fine channels.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from nerfmatch_ros.matching.attention import (
    EncoderLayer,
    fourier_encoding,
    sine_position_encoding,
)
from nerfmatch_ros.matching.backbone import ConvFormerBackbone, UnitRangeBackbone
from nerfmatch_ros.matching.coarse_matching import (
    CoarseMatches,
    masked_log_dual_softmax,
    match_log_probability,
    match_unit_vectors,
)
from nerfmatch_ros.matching.fine_matching import FINE_STRIDE, window_features
from nerfmatch_ros.matching.inference_backbone import InferenceEncoder
from nerfmatch_ros.matching.matcher import (
    cell_centres,
    COARSE_STRIDE,
    ImageTokens,
    MatcherConfig,
    Matches,
    PointTokens,
)
import torch
from torch import nn, Tensor

HEADS = 8
START_TEMPERATURE = 10.0  # factor of the cosines before any training


@dataclass(frozen=True)
class FineHeatMap:
    """Where in its window each of M matches lies; x to the right, y down, -1 to 1 each."""

    mean: Tensor  # (M, 2)
    std: Tensor  # (M,) of x plus that of y


def unit(tokens: Tensor) -> Tensor:
    """Bring tokens (..., C) to unit length as published."""
    return tokens / (tokens.norm(dim=-1, keepdim=True) + 1e-6)


def heat_map(windows: Tensor, points: Tensor) -> FineHeatMap:
    """Compare point features (M, Cf) with those of their windows (M, W * W, Cf)."""
    probability = torch.softmax(
        (windows @ points[..., None])[..., 0] / points.shape[-1] ** 0.5, dim=-1)
    width = round(windows.shape[-2] ** 0.5)
    axis = torch.linspace(-1, 1, width, dtype=points.dtype, device=points.device)
    y, x = torch.meshgrid(axis, axis, indexing='ij')
    grid = torch.stack([x, y], dim=-1).reshape(-1, 2)
    mean = probability @ grid
    variance = probability @ grid ** 2 - mean ** 2
    return FineHeatMap(mean, variance.clamp(min=1e-10).sqrt().sum(-1))


class PaperMatcher(nn.Module):
    """The published network; with imported weights it gives the published numbers."""

    map_points = True  # `encode_points` takes points of the map's frame, metres
    per_view = True  # the points of each reference view are matched by themselves

    def __init__(self, config: MatcherConfig, feature_channels: int):
        super().__init__()
        self.config = config
        self.backbone = UnitRangeBackbone(ConvFormerBackbone(
            config.backbone, fine=config.fine, pretrained=config.pretrained))
        self._encoder = InferenceEncoder()
        channels = self.token_channels = self.backbone.coarse_channels
        # Features of another length are brought to that of the tokens first.
        self.point_resized = nn.Identity() if feature_channels == channels \
            else nn.Linear(feature_channels, channels)
        self.self_attention = nn.ModuleList(
            EncoderLayer(channels, HEADS) for _ in range(config.self_attention))
        self.cross_attention = nn.ModuleList(
            EncoderLayer(channels, HEADS, cross=True) for _ in range(config.cross_attention))
        if config.point_encoding:
            self.point_projection = nn.Linear(channels + 3 + 6 * config.octaves, channels)
        if config.fine:
            fine_channels = self.backbone.fine_channels
            self.window_attention = EncoderLayer(fine_channels, HEADS)
            self.point_fine = nn.Sequential(
                nn.Linear(channels, fine_channels), nn.Linear(fine_channels, fine_channels))
        self.temperature = nn.Parameter(torch.tensor(START_TEMPERATURE))

    @property
    def scale(self) -> Tensor:
        """Learned factor of the coarse cosines."""
        return self.temperature

    def encode_images(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        """Encode images (B, 3, H, W) in [0, 1], sides multiples of 8.

        Returns coarse tokens (B, n, C) after self-attention and the fine map or None.
        """
        coarse, fine = self.backbone(images)
        return self._attended(coarse), fine

    def _attended(self, coarse: Tensor) -> Tensor:
        """Turn coarse maps (B, C, h, w) into tokens (B, n, C) that have attended to each other."""
        if self.self_attention:
            coarse = coarse + sine_position_encoding(
                *coarse.shape[1:], device=coarse.device).to(coarse.dtype)
        tokens = coarse.flatten(2).transpose(1, 2)
        for layer in self.self_attention:
            tokens = layer(tokens)
        return tokens

    def encode_image(self, image: Tensor) -> ImageTokens:
        """Encode one image (3, H, W) in [0, 1]."""
        coarse, fine = self._encoder.maps(self.backbone, image[None])
        with self._precision():
            tokens = self._attended(coarse)
        return ImageTokens(tokens[0].float(), fine, image.shape[1] // COARSE_STRIDE,
                           image.shape[2] // COARSE_STRIDE)

    def speed_up(self, dtype: torch.dtype) -> None:
        """Encode single images by a copy of the present weights, and attend, in this precision.

        To be called again when weights or the device have changed.
        """
        self._encoder.prepare(self.backbone, dtype)

    def _precision(self) -> torch.autocast:
        """Compute attention in the precision of `speed_up`."""
        dtype = self._encoder.dtype
        return torch.autocast(self.temperature.device.type, dtype,
                              enabled=dtype != torch.float32)

    def encode_points(self, points: Tensor, features: Tensor) -> PointTokens:
        """Encode points (m, 3), map frame, metres, with their inner features (m, F)."""
        tokens = self.point_resized(features.float())[None]
        for layer in self.self_attention:
            tokens = layer(tokens)
        tokens = tokens[0]
        if self.config.point_encoding:
            encoded = fourier_encoding(points.float(), self.config.octaves)
            tokens = self.point_projection(torch.cat([tokens, encoded], dim=-1))
        return PointTokens(tokens, None)

    def interact(self, cells: Tensor, points: Tensor) -> tuple[Tensor, Tensor]:
        """Let one image's cells (n, C) attend to points (m, C), then these to the new cells."""
        cells, points = self._interact(cells[None], points[None])
        return cells[0], points[0]

    def _interact(self, cells: Tensor, points: Tensor) -> tuple[Tensor, Tensor]:
        """Do what `interact` does for B pairs at once: (B, n, C) and (B, m, C)."""
        for layer in self.cross_attention:
            cells = layer(cells, points)
            points = layer(points, cells)
        return cells, points

    def similarity(self, cells: Tensor, points: Tensor) -> Tensor:
        """Scaled cosines (n, m) of tokens after `interact`."""
        return self.scale * unit(cells.float()) @ unit(points.float()).T

    def windows(self, fine: Tensor, cells: Tensor) -> tuple[Tensor, Tensor]:
        """Cut the windows of cells (M,) out of one image's fine map (1, Cf, H/2, W/2).

        Returns features (M, W*W, Cf), 0 beyond the border, and the pixels (M, 2) of their middles.
        """
        columns = fine.shape[-1] * FINE_STRIDE // COARSE_STRIDE
        centres = cell_centres(cells, columns)
        if self.config.official:
            centres = centres - (COARSE_STRIDE - FINE_STRIDE) / 2  # the cell's first fine pixel
        features, positions, inside = window_features(
            fine, torch.zeros_like(cells), centres, self.config.window)
        return features * inside[..., None], positions[:, self.config.window ** 2 // 2]

    def locate(self, windows: Tensor, points: Tensor) -> FineHeatMap:
        """Find attended points (M, C) in windows (M, W*W, Cf)."""
        return heat_map(self.window_attention(windows).float(), self.point_fine(points).float())

    def fine_pixels(self, found: FineHeatMap, cells: Tensor, middles: Tensor, columns: int,
                    ) -> tuple[Tensor, Tensor]:
        """Give pixels (M, 2) and std (M,), pixels, of what was found in windows of cells (M,)."""
        if self.config.official:
            origin, reach = cell_centres(cells, columns), self.config.window * FINE_STRIDE / 2
        else:
            origin, reach = middles, (self.config.window - 1) * FINE_STRIDE / 2
        return origin + reach * found.mean, reach * found.std

    @torch.no_grad()
    def match_coarse(
        self, image: ImageTokens, points: PointTokens, *, mutual: bool = True,
        cell_mask: Tensor | None = None, point_mask: Tensor | None = None,
        padded: bool | None = None,
    ) -> CoarseMatches:
        """Pair cells of an image with the points of one view.

        mutual: only pairs that are best for both sides, else the best point of each cell;
        cell_mask (n,), point_mask (m,): what may be matched, None: everything; padded: a row for
        every cell, see `CoarseMatches`, None: on a GPU.
        """
        if not len(points.coarse):
            nothing = image.coarse.new_zeros(0)
            return CoarseMatches(nothing.long(), nothing.long(), nothing, points.coarse)
        with self._precision():
            cells, tokens = self.interact(image.coarse, points.coarse.float())
        cells, tokens = cells.float(), tokens.float()
        if cell_mask is None and point_mask is None:
            return self._paired(cells, tokens, mutual, padded)
        found = match_log_probability(masked_log_dual_softmax(
            self.similarity(cells, tokens), cell_mask, point_mask), self.config.threshold,
            mutual=mutual, ties=True)
        return replace(found, tokens=tokens[found.points])

    @torch.no_grad()
    def match_together(
        self, image: ImageTokens, views: Sequence[PointTokens],
    ) -> list[CoarseMatches]:
        """Do what `match_coarse` does for several views of the same number of points at once."""
        points = torch.stack([view.coarse.float() for view in views])
        with self._precision():
            cells, tokens = self._interact(image.coarse.expand(len(views), -1, -1), points)
        return [self._paired(*pair, mutual=True) for pair in zip(cells.float(), tokens.float())]

    def _paired(
        self, cells: Tensor, tokens: Tensor, mutual: bool, padded: bool | None = None,
    ) -> CoarseMatches:
        """Pair cells (n, C) with points (m, C) after `interact`."""
        found = match_unit_vectors(unit(cells), unit(tokens), self.scale, self.config.threshold,
                                   mutual=mutual, ties=True, padded=padded)
        return replace(found, tokens=tokens[found.points])

    @torch.no_grad()
    def match_fine(
        self, image: ImageTokens, points: PointTokens, coarse: CoarseMatches,
    ) -> Matches:
        """Look for each paired point in the window around its cell."""
        if not self.config.fine or not len(coarse.cells):
            return Matches(cell_centres(coarse.cells, image.columns), coarse.points,
                           coarse.confidence, torch.full_like(coarse.confidence, torch.nan))
        windows, middles = self.windows(image.fine, coarse.cells)
        found = self.locate(windows, coarse.tokens)
        pixels, std = self.fine_pixels(found, coarse.cells, middles, image.columns)
        return Matches(pixels, coarse.points, coarse.confidence, std)

    def match(
        self, image: ImageTokens, points: PointTokens, *, mutual: bool = True,
        cell_mask: Tensor | None = None, point_mask: Tensor | None = None,
    ) -> Matches:
        """Match an image with the points of one view; the options are those of `match_coarse`."""
        return self.match_fine(image, points, self.match_coarse(
            image, points, mutual=mutual, cell_mask=cell_mask, point_mask=point_mask,
            padded=False))
