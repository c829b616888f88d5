"""What a map knows, rehearsed: its field's own pictures and depths, where photographs are gone.

A field that learns something new forgets the rest, unless it is shown the rest again (rehearsal,
Robins 1995; with the model's own output for data: Shin et al., NeurIPS 2017). The field renders
what its reference views see; these pictures with depth train the next field and matcher as if they
were photographs.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
from nerfmatch_ros.data.posed_image import PosedImage
from nerfmatch_ros.errors import ConfigError, DataError, MapError
from nerfmatch_ros.files import written_atomically
from nerfmatch_ros.geometry.camera import Camera
from nerfmatch_ros.mapping.changes import Changes, rays_through
from nerfmatch_ros.radiance_field.field import RadianceField
from nerfmatch_ros.radiance_field.renderer import OPAQUE, render_rays, render_view
from nerfmatch_ros.radiance_field.scene_frame import SceneFrame
from nerfmatch_ros.scene_map import SceneMap
import numpy as np
import torch
from torch import Tensor

# Which views are rehearsed is decided on voxels, so many along a map; so many points make a view
# show one; and so much of what is wanted is enough, as the rest are flaws of the field.
_VOXELS, _FEWEST_POINTS, _COVERED = 16, 5, 0.9
_CHUNK = 4096  # rays rendered together


@dataclass(frozen=True)
class RehearsalConfig:
    """How much of a map is rehearsed."""

    views: int = 0  # of its reference views; 0: as many as show each surface `times` times
    times: int = 2  # that each piece of surface is to be shown, where as many views see it
    least_left: float = 0.1  # of a view; one of which less is as it was is dropped

    def __post_init__(self):
        """Refuse numbers that rehearse nothing."""
        if self.views < 0 or self.times < 1 or not 0 <= self.least_left <= 1:
            raise ConfigError(f'rehearsal: views {self.views}, times {self.times}, least_left '
                              f'{self.least_left:g}; give 0 or more, 1 or more, a share')


@dataclass(frozen=True, eq=False)
class Rehearsed:
    """A view of an old map as a photograph, and which of its pixels are as they were."""

    image: PosedImage
    still: np.ndarray | None = None  # (H, W) bool; None: all

    @property
    def left(self) -> float:
        """Share of the pixels that are as they were."""
        return 1.0 if self.still is None else float(self.still.mean())


def choose_views(points: Sequence[Tensor], times: int) -> list[int]:
    """Choose views that together show nearly every piece of surface, greedily.

    points: per view (N, 3), metres, that it shows. Each voxel is wanted `times` times, or as often
    as views see it. Gives numbers in rising order.
    """
    every = torch.cat(list(points))
    low, high = (torch.quantile(every[:: len(every) // 100_000 + 1], share, dim=0)
                 for share in (0.01, 0.99))
    size = float((high - low).max()) / _VOXELS or 1.0
    shown = []
    for own in points:
        cell = ((own - low) / size).floor().long().clamp(-_VOXELS, 2 * _VOXELS) + _VOXELS
        voxels, count = torch.unique((cell[:, 0] * 4 * _VOXELS + cell[:, 1]) * 4 * _VOXELS
                                     + cell[:, 2], return_counts=True)
        shown.append(voxels[count >= _FEWEST_POINTS].numpy())
    wanted = np.minimum(np.bincount(np.concatenate(shown)), times)  # (V,) a voxel
    enough, left, chosen = (1 - _COVERED) * wanted.sum(), set(range(len(shown))), []
    while left and wanted.sum() > enough:
        best = max(left, key=lambda k: (wanted[shown[k]] > 0).sum())
        wanted[shown[best]] = np.maximum(wanted[shown[best]] - 1, 0)
        left.remove(best)
        chosen.append(best)
    return sorted(chosen)


def views_of(scene_map: SceneMap, config: RehearsalConfig) -> list[int]:
    """Choose the reference views of a map that are rehearsed."""
    count = len(scene_map.reference_names)
    if config.views:
        return np.unique(np.linspace(0, count - 1, min(config.views, count)).round().astype(
            int)).tolist()
    return choose_views([scene_map.references.view(k)[0] for k in range(count)], config.times)


def rehearse(
    scene_map: SceneMap, views: Sequence[int], folder: Path, names: Sequence[str],
    report: Callable[[float], None] = lambda progress: None,
) -> list[PosedImage]:
    """Render reference views as photographs with depth into a folder, those it does not hold.

    names: of the photographs, one per view. Depth is given where the field is opaque.
    """
    check_rehearsable(scene_map)
    images = []
    for number, (k, name) in enumerate(zip(views, names, strict=True)):
        camera = scene_map.working_view(scene_map.cameras[k]).camera
        pose = scene_map.reference_poses[k]
        picture, depth = folder / f'{k:06d}.png', folder / f'{k:06d}.npy'
        if not picture.exists():  # it is written last
            view = render_view(scene_map.field, scene_map.frame, camera, torch.from_numpy(pose),
                               stride=1, colour=True)
            shape = (camera.height, camera.width)
            solid = torch.where(view.opacity > OPAQUE, view.depth, 0).cpu().numpy()
            with written_atomically(depth) as temporary:
                np.save(temporary, solid.reshape(shape).astype(np.float16))
            write_picture(picture, (view.colour.cpu() * 255).round().byte().numpy().reshape(
                *shape, 3))
        images.append(PosedImage(name, camera, pose, path=picture, depth_path=depth,
                                 depth_scale=1.0))
        report((number + 1) / len(views))
    return images


def check_rehearsable(scene_map: SceneMap) -> None:
    """Refuse maps that cannot be trained on."""
    if scene_map.field_config.kind not in ('grid', 'mip') or scene_map.is_official:
        raise MapError(f"the map has a field of kind '{scene_map.field_config.kind}' or a matcher "
                       'that were imported and are not trained on here; build the map anew of '
                       'all photographs')


def write_picture(path: Path, picture: np.ndarray) -> None:
    """Write a picture (H, W, 3) uint8 RGB whole or not at all."""
    with written_atomically(path) as temporary:
        if not cv2.imwrite(str(temporary), picture[..., ::-1]):
            raise DataError(f'{path} cannot be written; check the free space')


def still_pixels(image: PosedImage, changes: Changes | None) -> Rehearsed:
    """Tell which pixels of a rehearsed view no change concerns."""
    if changes is None or not changes.contradicted.any():
        return Rehearsed(image)
    hit = rays_through(changes, image.camera, image.map_from_camera, image.depth_map())
    return Rehearsed(image, ~hit) if hit.any() else Rehearsed(image)


def masked(rehearsed: Rehearsed, path: Path) -> PosedImage:
    """Give the photograph with a mask of what is as it was, written to `path`."""
    if rehearsed.still is None:
        return rehearsed.image
    mask = rehearsed.still.astype(np.uint8) * 255
    write_picture(path, np.repeat(mask[..., None], 3, axis=2))
    return replace(rehearsed.image, mask_path=path)


@torch.no_grad()
def repainted(
    rehearsed: Rehearsed, field: RadianceField, frame: SceneFrame, path: Path,
) -> PosedImage:
    """Give the photograph as the new field shows it where it is not as it was; written once."""
    if rehearsed.still is None:
        return rehearsed.image
    image = rehearsed.image
    if not path.exists():
        picture = image.rgb().copy()
        picture[~rehearsed.still] = colours_at(
            field, frame, image.camera, image.map_from_camera, ~rehearsed.still)
        write_picture(path, picture)
    return replace(image, path=path, depth_path=None)


def colours_at(
    field: RadianceField, frame: SceneFrame, camera: Camera, map_from_camera: np.ndarray,
    where: np.ndarray,
) -> np.ndarray:
    """Render the pixels of a camera that `where` (H, W) bool marks: (n, 3) uint8."""
    device = next(field.parameters()).device
    pixels = camera.pixel_grid()[torch.from_numpy(where.reshape(-1))]
    directions = camera.rays(pixels).float().to(device)
    angle = camera.pixel_angles(pixels.double()).float().to(device) if frame.ball \
        else 1 / camera.fx
    rays = frame.rays(torch.from_numpy(map_from_camera).float().to(device), directions, angle)
    colours = [render_rays(field, rays[start:start + _CHUNK]).colour.clamp(0, 1).cpu()
               for start in range(0, len(rays), _CHUNK)]
    return (torch.cat(colours) * 255).round().byte().numpy()


def unique_names(names: Sequence[str], taken: Sequence[str]) -> list[str]:
    """Give names that are not taken: a number before the ending of those that are."""
    used, result = set(taken), []
    for name in names:
        stem, dot, ending = name.rpartition('.')
        stem, ending = (stem, dot + ending) if dot else (ending, '')
        new, number = name, 2
        while new in used:
            new, number = f'{stem}~{number}{ending}', number + 1
        used.add(new)
        result.append(new)
    return result
