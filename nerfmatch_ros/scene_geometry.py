"""Scene geometry from one image: map points, depth and weights of a coarse grid, and its pose.

A network predicts for each cell of 1/8 of the picture its point in the map frame, its depth and
how much it counts. Depth and camera model give the same point in the camera frame, and the pose
is what aligns both by weighted least squares: one step, no retrieval, no RANSAC, constant time.
After "Implicit Learning of Scene Geometry from Poses for Global Localization" (RA-L 2023,
arXiv 2312.02029). Letters: B pictures, h x w pixels, hc x wc = h/8 x w/8 cells, N = hc wc.
"""

from dataclasses import dataclass
import math

from nerfmatch_ros.data.working_image import working_view, WorkingView
from nerfmatch_ros.errors import ConfigError, DataError
from nerfmatch_ros.geometry.camera import Camera
from nerfmatch_ros.geometry.rigid_alignment import align, Alignment
from nerfmatch_ros.matching.backbone import COARSE_STRIDE, make_context_backbone
import torch
from torch import nn, Tensor

_LOG_RANGE = 4.0  # depths are predicted from extent / 50 to 50 extents


@dataclass(frozen=True)
class SceneGeometryConfig:
    """Size of the network, and of the pictures that it sees."""

    backbone: str = 'compact'  # our own, quick to train on a CPU; or a name of timm
    pretrained: bool = False  # start from timm's weights, which are fetched
    channels: int = 128  # of the features at 1/8
    width: int = 256  # hidden channels of each head
    dropout: float = 0.0  # share of feature channels that a training step leaves out
    longest_side: int = 224  # pixels of the working picture
    working_focal: float = 200.0  # pixels, of the working picture; the training sets it

    def __post_init__(self):
        """Refuse sizes that make no network."""
        for name in ('channels', 'width', 'longest_side'):
            if getattr(self, name) < 1:
                raise ConfigError(f'scene_geometry.{name} is {getattr(self, name)}; '
                                  'give a positive number')
        if not 0 <= self.dropout < 1:
            raise ConfigError(f'scene_geometry.dropout is {self.dropout}; '
                              'give a share from 0 to less than 1')
        if not 0 < self.working_focal < math.inf:
            raise ConfigError(f'scene_geometry.working_focal is {self.working_focal}; '
                              'give a positive number of pixels')


@dataclass(frozen=True)
class PredictedGeometry:
    """What the network sees in B pictures: N cells each, row by row."""

    map_points: Tensor  # (B, N, 3) map frame, metres
    depth: Tensor  # (B, N) metres along z, positive
    weights: Tensor  # (B, N) in [0, 1], how much a cell counts
    rays: Tensor  # (B, N, 3) K^-1 [u, v, 1] of the cells' centres, z = 1

    @property
    def camera_points(self) -> Tensor:
        """Give the cells' points (B, N, 3) in the camera frame, metres."""
        return self.depth[..., None] * self.rays

    def pose(self) -> Alignment:
        """Align camera to map points, each with its weight: map_from_camera of B pictures."""
        return align(self.camera_points, self.map_points, self.weights)


class SceneGeometry(nn.Module):
    """Pictures and the rays of their cells -> map points, depths and weights."""

    def __init__(self, config: SceneGeometryConfig):
        super().__init__()
        self.config = config
        self.backbone = make_context_backbone(
            config.backbone, channels=config.channels, pretrained=config.pretrained)
        self.dropout = nn.Dropout2d(config.dropout)
        self.point_head = _head(config.channels, config.width, 3)
        self.depth_head = _head(config.channels, config.width, 1)
        self.weight_head = _head(config.channels, config.width, 1)
        # Points are predicted as offsets from the middle of the scene in units of its extent.
        self.register_buffer('centre', torch.zeros(3))  # map frame, metres
        self.register_buffer('extent', torch.ones(()))  # metres

    def working_view(self, camera: Camera) -> WorkingView:
        """Choose how the network sees the picture of a camera: as it learned, without a lens.

        With square pixels: points turn with the camera only where both axes have one scale.
        """
        return working_view(
            camera, self.config.working_focal, 2 * self.config.longest_side, square=True)

    def forward(self, pictures: Tensor, rays: Tensor) -> PredictedGeometry:
        """Predict the geometry.

        pictures: (B, 3, h, w) RGB in [0, 1], sides multiples of 16; rays: (B, hc, wc, 3) or
        (1, hc, wc, 3), K^-1 [u, v, 1] of the cells' centres, from the camera model of the
        pictures (`cell_rays`). Raises DataError where both do not fit.
        """
        cells = (pictures.shape[-2] // COARSE_STRIDE, pictures.shape[-1] // COARSE_STRIDE)
        if tuple(rays.shape[-3:]) != (*cells, 3):
            raise DataError(f'rays of shape {tuple(rays.shape)} came with pictures of '
                            f'{cells[1]}x{cells[0]} cells; make them with cell_rays of the '
                            'camera of these pictures')
        features = self.dropout(self.backbone(pictures))
        # All that follows is geometry, for which half precision is not enough.
        offsets, depth, weights = (
            _cells(head(features)).float()
            for head in (self.point_head, self.depth_head, self.weight_head))
        map_points = self.centre + self.extent * offsets
        rays = rays.to(map_points).flatten(1, 2).expand(len(pictures), -1, -1)
        # A longer lens shows things larger, as if they were nearer by as much.
        nearer = self._focal(rays, cells[1]) / self.config.working_focal
        log_depth = _LOG_RANGE * torch.tanh(depth[..., 0] / _LOG_RANGE)
        return PredictedGeometry(
            map_points, self.extent * nearer[:, None] * log_depth.exp(),
            weights[..., 0].sigmoid(), rays)

    @staticmethod
    def _focal(rays: Tensor, columns: int) -> Tensor:
        """Give the focal lengths (B,), pixels, of rays (B, N, 3): in the middle of the picture."""
        if columns < 2:
            raise DataError('the picture is one cell wide; at least 16 pixels are needed')
        middle = rays.shape[1] // columns // 2 * columns + columns // 2
        across = rays[:, middle] - rays[:, middle - 1]
        return COARSE_STRIDE / torch.linalg.vector_norm(across, dim=-1)


def cell_rays(
    camera: Camera, *, device: torch.device | str | None = None,
) -> Tensor:
    """Give K^-1 [u, v, 1] of the centres of a camera's cells: (height // 8, width // 8, 3), z = 1.

    Lens distortion is taken out. What a fisheye sees sideways has no such form: its rays end
    close to the plane of the camera.
    """
    pixels = camera.pixel_grid(COARSE_STRIDE, dtype=torch.float64, device=device)
    directions = camera.rays(pixels)
    rays = directions / directions[:, 2:].clamp(min=1e-2)
    rays = torch.cat((rays[:, :2], torch.ones_like(rays[:, 2:])), dim=-1).float()
    return rays.view(camera.height // COARSE_STRIDE, camera.width // COARSE_STRIDE, 3)


def _head(channels: int, width: int, outputs: int) -> nn.Sequential:
    """Make a head of each cell by itself: (B, channels, hc, wc) -> (B, outputs, hc, wc)."""
    last = nn.Conv2d(width, outputs, 1)
    nn.init.normal_(last.weight, std=0.01)
    nn.init.zeros_(last.bias)
    return nn.Sequential(
        nn.Conv2d(channels, width, 1), nn.ReLU(inplace=True),
        nn.Conv2d(width, width, 1), nn.ReLU(inplace=True), last)


def _cells(values: Tensor) -> Tensor:
    """Bring maps (B, C, hc, wc) to cells (B, N, C), row by row."""
    return values.flatten(2).transpose(1, 2)
