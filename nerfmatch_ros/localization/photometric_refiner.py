"""Photometric refinement: render the field at a pose, align the pose with the picture, repeat.

The field's surface points, coloured as they look from the pose, are slid over the picture until
their colours agree; the field itself is only asked again for the next rendering.
"""

from dataclasses import dataclass, replace

from nerfmatch_ros.errors import DataError
from nerfmatch_ros.geometry.camera import Camera
from nerfmatch_ros.geometry.pose import pose_distance
from nerfmatch_ros.localization.alignment import Alignment
from nerfmatch_ros.localization.iterative_refiner import AT_REST
from nerfmatch_ros.localization.photometric_alignment import align, PhotometricConfig
from nerfmatch_ros.localization.picture_texture import blurred, choose_pixels, slopes_of
from nerfmatch_ros.radiance_field.field import RadianceField
from nerfmatch_ros.radiance_field.renderer import render_rays, render_view
from nerfmatch_ros.radiance_field.scene_frame import SceneFrame
import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

__all__ = ['align', 'Alignment', 'choose_pixels', 'PhotometricConfig', 'refine_photometrically']


@dataclass(frozen=True)
class _Reference:
    """What the field shows from a pose: coloured points, and the picture to compare them with."""

    points: Tensor  # (N, 3) float64, map, metres
    colours: Tensor  # (N, 3), or (L, N, 3) blurred for every level
    slopes: Tensor | None  # (L, N, 2, 3) of the colours, per pixel of `camera`
    picture: Tensor  # (3, h, w)
    camera: Camera


@torch.no_grad()
def refine_photometrically(
    field: RadianceField, frame: SceneFrame, camera: Camera, picture: Tensor,
    map_from_camera: np.ndarray, config: PhotometricConfig | None = None, chunk: int = 4096,
) -> Alignment:
    """Refine the pose (4, 4) of a picture (3, h, w) in [0, 1]; a failure has a reason.

    camera: the pinhole camera of the picture; a lens is undone before, by the working view
    chunk: rays rendered at once
    The residual before is that of the given pose; `moved` and `iterations` cover all renderings.
    """
    config = config or PhotometricConfig()
    if not camera.is_pinhole:
        raise DataError(f'a {camera.model} camera cannot be refined photometrically; give the '
                        'working picture and its pinhole camera')
    picture = picture.to(next(field.parameters()).device)
    pose = start = np.array(map_from_camera, np.float64)
    result = None
    for _ in range(config.renders):
        if config.stride:
            reference = _rendered_picture(field, frame, camera, picture, pose, config, chunk)
            levels = tuple(sigma / config.stride for sigma in config.levels)
        else:
            reference = _rendered_pixels(field, frame, camera, picture, pose, config, chunk)
            levels = config.levels
        new = align(reference.points, reference.colours, reference.picture, reference.camera,
                    pose, replace(config, levels=levels), slopes=reference.slopes)
        result = _joined(result, new, start)
        if new.map_from_camera is None:
            break
        pose = new.map_from_camera
        if new.moved[0] < AT_REST[0] and new.moved[1] < AT_REST[1]:
            break
    return result


def _joined(earlier: Alignment | None, new: Alignment, start: np.ndarray) -> Alignment:
    """Report an alignment together with those that led to it."""
    if earlier is None:
        return new
    moved = earlier.moved
    if new.map_from_camera is not None:
        metres, radians = pose_distance(torch.from_numpy(start),
                                        torch.from_numpy(new.map_from_camera))
        moved = (float(metres), float(radians))
    return replace(new, residual_before=earlier.residual_before, moved=moved,
                   iterations=earlier.iterations + new.iterations)


def _rendered_pixels(
    field: RadianceField, frame: SceneFrame, camera: Camera, picture: Tensor, pose: np.ndarray,
    config: PhotometricConfig, chunk: int,
) -> _Reference:
    """Render the rays of the picture's steepest pixels."""
    directions = camera.rays(choose_pixels(picture, config.rays))
    map_from_camera = torch.from_numpy(pose).to(directions)
    rays = frame.rays(map_from_camera.float(), directions.float(), 1 / camera.fx)
    points, colours, opacity = [], [], []
    for first in range(0, len(rays), chunk):
        rendered = render_rays(field, rays[first:first + chunk])
        # In double precision a map may lie far from its origin.
        distance = rendered.median_distance.double() / frame.scene_from_map.scale
        reach = distance[:, None] * directions[first:first + chunk]
        points.append(reach @ map_from_camera[:3, :3].T + map_from_camera[:3, 3])
        colours.append(rendered.colour.clamp(0, 1))
        opacity.append(rendered.opacity)
    solid = torch.cat(opacity) > config.min_opacity
    return _Reference(torch.cat(points)[solid], torch.cat(colours)[solid], None, picture, camera)


def _rendered_picture(
    field: RadianceField, frame: SceneFrame, camera: Camera, picture: Tensor, pose: np.ndarray,
    config: PhotometricConfig, chunk: int,
) -> _Reference:
    """Render every `stride`-th pixel, blur as the picture is blurred, keep the steepest pixels."""
    stride = config.stride
    view = render_view(field, frame, camera, torch.from_numpy(pose), stride=stride, colour=True,
                       chunk=chunk)
    small = Camera('PINHOLE', view.columns, view.rows, camera.fx / stride, camera.fy / stride,
                   (camera.cx + 0.5) / stride - 0.5, (camera.cy + 0.5) / stride - 0.5)
    shown = view.colour.T.reshape(3, view.rows, view.columns)
    solid = (view.opacity > config.min_opacity).reshape(view.rows, view.columns)
    pixels = choose_pixels(shown, config.rays, usable=solid).long()
    index = pixels[:, 1] * view.columns + pixels[:, 0]
    levels = [blurred(shown, sigma / stride) for sigma in config.levels]
    colours = torch.stack([level.flatten(1)[:, index].T for level in levels])
    slopes = torch.stack([slopes_of(level).flatten(2)[..., index].permute(2, 1, 0)
                          for level in levels])
    return _Reference(view.points[index].double(), colours, slopes,
                      functional.avg_pool2d(picture[None], stride)[0], small)
