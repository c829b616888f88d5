"""The frame a field lives in: a similarity from the map, and how far rays go there."""

from dataclasses import dataclass
import math

from nerfmatch_ros.errors import DataError
from nerfmatch_ros.geometry.camera import Camera
from nerfmatch_ros.geometry.similarity import Similarity
from nerfmatch_ros.radiance_field.field import Rays
import numpy as np
from scipy.spatial import cKDTree
import torch
from torch import Tensor


@dataclass(frozen=True)
class SceneFrame:
    """`scene_from_map` and the stretch of each ray that a field is asked about."""

    scene_from_map: Similarity
    near: float  # scene units
    far: float  # scene units; what counts in a `ball` for rays that miss it
    ball: bool = False  # rays end where they leave the unit ball, as in the paper's Mip-NeRF

    def rays(
        self, map_from_camera: Tensor, directions: Tensor, pixel_angle: float | Tensor,
        image_index: Tensor | None = None,
    ) -> Rays:
        """Cast rays into the scene; differentiable with respect to the pose.

        map_from_camera: (4, 4) or (R, 4, 4) metres; directions: (R, 3) unit, camera frame;
        pixel_angle: radians that a pixel covers, one for all or (R,), for the radius of the cone
        (Mip-NeRF: 2 / sqrt(12) of it). In a `ball` the rays of a camera outside of it end at `far`
        if any of them misses it, as in the published code; rays of many cameras each by itself.
        """
        rotation = torch.as_tensor(
            self.scene_from_map.rotation, dtype=directions.dtype, device=directions.device)
        offset = torch.as_tensor(
            self.scene_from_map.translation, dtype=directions.dtype, device=directions.device)
        pose = map_from_camera.to(directions)
        scene_from_camera = rotation @ pose[..., :3, :3]
        origin = self.scene_from_map.scale * (pose[..., :3, 3] @ rotation.T) + offset
        turned = (scene_from_camera @ directions[..., None])[..., 0]
        ones = torch.ones_like(turned[:, 0])
        far = self.far * ones
        if self.ball:
            leaves, meets = _leaves_unit_ball(origin.expand_as(turned), turned)
            far = torch.where(meets if pose.dim() == 3 else meets.all(), leaves, far)
        return Rays(origin.expand_as(turned), turned, self.near * ones, far,
                    pixel_angle * 2 / math.sqrt(12) * ones, image_index)

    def to_map(self, points: Tensor) -> Tensor:
        """Bring scene points (..., 3) back to the map, metres."""
        return self.scene_from_map.inverse().apply(points)

    def to_scene(self, points: Tensor) -> Tensor:
        """Bring map points (..., 3), metres, into the scene."""
        return self.scene_from_map.apply(points)


def _leaves_unit_ball(origins: Tensor, directions: Tensor) -> tuple[Tensor, Tensor]:
    """Distance (R,) at which rays leave the unit ball, and which of their lines meet it, bool."""
    along = (origins * directions).sum(-1)
    squared = along ** 2 - (origins ** 2).sum(-1) + 1
    return squared.clamp(min=1e-12).sqrt() - along, squared >= 0


BALL_NEAR = 0.01  # scene units, where rays begin in a frame of `frustum_frame`


def frustum_frame(
    cameras: list[Camera], map_from_cameras: np.ndarray, depth: float,
) -> SceneFrame:
    """Fit the unit ball around what cameras see up to `depth` metres, as the published code does.

    The ball is centred at the mean of the camera centres and of the four image corners at that
    depth along the optical axis, and reaches to the farthest of them; map_from_cameras: (K, 4, 4).
    """
    if not (math.isfinite(depth) and depth > 0):
        raise DataError(f'the frustum depth is {depth} m; give a positive number of metres')
    points = []
    for camera, pose in zip(cameras, map_from_cameras, strict=True):
        right, bottom = camera.width - 0.5, camera.height - 0.5
        corners = torch.tensor([(-0.5, -0.5), (right, -0.5), (-0.5, bottom), (right, bottom)],
                               dtype=torch.float64)
        rays = camera.rays(corners).numpy()
        seen = np.concatenate([np.zeros((1, 3)), depth * rays / rays[:, 2:]])
        points.append(seen @ pose[:3, :3].T + pose[:3, 3])
    points = np.concatenate(points)
    centre = points.mean(axis=0)
    scale = 1 / np.linalg.norm(points - centre, axis=1).max()
    return SceneFrame(Similarity(scale, np.eye(3), -scale * centre), BALL_NEAR, 1.0, ball=True)


FAR_BACKGROUND = 3.0  # times the median distance from a point to the nearest camera


def fit_scene_frame(
    map_from_cameras: np.ndarray, points: np.ndarray, distances: np.ndarray,
) -> SceneFrame:
    """Fit the box [-1, 1]^3 around the cameras and the bulk of the points they see.

    map_from_cameras: (K, 4, 4); points: (P, 3) metres, may be empty; distances: (M,) metres from
    cameras to points they see, may be empty. A background far beyond most points stays outside of
    the box, where a field sees all of space contracted. Without points the scene is taken to be
    as deep as the cameras are spread, which is a guess.
    """
    centres = map_from_cameras[:, :3, 3]
    corners = [centres.min(0), centres.max(0)]
    if len(points):
        nearest, _ = cKDTree(centres).query(points)
        close = points[nearest <= FAR_BACKGROUND * np.median(nearest)]
        corners += list(np.percentile(close, [2, 98], axis=0))
    low, high = np.min(corners, axis=0), np.max(corners, axis=0)
    half = float((high - low).max()) / 2
    if not np.isfinite(half) or half <= 0:
        raise DataError(
            f'the {len(centres)} camera centres coincide and no scene points could be '
            'triangulated, so the scene has no size; give photographs taken from several places')
    margin = 1.1 if len(points) else 3.0
    scale = 1 / (margin * half)
    if len(distances):
        near, far = np.percentile(distances, [0.2, 99.8]) * scale * [0.5, 1.4]
    else:
        near, far = 0.02, 6.0
    similarity = Similarity(scale, np.eye(3), -scale * (low + high) / 2)
    return SceneFrame(similarity, float(max(near, 0.01)), float(far))
