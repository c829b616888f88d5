"""All training pixels of a set of posed photographs, drawn at random as rays with targets."""

from dataclasses import dataclass
from pathlib import Path
import tempfile

from nerfmatch_ros.data.posed_image import PosedImage
from nerfmatch_ros.geometry.camera import Camera
from nerfmatch_ros.mapping.depth_map import DepthMap, DepthTable
from nerfmatch_ros.mapping.sparse_points import SparsePoints
from nerfmatch_ros.mapping.training_pixels import (
    lens_cameras,
    map_pixels,
    pixel_camera,
    PixelSize,
    write_pixels,
)
from nerfmatch_ros.radiance_field.field import Rays
from nerfmatch_ros.radiance_field.scene_frame import SceneFrame
import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class RayBatch:
    """Rays with what a photograph, and where known a depth, says about them."""

    rays: Rays
    colour: Tensor  # (R, 3) in [0, 1]
    distance: Tensor  # (R,) scene units along the ray; 0 where unknown
    tolerance: Tensor  # (R,) scene units

    def __getitem__(self, index) -> 'RayBatch':
        """Choose rays by a slice, mask or index tensor."""
        return RayBatch(self.rays[index], self.colour[index], self.distance[index],
                        self.tolerance[index])


class RayDataset:
    """Pixels, poses and depths of K images, which may differ in size.

    how: the photographs are reduced; depths: maps of these images, which count where an image has
    no depth of its own; depth_tolerance: of such a depth, as a share of it; file: where the pixels
    are, or are to be written; a file that vanishes with the data set if it is not given. On the
    CPU the pixels stay in the file and are mapped from there, another device holds them.
    """

    def __init__(
        self, images: list[PosedImage], frame: SceneFrame, sparse: SparsePoints, *,
        how: PixelSize, depths: list[DepthMap | None] | None = None,
        depth_tolerance: float = 0.01, device: torch.device | str = 'cpu',
        file: Path | None = None,
    ):
        self.frame, self.device = frame, device
        cameras = [pixel_camera(image.camera, how) for image in images]
        self._open(images, how, file)
        counts = np.array([camera.width * camera.height for camera in cameras])
        self.image_starts = torch.from_numpy(np.cumsum(counts) - counts).to(device)
        self.pixels = int(counts.sum())
        self._cameras = torch.tensor(
            [(c.fx, c.fy, c.cx, c.cy) for c in cameras], device=device, dtype=torch.float32)
        self._sizes = torch.tensor([(c.width, c.height) for c in cameras], device=device)
        self._tables = self._table_starts(cameras)
        # The maps stay as small as they are and are looked up for the rays that are drawn.
        self.depth_table, self.depth_tolerance = None, depth_tolerance
        if depths is not None and any(depth is not None for depth in depths):
            self.depth_table = DepthTable(depths, device)
        self.poses = torch.from_numpy(
            np.stack([image.map_from_camera for image in images])).float().to(device)
        self.pixel_angle = float(np.mean([1 / camera.fx for camera in cameras]))
        self._add_sparse(images, cameras, sparse, frame.scene_from_map.scale)

    def _open(self, images: list[PosedImage], how: PixelSize, file: Path | None) -> None:
        """Map the file of the pixels, written before if need be."""
        if file is None:
            with tempfile.TemporaryDirectory() as folder:
                write_pixels(Path(folder) / 'pixels', images, how)
                stored = map_pixels(Path(folder) / 'pixels')
        else:
            if not file.exists():
                write_pixels(file, images, how)
            stored = map_pixels(file)
        stored = {name: value.to(self.device) for name, value in stored.items()}
        self.colours = stored['colours']  # (P, 3) uint8
        self.usable = stored.get('usable')  # (P,) uint8
        self.depths = stored.get('depths')  # (P,) metres along the optical axis, 0 = unknown
        self._directions = stored.get('directions')  # (D, 3) of the cameras with a lens

    def _table_starts(self, cameras: list[Camera]) -> Tensor:
        """Row (K,) where the directions of each image's camera begin; -1 for pinholes."""
        starts, end = {}, 0
        for camera in lens_cameras(cameras):
            starts[camera] = end
            end += camera.width * camera.height
        return torch.tensor([starts.get(camera, -1) for camera in cameras], device=self.device)

    def _add_sparse(self, images, cameras, sparse: SparsePoints, scale: float) -> None:
        """Keep each observation of a sparse point as a pixel with a known distance."""
        flat, distance, tolerance = [], [], []
        offsets = self.image_starts.cpu().numpy()
        for k, (image, camera) in enumerate(zip(images, cameras)):
            chosen = sparse.image_index == k
            ratio = np.array([camera.width / image.camera.width,
                              camera.height / image.camera.height])
            pixel = np.floor((sparse.pixel[chosen] + 0.5) * ratio).astype(np.int64)
            pixel = np.clip(pixel, 0, [camera.width - 1, camera.height - 1])
            points = sparse.points[sparse.point_index[chosen]]
            away = np.linalg.norm(points - image.map_from_camera[:3, 3], axis=1)
            flat.append(offsets[k] + pixel[:, 1] * camera.width + pixel[:, 0])
            distance.append(away * scale)
            # A pixel's error across the triangulation angle, as an error along the ray.
            angle = sparse.angle[sparse.point_index[chosen]]
            tolerance.append(
                away * scale * (0.005 + 1 / camera.fx / np.maximum(np.sin(angle), 0.02)))
        to = {'dtype': torch.float32, 'device': self.device}
        self.sparse_pixel = torch.as_tensor(np.concatenate(flat), device=self.device)
        self.sparse_distance = torch.as_tensor(np.concatenate(distance), **to)
        self.sparse_tolerance = torch.as_tensor(np.concatenate(tolerance), **to)

    def draw(self, count: int, sparse_count: int, generator: torch.Generator) -> RayBatch:
        """Draw `count` pixels and up to `sparse_count` pixels of known depth, at random."""
        def choose(n: int, size: int) -> Tensor:
            return torch.randint(n, (size,), generator=generator, device=self.device)

        pixel = choose(self.pixels, count)
        if self.usable is not None:
            # Drawn again until all may be used: a list of those that may would be eight times as
            # large as the pixels.
            while len(hidden := (self.usable[pixel] == 0).nonzero()[:, 0]):
                pixel[hidden] = choose(self.pixels, len(hidden))
        known = len(self.sparse_pixel)
        picked = choose(known, sparse_count if known else 0) if known else pixel[:0]
        pixel = torch.cat([pixel, self.sparse_pixel[picked] if known else picked])
        image = torch.searchsorted(self.image_starts, pixel, right=True) - 1
        place = pixel - self.image_starts[image]
        directions = self._directions_at(image, place)
        distance = torch.zeros(len(pixel), device=self.device)
        tolerance = torch.ones(len(pixel), device=self.device)
        if self.depths is not None:
            distance = self.depths[pixel] * self.frame.scene_from_map.scale / directions[:, 2]
            tolerance = 0.01 * distance + 1e-3
        if self.depth_table is not None:
            looked_up = self.depth_table.distances(image, directions)
            looked_up = looked_up * self.frame.scene_from_map.scale
            free = distance == 0
            distance = torch.where(free, looked_up, distance)
            tolerance = torch.where(free, self.depth_tolerance * looked_up + 1e-3, tolerance)
        if known:
            distance[count:] = self.sparse_distance[picked]
            tolerance[count:] = self.sparse_tolerance[picked]
        angle = self._pixel_angles(image, place, directions) if self.frame.ball \
            else self.pixel_angle
        rays = self.frame.rays(self.poses[image], directions, angle, image)
        return RayBatch(rays, self.colours[pixel].float() / 255, distance, tolerance)

    def _directions_at(self, image: Tensor, place: Tensor) -> Tensor:
        """Directions (R, 3), unit, camera frame, of the pixels `place` (R,) of images (R,)."""
        width = self._sizes[image, 0]
        pixel = torch.stack((place % width, place // width), dim=-1)
        camera = self._cameras[image]
        plane = (pixel - camera[:, 2:]) / camera[:, :2]
        directions = torch.nn.functional.normalize(
            torch.cat([plane, torch.ones_like(plane[:, :1])], dim=-1), dim=-1)
        if self._directions is not None:
            start = self._tables[image]
            lens = (start >= 0).nonzero()[:, 0]
            directions[lens] = self._directions[start[lens] + place[lens]]
        return directions

    def _pixel_angles(self, image: Tensor, place: Tensor, directions: Tensor) -> Tensor:
        """Angle (R,), radians, between each pixel and the one below it, or above the last."""
        width, height = self._sizes[image].unbind(-1)
        step = torch.where(place // width < height - 1, width, -width)
        return (self._directions_at(image, place + step) - directions).norm(dim=-1)
