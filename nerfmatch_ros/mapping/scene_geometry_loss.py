"""What scene geometry is trained by: camera poses alone, or only the positions of the cameras.

The three losses of "Implicit Learning of Scene Geometry from Poses for Global Localization"
(RA-L 2023, arXiv 2312.02029), in units that make scenes of any size alike: lengths in extents of
the scene, angles in radians, pixels in the plane z = 1. Letters: B pictures, N cells, G map
points, C camera points, T pose map_from_camera.
"""

from dataclasses import dataclass, fields

from nerfmatch_ros.errors import ConfigError
from nerfmatch_ros.geometry.pose import inverse, so3_log, transform, transform_points
from nerfmatch_ros.geometry.rigid_alignment import Alignment
from nerfmatch_ros.scene_geometry import PredictedGeometry
import torch
from torch import Tensor

_NEAREST = 0.05  # extents; points nearer than this to the camera's plane are not projected
_FAR_OFF = 0.5  # in the plane z = 1; beyond it an error counts by its logarithm


@dataclass(frozen=True)
class SceneGeometryLossConfig:
    """Weight of each loss; 0 switches it off."""

    pose: float = 1.0
    consistency: float = 1.0
    reprojection: float = 1.0
    points: float = 0.0  # of known depth, where images carry it; not of the paper
    weighted: bool = True  # False: every cell counts alike in the pose

    def __post_init__(self):
        """Refuse weights that teach nothing."""
        values = {field.name: getattr(self, field.name) for field in fields(self)
                  if field.name != 'weighted'}
        for name, value in values.items():
            if not value >= 0:
                raise ConfigError(f'scene geometry: the weight of the loss {name} is {value}; '
                                  'give 0 or more')
        if not any(values.values()):
            raise ConfigError('scene geometry: all losses are switched off; leave one on')


@dataclass(frozen=True)
class GeometryLabels:
    """What is known of B pictures."""

    map_from_camera: Tensor  # (B, 4, 4) metres
    seen: Tensor  # (B, N) bool, cells that show the scene, not the border of a turned picture
    # (B,) bool, whose rotations are known; those of the others are never looked at. None: all
    rotation_known: Tensor | None = None
    depth: Tensor | None = None  # (B, N) metres along z of the cells, 0 = unknown
    # (B, N) bool, of the cells that are seen those that have a place: no sky, nothing that moves.
    # The others count for the pose, where weights learn to leave them out. None: all
    still: Tensor | None = None


def scene_geometry_losses(
    geometry: PredictedGeometry, labels: GeometryLabels, extent: Tensor,
    config: SceneGeometryLossConfig,
) -> dict[str, Tensor]:
    """Give the losses that are on, by name, each with its weight; their sum is to be minimised.

    extent: () metres, of the scene.
    """
    losses = {}
    still = labels.seen if labels.still is None else labels.still
    truth, known = labels.map_from_camera.to(geometry.map_points), labels.rotation_known
    if config.pose or known is not None:
        found = weighted_pose(geometry, labels.seen, weighted=config.weighted)
    if config.pose:
        losses['pose'] = config.pose * pose_loss(found, truth, extent, known)
    if known is not None:
        # The position is known; the rotation is what the network itself says, so that points
        # and depths must agree with the position from wherever the camera looked.
        truth = transform(torch.where(
            known[:, None, None], truth[:, :3, :3], found.rotation), truth[:, :3, 3])
    if config.consistency:
        losses['consistency'] = config.consistency * mean_over(
            consistency_errors(geometry, truth) / extent, still)
    if config.reprojection:
        losses['reprojection'] = config.reprojection * mean_over(
            robust(reprojection_errors(geometry, truth, _NEAREST * extent), _FAR_OFF),
            still)
    if config.points and labels.depth is not None:
        known = still & (labels.depth > 0)
        losses['points'] = config.points * mean_over(
            point_errors(geometry, truth, labels.depth) / extent, known)
    return losses


def weighted_pose(
    geometry: PredictedGeometry, seen: Tensor, *, weighted: bool = True,
) -> Alignment:
    """Give the poses of B pictures from the cells that show the scene (B, N)."""
    weights = geometry.weights if weighted else torch.ones_like(geometry.weights)
    return PredictedGeometry(geometry.map_points, geometry.depth, weights * seen,
                             geometry.rays).pose()


def pose_loss(
    found: Alignment, truth: Tensor, extent: Tensor, rotation_known: Tensor | None = None,
) -> Tensor:
    """Give the mean distance to the true poses (B, 4, 4): extents, plus radians.

    rotation_known: (B,) bool, for which pictures radians count; None: for all. Pictures whose
    points lie on a line have no pose and do not count.
    """
    distance = torch.linalg.vector_norm(found.translation - truth[:, :3, 3], dim=-1) / extent
    goal = truth[:, :3, :3]
    if rotation_known is not None:
        goal = torch.where(rotation_known[:, None, None], goal, found.rotation.detach())
    angle = _length(so3_log(found.rotation.transpose(-1, -2) @ goal))
    if rotation_known is not None:
        angle = torch.where(rotation_known, angle, 0)
    distance = distance + angle
    return mean_over(distance, ~found.degenerate)


def consistency_errors(geometry: PredictedGeometry, truth: Tensor) -> Tensor:
    """Give ||G - T C|| (B, N), metres."""
    return _length(geometry.map_points - transform_points(truth, geometry.camera_points))


def reprojection_errors(geometry: PredictedGeometry, truth: Tensor, nearest: Tensor) -> Tensor:
    """Give ||pi(T^-1 G) - pi(C)|| (B, N) in the plane z = 1.

    Points behind the camera have no projection: for those nearer than `nearest`, metres along z,
    it is the distance in that plane plus how far they are behind it, so that they come forward.
    """
    points = transform_points(inverse(truth), geometry.map_points)
    depth = points[..., 2:]
    plane = points[..., :2] / depth.clamp(min=nearest)
    behind = (nearest - depth).clamp(min=0)[..., 0] / nearest
    return _length(plane - geometry.rays[..., :2]) + behind


def point_errors(geometry: PredictedGeometry, truth: Tensor, depth: Tensor) -> Tensor:
    """Give the distances of map and camera points to those of a known depth (B, N), metres."""
    camera_points = depth[..., None] * geometry.rays
    return (_length(geometry.map_points - transform_points(truth, camera_points))
            + (geometry.depth - depth).abs())


def robust(errors: Tensor, scale: float) -> Tensor:
    """Let errors well under the scale count as they are, those well above by their logarithm.

    A point that is close to the camera's plane projects to anywhere.
    """
    return scale * torch.log1p(errors / scale)


def mean_over(values: Tensor, counted: Tensor) -> Tensor:
    """Give the mean of values where `counted`, of the same shape; 0 where nothing is."""
    share = counted.to(values)
    return (torch.where(counted, values, 0) * share).sum() / share.sum().clamp(min=1)


def _length(vectors: Tensor) -> Tensor:
    """Give the lengths of vectors (..., 3), with a gradient of 0 at 0."""
    squared = (vectors * vectors).sum(-1)
    return torch.where(squared > 0, squared, 1).sqrt() * (squared > 0)
