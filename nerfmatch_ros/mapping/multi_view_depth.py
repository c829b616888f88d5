"""Depth of photographs with known poses, measured by comparing them with one another.

Sparse points leave most of a picture without depth, and a radiance field guesses there.
Multi-view stereo fills it in: plane sweep, semi-global smoothing, and a check of every depth map
against those of its neighbours, so that what remains is seldom wrong. All of it is done in pinhole
views of the photographs; lenses are undone before.
"""

from collections.abc import Callable
from dataclasses import dataclass

import cv2
from nerfmatch_ros.data.posed_image import PosedImage
from nerfmatch_ros.errors import ConfigError
from nerfmatch_ros.geometry.camera import Camera
from nerfmatch_ros.mapping.depth_consistency import confirmations
from nerfmatch_ros.mapping.depth_map import DepthMap, known_share
from nerfmatch_ros.mapping.neighbour_views import FEWEST_SHARED, neighbour_views
from nerfmatch_ros.mapping.plane_sweep import HIDDEN, plane_sweep
from nerfmatch_ros.mapping.semi_global import cheapest, smoothed
from nerfmatch_ros.mapping.sparse_points import SparsePoints
from nerfmatch_ros.mapping.training_pixels import working_camera, working_rgb
import numpy as np

_NEARER, _FARTHER = 0.7, 1.6  # how far beyond its sparse points a photograph is searched
_FEW_NEIGHBOURS = 3  # below that many, one that agrees is enough


@dataclass(frozen=True)
class MultiViewDepthConfig:
    """Size, effort and strictness of multi-view depth."""

    images: int = 250  # photographs that get depth at most, evenly chosen; 0: none
    longest_side: int = 256  # photographs are reduced to this, pixels
    neighbours: int = 6  # photographs that each is compared with
    depths: int = 96  # tried for each pixel, even in 1 / depth
    window: int = 7  # pixels, side of the window of the correlation; odd
    step_cost: float = 0.06  # of a change by one depth between pixels; correlation is 0 to 1
    jump_cost: float = 0.4  # of any larger change
    confidence: float = 0.3  # least correlation with the better half of the neighbours
    agreement: float = 0.015  # of the depth, by which neighbours' depths may differ
    agreeing: int = 2  # neighbours that must confirm a pixel; 1 where there are few
    tolerance: float = 0.01  # of the distance, within which the field is not charged

    def __post_init__(self):
        """Refuse values that give no depth."""
        for name, least in (('images', 0), ('longest_side', 16), ('neighbours', 1), ('depths', 4),
                            ('window', 3), ('agreeing', 1)):
            if getattr(self, name) < least:
                raise ConfigError(f'depth.{name} is {getattr(self, name)}; give {least} or more')
        if self.window % 2 == 0:
            raise ConfigError(f'depth.window is {self.window}; give an odd number of pixels')
        for name in ('step_cost', 'jump_cost', 'agreement', 'tolerance'):
            if not getattr(self, name) > 0:
                raise ConfigError(f'depth.{name} is {getattr(self, name):g}; '
                                  'give a positive number')


@dataclass(frozen=True, eq=False)
class _View:
    """A photograph as a pinhole camera sees it."""

    camera: Camera  # PINHOLE
    grey: np.ndarray  # (H, W) float32 in [-0.5, 0.5], HIDDEN outside of photograph and mask
    map_from_camera: np.ndarray  # (4, 4)
    depth: np.ndarray | None  # (H, W) float32, what the photograph came with


def multi_view_depth(
    images: list[PosedImage], sparse: SparsePoints, config: MultiViewDepthConfig, *,
    depth_range: tuple[float, float] | None = None,
    report: Callable[[float, dict], None] = lambda progress, numbers: None,
) -> list[DepthMap | None]:
    """Measure the depth of photographs; unknown where neighbours do not confirm it.

    sparse: points observed in these images
    depth_range: metres, searched where a photograph has too few sparse points
    report: called with the progress in [0, 1] and {'known': share of pixels with depth}

    None stands for a photograph that has a depth of its own, was not among the `config.images`
    chosen, or has no neighbours. Pictures without texture give empty maps.
    """
    chosen = _evenly(len(images), config.images)
    if not len(chosen):
        return [None] * len(images)
    views = [_view(images[k], config.longest_side) for k in chosen]
    known_points = _of_images(sparse, chosen, len(images))
    neighbours = neighbour_views(
        np.stack([view.map_from_camera for view in views]), known_points, config.neighbours)
    depths = [view.depth for view in views]
    for i, view in enumerate(views):
        if view.depth is None and neighbours[i] and min(view.grey.shape) >= config.window:
            stretch = _stretch(i, view, known_points, depth_range)
            if stretch is not None:
                others = [views[j] for j in neighbours[i]]
                depths[i] = _match(view, others, stretch, config)
        report(0.95 * (i + 1) / len(views), {})
    maps = [None] * len(images)
    for i, view in enumerate(views):
        if depths[i] is not None and view.depth is None:
            maps[chosen[i]] = DepthMap(_confirmed(i, views, depths, neighbours[i], config),
                                       view.camera)
    report(1.0, {'known': known_share(maps)})
    return maps


def pinhole_view(camera: Camera, longest_side: int) -> Camera:
    """Give the pinhole camera of a photograph's size, reduced, and its middle focal length."""
    scaled = working_camera(camera, longest_side)
    return Camera('PINHOLE', scaled.width, scaled.height, scaled.fx, scaled.fy, scaled.cx,
                  scaled.cy)


def _evenly(count: int, most: int) -> list[int]:
    if count <= most:
        return list(range(count))
    return np.linspace(0, count - 1, most).round().astype(int).tolist()


def _of_images(sparse: SparsePoints, chosen: list[int], count: int) -> SparsePoints:
    """Keep the observations of some images, renumbered."""
    number = np.full(count, -1)
    number[chosen] = np.arange(len(chosen))
    kept = number[sparse.image_index] >= 0
    return SparsePoints(
        sparse.points, sparse.reprojection_error, sparse.angle, number[sparse.image_index[kept]],
        sparse.pixel[kept], sparse.point_index[kept])


def _view(image: PosedImage, longest_side: int) -> _View:
    """Read a photograph and undo its lens."""
    scaled, camera = working_camera(image.camera, longest_side), pinhole_view(
        image.camera, longest_side)
    size = (scaled.width, scaled.height)
    grey = cv2.cvtColor(working_rgb(image, scaled), cv2.COLOR_RGB2GRAY).astype(np.float32)
    grey = grey / 255 - np.float32(0.5)
    mask, depth = image.valid_mask(), image.depth_map()
    if mask is not None:
        # Of a reduced pixel all must be usable.
        share = cv2.resize(mask.astype(np.float32), size, interpolation=cv2.INTER_AREA)
        grey[share < 0.999] = HIDDEN
    if depth is not None:
        depth = cv2.resize(depth, size, interpolation=cv2.INTER_NEAREST)
    if not scaled.is_pinhole:
        rays = camera.rays(camera.pixel_grid().double())
        place = scaled.project(rays).float().numpy().reshape(camera.height, camera.width, 2)
        sees = scaled.sees(rays).numpy().reshape(camera.height, camera.width)
        grey = np.where(sees, cv2.remap(grey, place, None, cv2.INTER_LINEAR,
                                        borderMode=cv2.BORDER_REPLICATE), HIDDEN)
        if depth is not None:
            depth = np.where(sees, cv2.remap(depth, place, None, cv2.INTER_NEAREST), 0)
    grey = np.where(grey < -1, HIDDEN, grey).astype(np.float32)
    return _View(camera, grey, image.map_from_camera,
                 None if depth is None else depth.astype(np.float32))


def _stretch(
    index: int, view: _View, sparse: SparsePoints, depth_range: tuple[float, float] | None,
) -> tuple[float, float] | None:
    """Choose the depths (nearest, farthest), metres, among which to search."""
    points = sparse.points[sparse.point_index[sparse.image_index == index]]
    pose = view.map_from_camera
    depth = (points - pose[:3, 3]) @ pose[:3, 2]
    depth = depth[depth > 0]
    if len(depth) >= FEWEST_SHARED:
        low, high = np.percentile(depth, [1, 99])
        return float(low * _NEARER), float(high * _FARTHER)
    return depth_range


def _transform(view: _View, other: _View) -> np.ndarray:
    """Give (3, 4), from (x, y, 1, 1 / z) of a view to homogeneous pixels of another.

    Their third entry times z is the depth in the other view.
    """
    other_from_view = np.linalg.inv(other.map_from_camera) @ view.map_from_camera
    return other.camera.matrix() @ np.hstack((
        other_from_view[:3, :3] @ np.linalg.inv(view.camera.matrix()), other_from_view[:3, 3:]))


def _match(
    view: _View, others: list[_View], stretch: tuple[float, float], config: MultiViewDepthConfig,
) -> np.ndarray:
    """Measure the depth (H, W) float32 of a view, metres, 0 where the views do not match."""
    near, far = stretch
    inverse = np.linspace(1 / far, 1 / near, config.depths)
    transforms = np.stack([_transform(view, other) for other in others])
    cost = plane_sweep(view.grey, [other.grey for other in others], transforms, inverse,
                       config.window)
    index, fraction = cheapest(smoothed(cost, config.step_cost, config.jump_cost))
    correlation = 1 - np.take_along_axis(cost, index[:, None], axis=1)[:, 0]
    # At the ends of the stretch the true depth may lie beyond it.
    known = ((correlation > config.confidence) & (view.grey > -1) & (index > 0)
             & (index < config.depths - 1))
    depth = 1 / (inverse[0] + fraction * (inverse[1] - inverse[0]))
    return np.where(known, depth, 0).astype(np.float32)


def _confirmed(
    index: int, views: list[_View], depths: list[np.ndarray | None], neighbours: list[int],
    config: MultiViewDepthConfig,
) -> np.ndarray:
    """Give the depth (H, W) of a view where enough of its neighbours' depths agree, else 0."""
    others = [j for j in neighbours if depths[j] is not None]
    depth = depths[index]
    if not others:
        return np.zeros_like(depth)
    needed = config.agreeing if len(others) >= _FEW_NEIGHBOURS else 1
    count = confirmations(
        depth, [depths[j] for j in others],
        np.stack([_transform(views[index], views[j]) for j in others]), config.agreement)
    return np.where(count >= needed, depth, np.float32(0))
