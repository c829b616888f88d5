"""Making a surface cache: rendered points that views agree on, with normals, one in each voxel.

    render each view -> points, colours, normals -> thin to a few times too many -> keep those
    that other views see too and that few see through -> thin to the number asked for
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from nerfmatch_ros.data.posed_image import PosedImage
from nerfmatch_ros.errors import ConfigError, MapError
from nerfmatch_ros.geometry.camera import Camera
from nerfmatch_ros.geometry.pose import inverse, transform_points
from nerfmatch_ros.mapping.surface_points import thin_with_size
from nerfmatch_ros.matching.supervision import visible_points
from nerfmatch_ros.radiance_field.field import RadianceField
from nerfmatch_ros.radiance_field.renderer import render_view, RenderedView
from nerfmatch_ros.radiance_field.scene_frame import SceneFrame
from nerfmatch_ros.radiance_field.surface_cache import sorted_cache, SurfaceCache
from nerfmatch_ros.scene_map import SceneMap
import numpy as np
from scipy.spatial import cKDTree
import torch
from torch import Tensor
import torch.nn.functional as F

CANDIDATES = 3  # times the points asked for, before views are asked whether they agree
ASKED_VIEWS = 60  # whether they see a point or what is behind it
TOLERANCE = 0.03  # of the depth, within which a point lies on the surface that a view shows
SURFACE_CACHE_POINTS = 262144  # of a map; 5 MB


@dataclass(frozen=True)
class SurfaceCacheOptions:
    """How a surface cache is made."""

    points: int = SURFACE_CACHE_POINTS  # at most
    stride: int = 4  # pixels between the rays that are rendered
    least_views: int = 2  # that must see a point where it is

    def __post_init__(self):
        """Refuse numbers that give no cache."""
        for name in ('points', 'stride', 'least_views'):
            if getattr(self, name) < 1:
                raise ConfigError(f'{name} of a surface cache is {getattr(self, name)}; '
                                  'give a positive number')


@dataclass(frozen=True)
class _Points:
    """Points of some views."""

    points: Tensor  # (m, 3) float32, map frame, metres
    normals: Tensor  # (m, 3) int8
    colour: Tensor  # (m, 3) uint8

    def __getitem__(self, index: Tensor) -> '_Points':
        return _Points(self.points[index], self.normals[index], self.colour[index])


@torch.inference_mode()
def build_surface_cache(
    field: RadianceField, frame: SceneFrame, cameras: Sequence[Camera], poses: np.ndarray,
    options: SurfaceCacheOptions | None = None,
    report: Callable[[float], None] = lambda progress: None,
) -> SurfaceCache:
    """Render what K cameras at poses (K, 4, 4) see, and keep what they agree on.

    Points, colours, normals of the median surface; features are left to the field, which gives
    them for any point. Memory is bounded by the points asked for and a depth map a view.
    """
    options = options or SurfaceCacheOptions()
    poses = torch.from_numpy(np.ascontiguousarray(poses, np.float64))
    most = 2 * CANDIDATES * options.points
    found, depths = None, []
    for k, (camera, pose) in enumerate(zip(cameras, poses, strict=True)):
        view = render_view(field, frame, camera, pose, stride=options.stride, colour=True)
        depths.append(view.depth.view(view.rows, view.columns).half().cpu())
        found = _joined(found, _solid_points(view, pose))
        if len(found.points) > most:
            found = found[thin_with_size(found.points, CANDIDATES * options.points)[0]]
        report(0.8 * (k + 1) / len(poses))
    if found is None or not len(found.points):
        return sorted_cache(torch.zeros(0, 3), 1.0)
    found = found[thin_with_size(found.points, CANDIDATES * options.points)[0]]
    agreed = agreed_points(found.points, cameras, poses, depths, options.least_views,
                           lambda progress: report(0.8 + 0.2 * progress))
    if len(agreed):
        found = found[agreed]
    solid = (~seen_through(found.points, cameras, poses, depths)).nonzero()[:, 0]
    if len(solid):
        found = found[solid]
    chosen, voxel = thin_with_size(found.points, options.points)
    found = found[chosen]
    return sorted_cache(found.points, voxel or spacing(found.points),
                        normals=found.normals / 127.0, colour=found.colour / 255.0)


def thinned_views(
    view: Callable[[int], tuple[Tensor, Tensor | None]], views: int, count: int,
) -> SurfaceCache:
    """Make a cache of at most `count` of the points of views, with their features.

    For fields whose points and features are composited along rays: a feature belongs to the ray,
    so both are taken as they are; there is no surface that would have normals.
    view: gives points (n, 3) and features (n, F) of view k < views; asked twice for each, so that
    the features of one view at a time are in memory.
    """
    points = [view(k)[0].clone() for k in range(views)]
    starts = np.cumsum([0] + [len(own) for own in points]).tolist()
    points = torch.cat(points)
    chosen, voxel = thin_with_size(points, count)
    features = []
    for k in range(views):
        own = view(k)[1]
        if own is not None:
            mine = chosen[(chosen >= starts[k]) & (chosen < starts[k + 1])]
            features.append(own[mine - starts[k]])
    return sorted_cache(points[chosen], voxel or spacing(points[chosen]),
                        features=torch.cat(features) if features else None)


def surface_cache_of(
    scene_map: SceneMap, options: SurfaceCacheOptions | None = None,
    images: Sequence[PosedImage] | None = None,
    report: Callable[[float], None] = lambda progress: None,
) -> SurfaceCache:
    """Make the surface cache of a finished map from what its reference views see.

    images: posed photographs to look from instead, of a map that keeps few reference views; only
    their cameras and poses are used. Raises ConfigError and MapError where there is no way.
    """
    options = options or SurfaceCacheOptions()
    references = scene_map.references
    if not scene_map.field.official:
        cameras, poses = references.cameras, references.map_from_camera
        if images is not None:
            cameras = [image.camera for image in images]
            poses = np.stack([image.map_from_camera for image in images])
        return build_surface_cache(
            scene_map.field, scene_map.frame,
            [scene_map.working_view(camera).camera for camera in cameras], poses, options, report)
    if images is not None:
        raise ConfigError('points of an imported map are those of its reference views; leave the '
                          'images out')
    if scene_map.matcher_config.feature_layer is not None and (
            references.holds != 'features' or references.view(0)[1] is None):
        raise MapError('the reference views of this map hold no features, which its field cannot '
                       'give for single points; import or build the map again')
    return thinned_views(references.view, len(references.names), options.points)


def grid_normals(points: Tensor, centre: Tensor) -> Tensor:
    """Unit normals (rows, columns, 3), towards `centre` (3,), of a grid of points of that shape.

    Of the two neighbours along each axis, two cells away, the nearer one is taken, as the other
    may lie on another surface; what 3 x 3 cells say is averaged. 0 where there is no surface.
    """
    toward = _unit(centre - points)
    normals = torch.linalg.cross(_nearer_step(points, 0), _nearer_step(points, 1))
    normals = _unit(normals)
    normals = normals * torch.sign((normals * toward).sum(-1, keepdim=True))
    near = F.avg_pool2d(normals.permute(2, 0, 1)[None], 3, 1, 1)[0].permute(1, 2, 0)
    # Averaged over an edge between two surfaces it may turn away, which what was seen never does.
    facing = ((near * toward).sum(-1, keepdim=True) > 0).to(near)
    return _unit(near) * facing


def agreed_points(
    points: Tensor, cameras: Sequence[Camera], poses: Tensor, depths: Sequence[Tensor],
    least_views: int, report: Callable[[float], None] = lambda progress: None,
) -> Tensor:
    """Indices of the points (m, 3) that at least `least_views` views see, all if fewer views.

    poses: (K, 4, 4) map_from_camera; depths: (rows, columns) metres a view. Points are not asked
    about again once enough views saw them, and views come in an order that leaps over the scene,
    so that few points are left soon.
    """
    least = min(least_views, len(cameras))
    seen = torch.zeros(len(points), dtype=torch.int16)
    left = torch.arange(len(points))
    order = np.random.default_rng(0).permutation(len(cameras))
    for number, k in enumerate(order):
        visible = visible_points(points[left], cameras[k], poses[k].float(), depths[k].float(),
                                 relative_tolerance=TOLERANCE)
        seen[left] += visible
        left = left[seen[left] < least]
        report((number + 1) / len(order))
        if not len(left):
            break
    return (seen >= least).nonzero()[:, 0]


def seen_through(
    points: Tensor, cameras: Sequence[Camera], poses: Tensor, depths: Sequence[Tensor],
) -> Tensor:
    """Tell which points (m, 3) more views look through than see: (m,) bool.

    Such a point hangs in the air, a flaw of the field that only the few views next to it show; a
    z-buffer would put it before the surface. Arguments as in `agreed_points`.
    """
    balance = torch.zeros(len(points), dtype=torch.int16)
    for k in np.random.default_rng(0).permutation(len(cameras))[:ASKED_VIEWS]:
        camera, (rows, columns) = cameras[k], depths[k].shape
        in_camera = transform_points(inverse(poses[k].float()), points)
        z, pixels = in_camera[:, 2], camera.project(in_camera)
        column = ((pixels[:, 0] + 0.5) * columns / camera.width).long().clamp(0, columns - 1)
        row = ((pixels[:, 1] + 0.5) * rows / camera.height).long().clamp(0, rows - 1)
        shown = depths[k].float()[row, column]
        inside = camera.sees(in_camera) & (z > 0)
        balance += inside & ((shown - z).abs() < TOLERANCE * z)
        balance -= (inside & (shown > (1 + 2 * TOLERANCE) * z)).short()
    return balance < 0


def spacing(points: Tensor) -> float:
    """Typical distance, metres, of neighbours among points (m, 3); 1 where there are none."""
    if len(points) < 2:
        return 1.0
    some = points[:: len(points) // 5000 + 1].numpy()
    distance, _ = cKDTree(points.numpy()).query(some, k=min(4, len(points)))
    return float(np.median(distance[:, -1])) or 1.0


def _solid_points(view: RenderedView, pose: Tensor) -> _Points:
    """Points of a rendered view that lie on a surface, on the CPU."""
    grid = view.points.view(view.rows, view.columns, 3).cpu()
    normals = grid_normals(grid, pose[:3, 3].to(grid)).view(-1, 3)
    solid = view.solid().cpu()
    return _Points(grid.view(-1, 3)[solid], (normals[solid] * 127).round().to(torch.int8),
                   (view.colour.cpu()[solid] * 255).round().to(torch.uint8))


def _joined(first: _Points | None, second: _Points) -> _Points:
    if first is None:
        return second
    return _Points(*(torch.cat((a, b)) for a, b in zip(
        vars(first).values(), vars(second).values())))


def _nearer_step(points: Tensor, axis: int) -> Tensor:
    """Difference (rows, columns, 3) to the nearer neighbour two cells before or after."""
    length = points.shape[axis]
    if length < 2:
        return torch.zeros_like(points)
    step = min(2, length - 1)
    between = points.narrow(axis, step, length - step) - points.narrow(axis, 0, length - step)
    missing = torch.full_like(points.narrow(axis, 0, step), torch.inf)
    after, before = torch.cat((between, missing), axis), torch.cat((missing, between), axis)
    nearer = after.norm(dim=-1, keepdim=True) < before.norm(dim=-1, keepdim=True)
    return torch.where(nearer, after, before).nan_to_num(0, 0, 0)


def _unit(vectors: Tensor) -> Tensor:
    """Scale vectors (..., 3) to length 1; 0 stays."""
    return vectors / torch.linalg.vector_norm(vectors, dim=-1, keepdim=True).clamp(min=1e-12)
